"""The bench of studies: one budget over all runs, what a stop leaves, resume; and the command's input and output."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import dspy
import numpy as np
import pytest
from e2e_support import KEY, Answer, Provider, ToyEngine, Vary, error_body, exact, toy_lm, words
from numpy.typing import NDArray

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs import diagnose, study
from cuesmith.programs.arguments import parsed
from cuesmith.programs.diagnosis.embedders import TfIdf
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies import study as ready
from cuesmith.programs.studies.bench import Bench, Study
from cuesmith.programs.tasks import Sizes, Task, generate
from cuesmith.teleprompters.runtime.candidate import Origin
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CompileError

VARIED = Origin("vary", ())
TASK = Task("toy", "", "question -> answer", tuple(words(4, "t")), tuple(words(8, "v")), tuple(words(6, "h")), exact)


def plain(task: Task) -> dspy.Module:
    return dspy.Predict(task.signature)


def bench(lm: dspy.LM, optimizer: dspy.LM | None = None, **options: object) -> Bench:
    return Bench(lm, optimizer or lm, program=plain, **options)  # type: ignore[arg-type]


class Vary3:
    """An experiment: three variations of the student's prompt, each scored on held-out examples as it comes."""

    def __init__(self) -> None:
        self.kept: list[Scores] = []

    async def __call__(self, run: Run) -> None:
        for k in range(3):
            replies = await run.ask(Vary, {"prompt": run.baseline.prompts["self"].instructions}, salt=str(k))
            texts = [f"{reply.variation} v{k}" for reply in replies]
            made = [run.baseline.replace("self", instructions=text, origin=VARIED) for text in texts]
            self.kept += await run.score(made, TASK.test)


def test_an_experiment_has_the_two_effects_and_is_counted() -> None:
    task, optimizer = ToyEngine(), ToyEngine()
    on, found = bench(toy_lm(task), toy_lm(optimizer, "optimizer")), Vary3()
    on.conduct("vary", TASK, found)
    assert [len(scores.outcomes) for scores in found.kept] == [6, 6, 6]
    assert on.spent.by_role["target"].calls == task.calls == 8 + 6 * 3
    assert on.spent.by_role["optimizer"].calls == optimizer.calls == 3
    assert on.stopped_by is None and on.notes == []


@pytest.mark.parametrize("in_flight", [1, 16])
def test_a_cap_holds_over_all_runs_and_leaves_what_was_found(in_flight: int) -> None:
    engine, found = ToyEngine(), [Vary3(), Vary3(), Vary3()]
    on = bench(toy_lm(engine), budget=Budget(calls=44), max_in_flight=in_flight)
    for k, one in enumerate(found):
        on.conduct(f"run {k}", TASK, one)
    assert engine.calls == on.spent.total.calls == 44 and on.stopped_by == "calls"
    assert len(found[0].kept) == 3 and 0 < len(found[1].kept) < 3 and found[2].kept == []
    assert on.compile("later", TASK, "iterative-ape") is None and engine.calls == 44


def test_a_share_of_the_budget_is_kept_for_the_rest() -> None:
    engine, found = ToyEngine(), [Vary3(), Vary3()]
    on = bench(toy_lm(engine), budget=Budget(calls=40))
    for k, one in enumerate(found):
        on.conduct(f"run {k}", TASK, one, share=1 / (2 - k))
    assert [len(one.kept) for one in found] == [1, 1] and engine.calls == 40


def test_a_budget_too_small_for_the_student_ends_the_study_without_an_error() -> None:
    engine, found = ToyEngine(), Vary3()
    on = bench(toy_lm(engine), budget=Budget(calls=3))
    on.conduct("vary", TASK, found)
    assert engine.calls == 3 and found.kept == [] and on.stopped_by == "calls"
    on = bench(toy_lm(engine), budget=Budget(calls=3))
    found_none = on.compile("ape", TASK, "iterative-ape")
    assert found_none is not None and found_none.compilation.best.candidate == found_none.compilation.baseline.candidate
    assert on.compile("again", TASK, "iterative-ape") is None
    assert engine.calls == 6 and on.stopped_by == "calls" and on.spent.total.calls == 3


def test_the_same_result_at_any_concurrency_and_without_new_calls_after_a_resume(tmp_path: Path) -> None:
    results = []
    for in_flight, folder in ((1, tmp_path / "a"), (32, tmp_path / "b"), (32, tmp_path / "b")):
        engine, found = ToyEngine(), Vary3()
        on = bench(toy_lm(engine), max_in_flight=in_flight, run_dir=folder)
        on.conduct("vary", TASK, found)
        results.append((found.kept, engine.calls))
    assert results[0][0] == results[1][0] == results[2][0]
    assert results[0][1] == results[1][1] > 20 and results[2][1] == 0


def test_a_capped_study_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    calls, kept = 0, []
    for cap in (15, 22, 1000):
        engine, found = ToyEngine(), Vary3()
        on = bench(toy_lm(engine), budget=Budget(calls=cap), run_dir=tmp_path, max_in_flight=4)
        on.conduct("vary", TASK, found)
        calls += engine.calls
        kept.append(len(found.kept))
    assert kept == [1, 2, 3] and calls == on.spent.total.calls


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_another_draw_is_asked_anew_whatever_the_cache_holds(
    temperature: float, recwarn: pytest.WarningsRecorder
) -> None:
    calls: list[int] = []
    own = str(uuid.uuid4())  # what no cache holds yet
    task = replace(TASK, validation=tuple(words(8, f"{own}-v")), test=tuple(words(6, f"{own}-h")))
    with Provider() as provider:

        async def again(run: Run) -> None:
            for draw in (0, 0, 1, 1, 2):
                await run.score([run.baseline], task.test, draw=draw)
                calls.append(provider.calls)

        bench(provider.lm(cache=True, temperature=temperature)).conduct("again", task, again)
    first = calls[0]
    assert calls == [first, first, first + 6, first + 6, first + 12] and first == 8 + 6
    assert not [warning for warning in recwarn if "rollout_id" in str(warning.message)]


def test_the_folder_of_a_run_can_be_diagnosed(tmp_path: Path) -> None:
    async def select(run: Run) -> None:
        found = await run.ask(Vary, {"prompt": "say it"})
        await run.score([run.baseline.replace("self", instructions=found[0].variation, origin=VARIED)], run.select)

    bench(toy_lm(ToyEngine()), run_dir=tmp_path).conduct("vary", TASK, select)
    record = diagnose.diagnose(tmp_path / "vary").record
    assert record.compiler == "study vary" and len(record.trials) == 2


def revoked(after: int) -> Callable[[int, Mapping[str, object]], Answer | None]:
    return lambda nth, body: (
        (401, {}, error_body(f"Incorrect API key: {KEY}", "invalid_api_key")) if nth > after else None
    )


def test_a_refused_key_is_an_error_at_once_and_a_stop_later_on() -> None:
    with Provider(revoked(0)) as provider, pytest.raises(CompileError, match="that refuses the key") as caught:
        bench(provider.lm()).conduct("vary", TASK, Vary3())
    assert KEY not in str(caught.value)
    with Provider(revoked(16)) as provider:
        found, on = Vary3(), bench(provider.lm())
        on.conduct("vary", TASK, found)
    assert len(found.kept) == 1 and on.stopped_by == "auth"


def test_dollars_that_cannot_be_held_are_refused_before_a_call() -> None:
    engine = ToyEngine()
    with pytest.raises(ValueError, match=r"Budget\(usd=1\) cannot be held"):
        bench(toy_lm(engine), budget=Budget(usd=1))
    assert engine.calls == 0


# The ready studies, and the command.


@pytest.mark.parametrize("name", STUDIES)
def test_every_ready_study_is_whole(name: str) -> None:
    found = ready(name)
    assert isinstance(found, Study) and found.name == name and found.question == STUDIES[name]
    assert 1 <= found.fewest <= found.n and (len(found.families) == 1 or found.several)


def test_an_unknown_study_is_refused() -> None:
    with pytest.raises(ValueError, match="no study is called 'magic'"):
        ready("magic")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["magic"], "no study is called 'magic'"),
        (["errors", "--task", "sum", "--task", "max"], "study errors is about one task"),
        (["errors", "--task", "poetry"], "no task family 'poetry'"),
        (["errors", "--data", "none.json"], "none.json"),
        (["errors", "--data", "x.json", "--task", "sum"], "not allowed with"),
        (["errors", "--n", "1"], "--n 1: study errors needs at least"),
        (["errors", "--lm", "gpt-4.1"], "'gpt-4.1' is not PROVIDER/MODEL"),
        (["errors", "--lm", "openai/x", "--prior-bias", "0.5"], "--prior-bias 0.5 is of the simulated optimizer"),
        (["errors", "--prior-bias", "2"], "'2' is not a share"),
        (["errors", "--budget-usd", "-1"], "'-1' is not a positive amount"),
        (["errors", "--html", "/no/such/folder/page.html"], "--html /no/such/folder/page.html: not a file in a folder"),
        (["errors", "--html", "/tmp"], "--html /tmp: not a file in a folder"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    from cuesmith import cli

    try:
        status = cli.main(["study", *arguments])
    except SystemExit as leaving:
        status = int(str(leaving.code))
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert problem in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A study on the embedded model under a tight cap, once as JSON; returns its output, its page and its folder."""
    import contextlib
    import io

    from cuesmith import cli

    folder = tmp_path_factory.mktemp("small")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = cli.main(
            [
                "study",
                "errors",
                "--n",
                "20",
                "--budget-calls",
                "700",
                "--run-dir",
                str(folder / "run"),
                "--html",
                str(folder / "page.html"),
                "--json",
            ]
        )
    assert status == 0
    return out.getvalue(), folder / "page.html", folder / "run"


def test_a_study_prints_one_json_object_and_writes_a_page(small: tuple[str, Path, Path]) -> None:
    out, page, _ = small
    told = json.loads(out)
    assert out.count("\n") == 1 and told["run"]["study"] == "errors" and told["run"]["n"] == 20
    assert 0 < sum(role["calls"] for role in told["run"]["spent"].values()) <= 700 and told["results"]["result"]
    assert told["run"]["limits"] and told["sections"][-1]["title"] == "What this does not show"
    for section in told["sections"]:
        assert section["summary"]
        for figure in section["figures"]:
            assert figure["meaning"] and figure["advice"] and figure["n"] >= 0
    text = page.read_text()
    assert "<script" not in text and "Study errors" in text and "src=" not in text


def test_a_study_is_shown_as_tables_and_repeats_no_call(
    small: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from cuesmith import cli

    status = cli.main(["study", "errors", "--n", "20", "--budget-calls", "700", "--run-dir", str(small[2])])
    out, err = capsys.readouterr()
    assert status == 0 and "What this does not show" in out and "tiny model" in " ".join(out.split())
    assert err.startswith("cuesmith study errors: at most ") and "cut off at 700 calls" in err


def test_settings_are_those_of_the_arguments() -> None:
    words = ["complexity", "--task", "sum", "--task", "max", "--lm", "openai/a", "--n", "7"]
    settings = parsed(study.StudyOptions, words).settings
    assert settings.families == ("sum", "max") and settings.optimizer == "openai/a" and settings.n == 7


@pytest.mark.slow
def test_an_embedder_stands_in_for_words_in_every_study_that_compares_texts() -> None:
    class Counting:
        def __init__(self) -> None:
            self.matrices = 0

        def matrix(self, texts: Sequence[str]) -> NDArray[np.float64]:
            self.matrices += 1
            return TfIdf().matrix(texts)

    for name, least in (("errors", 5), ("reflection", 1), ("similarity", 1)):
        one, similarity = ready(name), Counting()
        task = generate("objects", sizes=Sizes(train=40, validation=20, test=40), seed=0)
        on = Bench(EmbeddedLM(), SimulatedOptimizer(), similarity=similarity)
        found = one.conduct(on, [task], one.fewest)
        assert similarity.matrices >= least and found.result.by_words is False  # type: ignore[attr-defined]
        assert "by an embedder" in " ".join(found.limits) and "by the words" not in " ".join(found.limits)


def test_an_unknown_embedder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from cuesmith import cli

    assert cli.main(["study", "errors", "--embedder", "st:/no/such/folder"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "st:/no/such/folder" in err


def test_an_embedder_that_cannot_be_reached_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cuesmith import cli

    with Provider(lambda nth, body: (404, {}, error_body("no embeddings here"))) as provider:
        monkeypatch.setenv("OPENAI_API_BASE", f"http://127.0.0.1:{provider.port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        given = ["study", "errors", "--lm", "openai/toy", "--embedder", "openai/none"]
        assert cli.main(given) == 2
        assert all("messages" not in body for _, _, body, _ in provider.seen), "no call of the LM was made"
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "--embedder" in err and KEY not in err


def test_a_cap_in_dollars_on_a_model_without_a_price_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cuesmith import cli

    with Provider() as provider:
        monkeypatch.setenv("OPENAI_API_BASE", f"http://127.0.0.1:{provider.port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert cli.main(["study", "errors", "--lm", "openai/unpriced", "--budget-usd", "1", "--json"]) == 2
        assert provider.calls <= 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "price" in err and KEY not in err
