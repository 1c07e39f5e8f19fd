"""The prompter and the prompted program: what is rewritten, what is passed on, and what a saved one keeps."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("trl")

from e2e_support import Provider, ToyEngine, exact, number, toy_compile, toy_lm, toy_reply  # noqa: E402
from policy_support import word_policy  # noqa: E402
from processes_support import Forked  # noqa: E402

from cuesmith.modules.decoding import GREEDY, POLICY, Decoding, Rewrite  # noqa: E402
from cuesmith.modules.policy import LocalPolicy  # noqa: E402
from cuesmith.modules.prompter import Prompted, Prompter, given  # noqa: E402
from cuesmith.modules.sampling import draw  # noqa: E402
from cuesmith.teleprompters.runtime._dspy import copy_program, language_models  # noqa: E402
from cuesmith.teleprompters.runtime.candidate import Candidate  # noqa: E402
from cuesmith.testing.fakes import completion, sent_of  # noqa: E402

torch.set_num_threads(1)

SHORT = Decoding(0.0, max_new_tokens=6)
DRAWN = Decoding(max_new_tokens=6)


def reply(system: str, user: str, drawn: int | None = None) -> str:
    """Rewrite by shouting (and naming the draw); answer with the question."""
    text = re.findall(r"\[\[ ## (?:text|question) ## \]\]\n(.*?)(?=\n\n(?:\[\[|Respond))", user, re.DOTALL)[-1]
    if "`rewritten`" in system:
        made = "" if "nothing" in text else text.upper() + ("" if drawn is None else f" {drawn}")
        return f"[[ ## rewritten ## ]]\n{made}\n\n[[ ## completed ## ]]"
    return f"[[ ## answer ## ]]\n{text}\n\n[[ ## completed ## ]]"


def lm(hook: Callable[[int], object] = lambda nth: None, **options: object) -> dspy.LM:
    """A toy LM that rewrites and answers."""
    return toy_lm(ToyEngine(reply=reply, hook=hook), "prompter", **options)


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return word_policy()


def program() -> dspy.Predict:
    """A program with a demonstration and instructions of its own."""
    made = dspy.Predict(dspy.Signature("question -> answer", "Answer briefly. skill=7"))
    made.demos = [dspy.Example(question="say x", answer="x")]
    return made


# The prompter


def test_a_local_prompter_rewrites_by_its_policy(policy: LocalPolicy) -> None:
    prompter = Prompter(policy, decoding=SHORT)
    assert prompter(text="sky").rewritten == policy.rewrite("sky", SHORT) != "sky"
    assert asyncio.run(prompter.acall(text="sky")).rewritten == prompter(text="sky").rewritten
    drawn = {Prompter(policy, decoding=DRAWN, seed=seed)(text="sky").rewritten for seed in range(8)}
    assert len(drawn) > 2
    assert prompter.named_predictors() == []


def test_an_lm_prompter_rewrites_by_a_typed_signature() -> None:
    model = lm()
    prompter = Prompter(model)
    assert prompter(text="say it").rewritten == "SAY IT"
    asynchronous = toy_lm(ToyEngine(reply=reply), "prompter-async", async_engine=Asynchronous())
    assert asyncio.run(Prompter(asynchronous).acall(text="say it")).rewritten == "SAY IT"
    sent = model.history[-1]
    assert sent["kwargs"]["temperature"] == 0.0 and "do not answer it" in sent["messages"][0]["content"]
    with dspy.context(lm=model):
        assert Prompter()(text="say it").rewritten == "SAY IT"
    assert [name for name, _ in prompter.named_predictors()] == ["rewriting"] and prompter.policy is None


def test_a_model_name_is_a_litellm_model() -> None:
    made = Prompter("openai/gpt-4o-mini").rewriting.lm
    assert isinstance(made, dspy.LM) and made.model == "openai/gpt-4o-mini"


def test_an_empty_rewrite_is_the_text_itself(policy: LocalPolicy) -> None:
    assert Prompter(lm())(text="nothing").rewritten == "nothing"
    assert Prompter(lm()).sample(["nothing"], 2, GREEDY) == [[Rewrite("nothing", None)] * 2]
    assert given("x", " \n") == "x" and given("x", " y ") == "y"
    ends = word_policy()
    model: Any = ends.model
    with torch.no_grad():  # all logits are equal: greedy takes token 0, which is made the end token
        model.lm_head.weight.zero_()
    silent = LocalPolicy(model, ends.tokenizer)
    silent._end = 0
    assert silent.sample(["sky"], 1, SHORT)[0][0].text == ""
    assert Prompter(silent, decoding=SHORT)(text="sky").rewritten == "sky"
    assert [r.text for r in Prompter(silent).sample(["sky", "red"], 1, SHORT)[1]] == ["red"]


def test_a_local_prompter_samples_from_its_policy(policy: LocalPolicy) -> None:
    groups = Prompter(policy).sample(["sky", "red"], 5, DRAWN, seed=3)
    raw = policy.sample(["sky", "red"], 5, DRAWN, seed=3)
    assert [[r.logprob for r in group] for group in groups] == [[r.logprob for r in group] for group in raw]
    for text, group, drawn in zip(["sky", "red"], groups, raw, strict=True):
        assert [r.text for r in group] == [given(text, r.text) for r in drawn]


def test_an_lm_prompter_samples_distinct_draws_that_the_cache_knows() -> None:
    engine = ToyEngine(reply=reply)
    model = toy_lm(engine, f"prompter-{uuid.uuid4()}", cache=True)
    prompter = Prompter(model)
    first = prompter.sample(["say it", "it is", "say it"], 4, POLICY, seed=2)
    assert [len(group) for group in first] == [4, 4, 4] and engine.calls == 12
    assert len({r.text for group in (first[0], first[2]) for r in group}) == 8  # the toy tells draws apart
    assert all(r.text.startswith("IT IS ") and r.logprob is None for r in first[1])
    assert prompter.sample(["say it", "it is", "say it"], 4, POLICY, seed=2) == first and engine.calls == 12
    assert prompter.sample(["say it"], 4, POLICY, seed=3)[0] != first[0] and engine.calls == 16
    rollouts = [entry["kwargs"].get("rollout_id") for entry in model.history]
    assert None not in rollouts and {entry["kwargs"]["temperature"] for entry in model.history} == {1.0}
    assert draw.get() is None


def test_greedy_samples_of_an_lm_are_asked_for_once() -> None:
    model = lm()
    assert [len(group) for group in Prompter(model).sample(["say it", "red"], 3, GREEDY)] == [3, 3]
    assert len(model.history) == 2


def test_samples_are_drawn_concurrently_in_the_callers_context() -> None:
    with Provider(intercept=lambda nth, body: answer(body)) as provider:
        with dspy.context(lm=provider.lm("rewriter"), num_threads=6):
            found = Prompter().sample(["a", "b", "c"], 4, Decoding(0.7, 0.9))
        assert [r.text for group in found for r in group] == ["A"] * 4 + ["B"] * 4 + ["C"] * 4
        assert provider.calls == 12 and provider.most > 2
        bodies = [body for _, _, body, _ in provider.seen]
        assert {(body["temperature"], body["top_p"]) for body in bodies} == {(0.7, 0.9)}


def answer(body: Any) -> Any:
    """What a provider of the toy rewriter answers, a tenth of a second later."""
    time.sleep(0.1)
    sent = sent_of(body)
    return completion(reply(sent.system, sent.user))


def test_the_first_error_of_a_sample_is_raised_and_ends_it() -> None:
    def fail(nth: int) -> None:
        raise dspy.lm15.AuthError("no such key")

    engine = ToyEngine(reply=reply, hook=fail)
    with dspy.context(num_threads=2), pytest.raises(Exception, match="no such key"):
        Prompter(toy_lm(engine, "refusing")).sample([f"t{i}" for i in range(40)], 2)
    assert engine.calls < 40


def test_fingerprints_tell_prompters_apart_and_name_no_key(policy: LocalPolicy) -> None:
    varied = Prompter(lm())
    varied.rewriting.signature = varied.rewriting.signature.with_instructions("Shout.")
    shown = Prompter(lm())
    shown.rewriting.demos = [{"text": "a", "rewritten": "b"}]
    several = [
        Prompter(policy), Prompter(policy, decoding=SHORT), Prompter(policy, seed=1), Prompter(word_policy(seed=1)),
        Prompter(), Prompter(lm()), Prompter(lm(temperature=0.5)), varied, shown,
    ]  # fmt: skip
    assert len({prompter.fingerprint for prompter in several}) == len(several)
    assert Prompter(policy).fingerprint == Prompter(word_policy()).fingerprint
    one, other = (Prompter(dspy.LM("openai/x", api_key=key)) for key in ("a", "b"))
    assert one.fingerprint == other.fingerprint


# The prompted program


def test_only_the_named_text_fields_are_rewritten() -> None:
    class Program(dspy.Module):  # type: ignore[misc]
        def forward(self, question: str, context: object, k: int = 3) -> dspy.Prediction:
            return dspy.Prediction(seen=(question, context, k))

    prompter = Prompter(lm())
    assert Prompted(prompter, Program(), ["question"])(question="a b", context="c").seen == ("A B", "c", 3)
    assert Prompted(prompter, Program(), ["question", "context"])(question="a", context="c", k=2).seen == ("A", "C", 2)
    assert Prompted(prompter, Program(), ["context"])(question="a", context=["c"]).seen == ("a", ["c"], 3)


def test_the_prediction_is_the_programs_own() -> None:
    kept = dspy.Prediction(answer="x")

    class Program(dspy.Module):  # type: ignore[misc]
        def forward(self, **inputs: object) -> dspy.Prediction:
            return kept

    assert Prompted(Prompter(lm()), Program(), ["anything"])(anything="a") is kept


class Holder(dspy.Module):  # type: ignore[misc]
    """A program with one predictor inside."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.predict(question=question)


class Later(dspy.Module):  # type: ignore[misc]
    """A program for event loops only."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = program()

    async def aforward(self, question: str) -> dspy.Prediction:
        await asyncio.sleep(0)
        return await self.predict.acall(question=question)


class Now(dspy.Module):  # type: ignore[misc]
    """A program for threads only."""

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=question)


def test_programs_of_either_kind_run_either_way() -> None:
    with dspy.context(lm=toy_lm(ToyEngine(reply=reply), "either", async_engine=Asynchronous())):
        for inner in (Later(), Now(), program()):
            prompted = Prompted(Prompter(), inner, ["question"])
            assert prompted(question="say it").answer == "SAY IT"
            assert asyncio.run(prompted.acall(question="say it")).answer == "SAY IT"

        async def within_a_loop() -> str:
            return str(Prompted(Prompter(), Later(), ["question"])(question="say it").answer)

        assert asyncio.run(within_a_loop()) == "SAY IT"


class Asynchronous(ToyEngine):
    """The toy engine for event loops."""

    def __init__(self) -> None:
        super().__init__(reply=reply)

    async def complete(self, request: object) -> Any:
        return super().complete(request)


def test_unknown_fields_are_refused_where_they_can_be_known() -> None:
    class Open(dspy.Module):  # type: ignore[misc]
        def forward(self, **inputs: object) -> dspy.Prediction:
            return dspy.Prediction()

    prompter = Prompter(lm())
    known = (program(), dspy.ChainOfThought("question -> answer"), Now(), Later(),
             dspy.ReAct("question -> answer", tools=[]), Prompted(prompter, program(), ["question"]))  # fmt: skip
    for inner in known:
        Prompted(prompter, inner, ["question"])
        with pytest.raises(ValueError, match="no input field 'query'; it has"):
            Prompted(prompter, inner, ["question", "query"])
    Prompted(prompter, Open(), ["query"])
    wrong: Any
    for wrong in ("question", []):
        with pytest.raises(ValueError, match="fields must be a list"):
            Prompted(prompter, program(), wrong)


def test_predictors_keep_their_names_and_a_compiled_program_its_prompts() -> None:
    student = Holder()
    compiled = toy_compile(toy_lm(ToyEngine(), "compiled"), metric=exact, student=student)
    assert compiled._compiled and "skill=" in compiled.predict.signature.instructions
    prompted = Prompted(Prompter(lm()), compiled, ["question"])
    assert [name for name, _ in prompted.named_predictors()] == ["prompter.rewriting", "program.predict"]
    assert dict(prompted.named_predictors())["program.predict"] is compiled.predict
    assert Candidate.of(prompted).prompts["program.predict"] == Candidate.of(compiled).prompts["predict"]
    assert [name for name, _ in Prompted(Prompter(lm()), program(), ["question"]).named_predictors()] == [
        "prompter.rewriting",
        "program",
    ]


def careful(system: str, user: str, drawn: int | None = None) -> str:
    """Rewrite a question as itself, more often with more skill, else spoil it; answer well; vary as the toy does."""
    if "`rewritten`" not in system:
        return toy_reply(system if "`variation`" in system else "skill=9", user)
    skill = int((re.findall(r"skill=(\d+)", system) or ["2"])[-1])
    text = re.findall(r"\[\[ ## text ## \]\]\n(.*?)\n\n", user)[-1]
    made = text if number(text, skill) % 10 < skill else "say no"
    return f"[[ ## rewritten ## ]]\n{made}\n\n[[ ## completed ## ]]"


def test_another_compiler_can_improve_an_lm_prompter() -> None:
    compiled = toy_compile(
        toy_lm(ToyEngine(reply=careful), "careful"), student=Prompted(Prompter(), program(), ["question"])
    )
    assert isinstance(compiled, Prompted)
    report = compiled.compilation
    assert report.best.select.mean > report.baseline.select.mean + 0.3
    assert "skill=" in compiled.prompter.rewriting.signature.instructions
    assert compiled.program.signature.instructions == "Answer briefly. skill=7"


def test_copies_share_the_policy_and_own_the_prompts(policy: LocalPolicy) -> None:
    prompted = Prompted(Prompter(policy, decoding=SHORT), program(), ["question"])
    for copied in (copy.deepcopy(prompted), prompted.deepcopy(), prompted.reset_copy(), copy_program(prompted)):
        assert copied.prompter.policy is policy and copied.program is not prompted.program
        assert copied.prompter is not prompted.prompter and copied.fields == ("question",)
        copied.program.demos = []
    assert len(prompted.program.demos) == 1


def test_its_lms_are_found() -> None:
    model, judge = lm(), lm()
    prompted = Prompted(Prompter(model), program(), ["question"])
    prompted.program.lm = judge
    assert {id(each) for each in language_models(prompted)} == {id(model), id(judge)}


# Saving


def load_elsewhere(path: Path, make: str, *, option: str = "") -> dict[str, Any]:
    """Load a saved program in a fresh process; returns what it then is."""
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import dspy
from cuesmith.modules.prompter import Prompted, Prompter
from cuesmith.modules.decoding import Decoding
program = {make}
{"program = dspy.load(sys.argv[1], allow_pickle=True)" if option == "pickle" else "program.load(sys.argv[1])"}
predictor = dict(program.named_predictors())["program.predict"]
rewriting = dict(program.named_predictors()).get("prompter.rewriting")
print(json.dumps(dict(
    local=program.prompter.policy is not None,
    rewritten=program.prompter(text="sky").rewritten if program.prompter.policy is not None else None,
    fingerprint=program.prompter.fingerprint if program.prompter.policy is not None else None,
    decoding=repr(program.prompter.decoding), seed=program.prompter.seed, fields=program.fields,
    instructions=predictor.signature.instructions, demos=[dict(d) for d in predictor.demos],
    model=rewriting.lm.model if rewriting else None,
    rewriting=rewriting.signature.instructions if rewriting else None,
    rewriting_demos=[dict(d) for d in rewriting.demos] if rewriting else None,
)))
"""
    done = Forked(code, path, env={**os.environ, "OMP_NUM_THREADS": "1"}).done()
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compiled_program() -> dspy.Module:
    """A program as a compiler leaves it."""
    made = dspy.ChainOfThought(dspy.Signature("question -> answer", "Answer briefly. skill=7"))
    made.predict.demos = [dspy.Example(question="say x", reasoning="plain", answer="x")]
    made._compiled = True
    return made


BLANK = "Prompted(Prompter(), dspy.ChainOfThought('question -> answer'), ['question'])"


def test_a_local_prompter_is_saved_with_its_program(policy: LocalPolicy, tmp_path: Path) -> None:
    prompted = Prompted(Prompter(policy, decoding=SHORT, seed=4), compiled_program(), ["question"])
    path = tmp_path / "best.json"
    prompted.save(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["best.json", "best.prompter"]
    found = load_elsewhere(path, BLANK)
    assert found == {
        "local": True, "rewritten": prompted.prompter(text="sky").rewritten, "decoding": repr(SHORT), "seed": 4,
        "fingerprint": prompted.prompter.fingerprint, "fields": ["question"], "model": None, "rewriting": None,
        "instructions": "Answer briefly. skill=7", "rewriting_demos": None,
        "demos": [{"question": "say x", "reasoning": "plain", "answer": "x"}],
    }  # fmt: skip
    prompted.save(path)  # again, over what is there
    assert sorted(each.name for each in tmp_path.iterdir()) == ["best.json", "best.prompter"]


def test_an_lm_prompter_is_saved_with_its_program(policy: LocalPolicy, tmp_path: Path) -> None:
    prompter = Prompter("openai/gpt-4o-mini", decoding=Decoding(0.5))
    prompter.rewriting.signature = prompter.rewriting.signature.with_instructions("Shout.")
    prompter.rewriting.demos = [dspy.Example(text="a", rewritten="A")]
    Prompted(prompter, compiled_program(), ["question"]).save(tmp_path / "best.json")
    assert [each.name for each in tmp_path.iterdir()] == ["best.json"]
    found = load_elsewhere(tmp_path / "best.json", BLANK)
    assert (found["local"], found["model"], found["rewriting"]) == (False, "openai/gpt-4o-mini", "Shout.")
    assert found["rewriting_demos"] == [{"text": "a", "rewritten": "A"}] and found["demos"][0]["answer"] == "x"
    assert found["decoding"] == repr(Decoding(0.5)) and found["instructions"] == "Answer briefly. skill=7"
    local = Prompted(Prompter(policy), dspy.ChainOfThought("question -> answer"), ["question"])
    local.load(tmp_path / "best.json")
    assert local.prompter.policy is None and local.prompter.rewriting.signature.instructions == "Shout."


def test_dspys_whole_program_saving_holds_the_weights(policy: LocalPolicy, tmp_path: Path) -> None:
    prompted = Prompted(Prompter(policy, decoding=SHORT), compiled_program(), ["question"])
    prompted.save(tmp_path / "whole", save_program=True)
    found = load_elsewhere(tmp_path / "whole", "None", option="pickle")
    assert found["rewritten"] == prompted.prompter(text="sky").rewritten and found["demos"][0]["answer"] == "x"


def test_weights_of_another_run_are_refused(policy: LocalPolicy, tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    Prompted(Prompter(policy), program(), ["question"]).save(one)
    Prompted(Prompter(word_policy(seed=1)), program(), ["question"]).save(other)
    other.with_suffix(".prompter").rename(tmp_path / "kept")
    target = Prompted(Prompter(lm()), program(), ["question"])
    with pytest.raises(FileNotFoundError):
        target.load(other)
    one.with_suffix(".prompter").rename(other.with_suffix(".prompter"))
    with pytest.raises(ValueError, match="holds the prompter weights"):
        target.load(other)
    assert target.prompter.policy is None and target.prompter.rewriting.lm is not None
    # A process that was killed before the last renaming has left the right ones here.
    (tmp_path / "kept").rename(tmp_path / "other.prompter.new")
    target.load(other)
    assert target.prompter.policy is not None
    assert target.prompter.policy.fingerprint == word_policy(seed=1).fingerprint


def test_loading_is_all_or_nothing(policy: LocalPolicy, tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    Prompted(Prompter(policy), program(), ["question"]).save(path)
    model = lm()
    target = Prompted(Prompter(model), dspy.ChainOfThought("question, context -> answer"), ["context"])
    with pytest.raises(KeyError):
        target.load(path)
    assert target.fields == ("context",) and target.prompter.rewriting.lm is model


def test_a_state_without_its_weights_is_refused(policy: LocalPolicy) -> None:
    state = Prompted(Prompter(policy), program(), ["question"]).dump_state()
    same = Prompted(Prompter(word_policy()), dspy.Predict("question -> answer"), ["question"])
    same.load_state(state)
    assert same.program.signature.instructions == "Answer briefly. skill=7"
    with pytest.raises(ValueError, match="belongs to the prompter weights"):
        Prompted(Prompter(lm()), program(), ["question"]).load_state(state)
    with pytest.raises(ValueError, match=r"use Prompted\.save"):
        Prompter(policy).dump_state()
