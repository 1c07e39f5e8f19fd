"""No key gets out, and no ordinary text gets lost."""

from __future__ import annotations

import base64
import html
import importlib
import json
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import dspy
import pydantic
import pytest
from dspy import lm15
from e2e_support import ToyEngine, error_body, result_of, toy_compile, toy_lm, toy_reply

from cuesmith.teleprompters.runtime.events import Stopped
from cuesmith.teleprompters.runtime.outcomes import Scored, Step
from cuesmith.teleprompters.runtime.redaction import Redactor, redacted
from cuesmith.teleprompters.runtime.session import CompileError
from cuesmith.testing.fakes import Answer, Server, completion, sent_of

SECRET = "Zq7-Vb3+kP9/wL2xR5"
"""Nothing in it has a known shape, and URLs, JSON and base64 write it in other ways."""
CREDENTIALS = importlib.import_module("dspy._vendor.lm15.credentials")


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
        assert redact(f"<{secret}>") == redact.reply(f"<{secret}>") == "<[redacted]>"
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
        "Basic dXNlcjpwYXNz",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    ],
)
def test_what_looks_like_a_key_goes_from_what_is_for_people_and_stays_in_a_reply(secret: str) -> None:
    text = f"Incorrect key provided: {secret}, see\n{secret}"
    assert Redactor()(text) == "Incorrect key provided: [redacted], see\n[redacted]"
    assert Redactor().reply(text) is text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("connect to http://joe:s3cr%2Ft@host:80/v1?a=b failed", "connect to http://[redacted]@host:80/v1?a=b failed"),
        ("https://only-a-token@host", "https://[redacted]@host"),
        ("redis://:p@ss@host/0", "redis://[redacted]@host/0"),
        ("GET /v1/chat?api-version=2&key=abc123&x=1", "GET /v1/chat?api-version=2&key=[redacted]&x=1"),
        ("https://h/v?subscription-key=a-b_c&sig=Zm%3D", "https://h/v?subscription-key=[redacted]&sig=[redacted]"),
    ],
)
def test_addresses_lose_what_is_secret_in_them(text: str, left: str) -> None:
    assert Redactor()(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "from huggingface_hub import hf_hub_download",
        "a sk-learn-pipeline",
        "task_12345678901234",
        "the bearer",
        "basic knowledge, Basic Understanding",
        "mail joe@example.com, see https://example.com/a@b and http://example.com:80/",
        "what is the key? x&y",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert Redactor()(text) == text


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": SECRET},
        {"api_key": pydantic.SecretStr(SECRET)},
        {"api_key": CREDENTIALS.ApiKey(SECRET)},
        {"api_key": lambda: SECRET},
        {"api_key": CREDENTIALS.AwsCredentials("AKIAIOSFODNN7EXAMPLE", SECRET)},
        {"azure_ad_token": SECRET},
        {"azure_ad_token_provider": lambda: SECRET},
        {"aws_access_key_id": SECRET},
        {"aws_secret_access_key": SECRET},
        {"aws_session_token": SECRET},
        {"vertex_credentials": json.dumps({"type": "service_account", "private_key": SECRET})},
        {"vertex_credentials": {"type": "service_account", "private_key": SECRET, "token_uri": "https://h/token"}},
        {"watsonx_zenapikey": SECRET},
        {"azure_password": SECRET},
        {"client_secret": SECRET},
        {"headers": {"Authorization": f"Bearer {SECRET}"}},
        {"headers": {b"authorization": SECRET.encode()}},
        {"extra_headers": {"Authorization": "Basic " + base64.b64encode(f"joe:{SECRET}".encode()).decode()}},
        {"extra_headers": {"x-goog-api-key": SECRET}},
        {"extra_headers": {"X-Gate": SECRET}},
        {"extra_headers": {"Cookie": f"theme=dark; session={SECRET}"}},
        {"extra_query": {"key": SECRET}},
        {"extra_query": {"gate": SECRET}},
        {"extra_body": {"provider": {"api_key": SECRET}}},
        {"auth": ("joe", SECRET)},
        {"api_base": f"http://joe:{urllib.parse.quote(SECRET, safe='')}@host/v1"},
        {"api_base": f"http://{urllib.parse.quote(SECRET, safe='')}@host/v1"},
        {"base_url": f"https://host/v1?api-key={urllib.parse.quote(SECRET, safe='')}"},
        {"azure_endpoint": f"https://host/v1?gate={urllib.parse.quote_plus(SECRET)}"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_way_to_give_a_key_and_every_way_to_write_it(options: Mapping[str, object]) -> None:
    given, of_call, embedder = Redactor([_Lm(**options)]), Redactor(), Redactor()
    of_call.learn(_Lm(), options)
    embedder.learn(dspy.Embedder("openai/text-embedding-3-small", **options))
    for redact in (given, of_call, embedder):
        for form in (
            SECRET,
            urllib.parse.quote(SECRET),
            urllib.parse.quote(SECRET, safe=""),
            json.dumps(f'a "{SECRET}"'),
            html.escape(SECRET),
            *(base64.b64encode((before + SECRET).encode()).decode() for before in ("", "a:", "ab:", "abc:")),
        ):
            for said in (redact(f"key {form}."), redact.reply(f"key {form}.")):
                assert form not in said and "[redacted]" in said, form


def test_keys_that_engines_providers_and_globals_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    class Client:
        def __init__(self) -> None:
            self.default_headers = {"X-Gate": "of-the-client-1"}

    class Engine:
        def __init__(self) -> None:
            self.api_key = "of-the-engine-1"
            self.client = Client()
            self.tokenizer = "a-plain-attribute-1"

        def complete(self, request: object) -> None:
            raise NotImplementedError

    monkeypatch.setenv("OUR_OWN_WAY", "of-the-variable-1")
    access = lm15.AccessPolicy(
        provider="redaction-test",
        base_url="http://h",
        env_keys=("OUR_OWN_WAY",),
        headers=(("X-Gate", "of-the-provider-1"),),
    )
    lm15.register_provider(lm15.ProviderDefinition.chat(access, compat=lm15.OpenAIChatCompat()))
    try:
        declared = dspy.LM("redaction-test/m")
    finally:
        lm15.unregister_provider("redaction-test")
    redact = Redactor()
    monkeypatch.setattr(litellm, "anthropic_key", "of-the-global-1")
    monkeypatch.setattr(litellm, "headers", {"X-Gate": "of-the-headers-1"})
    redact.learn(dspy.LM("test/m", engine=Engine()))
    redact.learn(declared)
    for owner in ("engine", "client", "variable", "provider", "global", "headers"):
        secret = f"of-the-{owner}-1"
        assert redact.reply(f"it is {secret}.") == "it is [redacted]."
    assert redact.reply("a-plain-attribute-1") == "a-plain-attribute-1"


@pytest.mark.parametrize(
    "option",
    [
        *({"api_key": key} for key in ("none", "EMPTY", "ollama", "dummy", "lm-studio", "sk-no-key-required")),
        *({"api_key": key} for key in ("anything", "not-needed", "xxxxxxxx", "token", "local", "1234", "a", "", None)),
        {"headers": {"Content-Type": "application/json", "User-Agent": "mine/1.0", "X-Title": "Anything"}},
        {"extra_query": {"api-version": "2024-06-01"}, "eos_token": "</s>", "prompt_cache_key": "session-1"},
        {"api_base": "http://localhost:8000/v1/chat/completions", "organization": "org-of-ours"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_stands_for_no_key_is_not_replaced(option: Mapping[str, object]) -> None:
    text = "none EMPTY ollama dummy lm-studio sk-no-key-required anything not-needed xxxxxxxx token local 1234 a"
    text += " application/json mine/1.0 Anything 2024-06-01 </s> session-1 localhost:8000/v1 completions org-of-ours"
    assert Redactor([_Lm(**option)]).reply(text) is text


@pytest.mark.parametrize("key", ["k3y-x7", "Ab1", "sEcr", "abc12", "abc123", "pässwö1"])
def test_short_keys_go_as_whole_words_only(key: str) -> None:
    redact = Redactor([_Lm(api_key=key)])
    left = key if len(key) < 4 else "[redacted]"
    assert (
        redact(f"key '{key}', x{key} {key}y")
        == redact.reply(f"key '{key}', x{key} {key}y")
        == (f"key '{left}', x{key} {key}y")
    )


@pytest.mark.parametrize("word", ["completed", "variation", "Repeat", "12345"])
def test_a_word_in_a_keys_place_does_not_change_replies(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", word)
    text = f"[[ ## {word} ## ]]"
    assert Redactor([_Lm(api_key=word)]).reply(text) is text


def test_the_copies_of_a_model_are_looked_at_once() -> None:
    redact = Redactor()
    first = dspy.LM("openai/x", api_key="k-0123456789abc")
    redact.learn(first)
    redact.learn(first.copy())
    redact.learn(first.copy(api_key="k-9876543210abc"))
    assert redact("k-0123456789abc k-9876543210abc") == "[redacted] [redacted]"


def test_a_reply_keeps_its_type_and_what_has_no_secret_is_the_same_object() -> None:
    class Model(pydantic.BaseModel):
        text: str
        n: int = 1

    redact = Redactor([_Lm(api_key=SECRET)])
    clean: list[object] = [
        {"a": ["x", None, 1.5]}, Scored(1.0, "good", (Step("p", {"q": "x"}, {"a": "y"}),)), Model(text="x"),
        dspy.Prediction(answer="x"), ("a", "b"), b"bytes", object(),
    ]  # fmt: skip
    for value in clean:
        assert redact.reply(value) is value
    scored = redact.reply(Scored(1.0, f"it is {SECRET}", (Step("p", {"q": SECRET}, {"a": "y"}),)))
    assert scored == Scored(1.0, "it is [redacted]", (Step("p", {"q": "[redacted]"}, {"a": "y"}),))
    assert redact.reply(Model(text=SECRET)) == Model(text="[redacted]")
    prediction = redact.reply(dspy.Prediction(answer=[SECRET], n=2))
    assert type(prediction) is dspy.Prediction and prediction.toDict() == {"answer": ["[redacted]"], "n": 2}
    response = lm15.Response(
        id="1", model="m", message=lm15.Message.assistant(SECRET), finish_reason="stop",
        usage=lm15.Usage(input_tokens=1, output_tokens=1, total_tokens=2),
    )  # fmt: skip
    replaced = redact.reply(response)
    assert type(replaced) is lm15.Response and replaced.usage == response.usage
    assert replaced.message.text == "[redacted]"
    assert redacted({"input_tokens": [SECRET]}, lambda text: "-") == {"input_tokens": ["-"]}  # names stay
    deep: object = SECRET
    for _ in range(5000):
        deep = [deep]
    assert redact.reply(deep) is deep


def test_learning_from_many_threads() -> None:
    redact = Redactor()

    def work(n: int) -> None:
        for i in range(30):
            redact.learn(_Lm(api_key=f"key-{n}-{i}-x"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {redact.reply(f"key-{n}-{i}-x") for n in range(8) for i in range(30)} == {"[redacted]"}


# A provider that repeats all that it is sent, in its errors and in its replies.


class Echo(Server):
    """A chat server on the loopback interface that says what headers, address and body it was sent.

    Args:
        fault: "replies" repeats it in every reply, "errors" in some errors, the last of which ends the run.

    Attributes:
        sent: All that it was sent.
    """

    def __init__(self, fault: str) -> None:
        super().__init__(lambda sent: toy_reply(sent.system, sent.user))
        self.fault, self.sent = fault, list[str]()

    def answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, object]) -> Answer:
        """Answer a request."""
        extra = {name: value for name, value in body.items() if name not in ("messages", "model")}
        authorization = headers.get("Authorization", "")
        heard = f"You sent {path} {urllib.parse.unquote(path)} {dict(headers)} {json.dumps(extra)}"
        if authorization.startswith("Basic "):
            heard += " " + base64.b64decode(authorization[6:]).decode()
        self.sent.append(heard)
        status = 401 if len(self.sent) > 16 else {2: 503, 4: 400}.get(len(self.sent) % 5)
        if self.fault == "errors" and status is not None:
            return status, {}, error_body(heard)
        text = str(self.reply(sent_of(body)))
        if self.fault == "replies":
            text = text.replace("Repeat the word.", f"Repeat the word. {heard}").replace("\nno\n", f"\nno {heard}\n")
        return completion(text)


@pytest.fixture
def echo(request: pytest.FixtureRequest) -> Iterator[Echo]:
    with Echo(request.param) as heard:
        yield heard


KEY = "Zq7Vb3-kP9wL2xR5"
SHORT = "k3y-x7"


def _openai(port: int, at: str = "127.0.0.1", query: str = "", **options: object) -> dspy.LM:
    base = f"http://{at}:{port}/v1{query}" if "127" in at else f"http://{at}@127.0.0.1:{port}/v1{query}"
    return dspy.LM("openai/m", cache=False, **{"api_base": base, "api_key": "none", **options})


def _declared(port: int, **policy: object) -> dspy.LM:
    access = lm15.AccessPolicy(provider="echo-test", base_url=f"http://127.0.0.1:{port}/v1", **policy)
    lm15.register_provider(lm15.ProviderDefinition.chat(access, compat=lm15.OpenAIChatCompat()))
    try:
        return dspy.LM("echo-test/m", cache=False)
    finally:
        lm15.unregister_provider("echo-test")


def _by_global(port: int) -> dspy.LM:
    import litellm

    litellm.openai_key = KEY  # the fixture takes it back
    return dspy.LM("openai/m", cache=False, engine="litellm", api_base=f"http://127.0.0.1:{port}/v1")


WAYS: dict[str, Callable[[int], dspy.LM]] = {
    "api_key": lambda port: _openai(port, api_key=KEY),
    "api_key, LiteLLM": lambda port: _openai(port, api_key=KEY, engine="litellm"),
    "short api_key": lambda port: _openai(port, api_key=SHORT),
    "callable": lambda port: _openai(port, api_key=lambda: KEY),
    "headers": lambda port: _openai(port, headers={"Authorization": f"Bearer {KEY}"}),
    "Basic": lambda port: _openai(
        port, extra_headers={"Authorization": "Basic " + base64.b64encode(f"joe:{KEY}".encode()).decode()}
    ),
    "x-api-key": lambda port: _openai(port, extra_headers={"x-api-key": KEY}),
    "own header": lambda port: _openai(port, extra_headers={"X-Gate": KEY}),
    "user and password": lambda port: _openai(port, at=f"joe:{KEY}"),
    "user and password, LiteLLM": lambda port: _openai(port, at=f"joe:{KEY}", engine="litellm"),
    "query of the address": lambda port: _openai(port, query=f"?key={KEY}"),
    "extra_query": lambda port: _openai(port, extra_query={"gate": KEY}),
    "extra_body": lambda port: _openai(port, extra_body={"api_key": KEY}),
    "environment": lambda port: dspy.LM("openai/m", cache=False, api_base=f"http://127.0.0.1:{port}/v1"),
    "global": _by_global,
    "declared header": lambda port: _declared(port, headers=(("X-Gate", KEY),), env_keys=("ECHO_TEST_KEY",)),
    "declared variable": lambda port: _declared(port, env_keys=("ECHO_TEST_WAY",)),
}


@pytest.mark.parametrize("echo", ["replies", "errors"], indirect=True)
@pytest.mark.parametrize("way", WAYS)
def test_no_key_is_in_any_byte_that_is_written(
    way: str, echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuesmith.teleprompters.runtime.gate.BACKOFF", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY if way == "environment" else "none")
    monkeypatch.setenv("ECHO_TEST_KEY", "none")
    monkeypatch.setenv("ECHO_TEST_WAY", KEY)
    import litellm

    monkeypatch.setattr(litellm, "openai_key", None)
    lm = WAYS[way](echo.port)
    events: list[object] = []

    def run(sub: str) -> dspy.Module:
        return toy_compile(
            lm, run_dir=tmp_path / sub, n_train=4, n_val=8, steps=1, width=2, callbacks=[events.append], max_in_flight=1
        )

    unreachable = way == "user and password"  # its client takes all of it for the name of a host, and says so
    texts: list[str] = []
    try:
        compiled = run("run")
        compiled.save(tmp_path / "program.json")
        texts.append(repr(compiled.compilation))
        if echo.fault == "replies":
            calls = len(echo.sent)
            assert any("You sent" in repr(t.candidate) for t in compiled.compilation.candidates)
            assert result_of(run("run")) == result_of(compiled) and len(echo.sent) == calls
    except CompileError as error:
        assert echo.fault == "errors" or unreachable
        texts.append(f"{error} {error.spent}")
    assert echo.fault == "replies" or unreachable or any(isinstance(event, Stopped) for event in events)
    texts += [repr(event) for event in events]
    texts += [path.read_bytes().decode("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file()]
    key = SHORT if way.startswith("short") else KEY
    forms = [key, base64.b64encode(b"joe:" + key.encode()).decode()]
    assert unreachable or any(form in sent for form in forms for sent in echo.sent), "it did not reach the server"
    for form in forms:
        assert not [text for text in texts if form in text]


def test_a_metric_that_repeats_a_key_is_replayed_as_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_JUDGE_KEY", KEY)

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
        feedback = f"judged with {os.environ['OUR_JUDGE_KEY']}"
        return dspy.Prediction(score=float(example.answer == prediction.answer), feedback=feedback)

    first = toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path, metric=metric)
    again = toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path, metric=metric)
    assert result_of(first) == result_of(again)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY.encode() not in stored and b"judged with [redacted]" in stored


@pytest.mark.parametrize("echo", ["replies", "errors"], indirect=True)
@pytest.mark.parametrize("way", ["api_key", "Basic", "own header", "short api_key", "user and password, LiteLLM"])
def test_no_key_of_a_judge_is_in_any_byte_that_is_written(way: str, echo: Echo, tmp_path: Path) -> None:
    judge = WAYS[way](echo.port).copy(num_retries=0)

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
        try:
            said = judge("[[ ## question ## ]]\nsay something")[0]
        except dspy.LMAuthError:
            raise
        except Exception as error:
            said = str(error)
        return dspy.Prediction(score=float(example.answer == prediction.answer), feedback=said)

    events: list[object] = []
    lm = toy_lm(ToyEngine())
    texts: list[str] = []
    try:
        compiled = toy_compile(
            lm, run_dir=tmp_path, n_train=4, n_val=8, steps=1, width=2, metric=metric, callbacks=[events.append]
        )
        texts.append(repr(compiled.compilation))
    except CompileError as error:
        texts.append(f"{error}")
    texts += [repr(event) for event in events]
    texts += [path.read_bytes().decode("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file()]
    key = SHORT if way.startswith("short") else KEY
    forms = [key, base64.b64encode(b"joe:" + key.encode()).decode()]
    assert any(form in sent for form in forms for sent in echo.sent)
    assert any("You sent" in text for text in texts)
    for form in forms:
        assert not [text for text in texts if form in text]


def test_a_call_beside_one_that_still_learns_the_key_knows_it_too() -> None:
    learning, on = threading.Event(), threading.Event()

    def key() -> str:
        if not learning.is_set():
            learning.set()
            on.wait(10)
        return KEY

    redactor, lm = Redactor(), dspy.LM("openai/x", api_key=key)
    first = threading.Thread(target=redactor.learn, args=(lm,))
    first.start()
    assert learning.wait(10)
    redactor.learn(lm)
    assert redactor.reply(f"You sent {KEY}") == "You sent [redacted]"
    on.set()
    first.join()


def test_what_gives_a_key_is_asked_once_where_a_call_repeats_the_models_options() -> None:
    asked = []

    def key() -> str:
        asked.append(KEY)
        return KEY

    redactor, lm = Redactor(), dspy.LM("openai/x", api_key=key)
    for _ in range(2):
        redactor.learn(lm, dict(lm.kwargs))
    assert asked == [KEY] and redactor.reply(f"You sent {KEY}") == "You sent [redacted]"


def test_text_that_only_looks_like_a_key_is_replayed_as_it_was_read(tmp_path: Path) -> None:
    def reply(system: str, user: str, drawn: int | None) -> str:
        return toy_reply(system, user, drawn).replace("Repeat the word.", "Redact keys such as sk-abc123def456ghi789.")

    first = toy_compile(toy_lm(ToyEngine(reply=reply)), run_dir=tmp_path)
    engine = ToyEngine(reply=reply)
    again = toy_compile(toy_lm(engine), run_dir=tmp_path)
    assert engine.calls == 0 and result_of(first) == result_of(again)
    assert "sk-abc123def456ghi789" in repr(first.compilation.best)
