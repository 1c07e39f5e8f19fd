"""No key gets out, and no ordinary text gets lost."""

import dspy
import pytest

from cuesmith.teleprompters.runtime.redaction import Redactor


class _Lm(dspy.BaseLM):  # type: ignore[misc]
    """A model with options and nothing else."""

    def __init__(self, **kwargs: object) -> None:
        self.kwargs = kwargs


def test_known_secrets_of_models_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "plain-looking-value")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("SOME_PATH", "/usr/local/visible")
    lm = _Lm(
        api_key="correct horse", extra_headers={"X-Own": "header-value-1"}, temperature=0.7, model_note="not a secret"
    )
    redact = Redactor([lm])
    for secret in ("plain-looking-value", "wJalrXUtnFEMI/K7MDENG", "correct horse", "header-value-1"):
        assert redact(f"<{secret}>") == "<[redacted]>"
    assert redact("abc /usr/local/visible not a secret") == "abc /usr/local/visible not a secret"


def test_the_longer_of_two_overlapping_secrets_goes_first() -> None:
    redact = Redactor([_Lm(api_key="12345678"), _Lm(api_key="12345678-and-more")])
    assert redact("12345678-and-more") == "[redacted]"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-Ab3dEf6hIj9kLm2n",
        "sk-ant-api03-abcdefghijklmnop",
        "hf_aBcDeFgHiJ1234567890",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "AIzaSyA1234567890abcdefghijklmnopqrstu",
        "AKIAIOSFODNN7EXAMPLE",
        "gsk_0123456789abcdef",
        "Bearer abcdef.ghijkl-123",
    ],
)
def test_what_looks_like_a_key(secret: str) -> None:
    assert Redactor()(f"Incorrect key provided: {secret}, see\n{secret}") == (
        "Incorrect key provided: [redacted], see\n[redacted]"
    )


@pytest.mark.parametrize(
    "text", ["from huggingface_hub import hf_hub_download", "a sk-learn-pipeline", "task_12345678901234", "the bearer"]
)
def test_ordinary_words_stay(text: str) -> None:
    assert Redactor()(text) == text
