"""Other people's tools around a compile: files of events, MLflow, Weights & Biases, OpenTelemetry, notebooks, FastAPI.

Each runs for real, and is skipped where it is not installed (`pip install 'cuesmith[clients]'`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from e2e_support import KEY, ToyEngine, ToySearch, exact, toy_lm, toy_reply, words

from cuesmith import Compiled, JsonlEvents, MLflowEvents, WandbEvents, provenance
from cuesmith.teleprompters.runtime.compilation import Compilation

TESTS = str(Path(__file__).parent)


def run(callbacks: Any, engine: ToyEngine | None = None) -> Compiled:
    with dspy.context(lm=toy_lm(engine or ToyEngine())):
        search = ToySearch(exact, steps=1, callbacks=callbacks)
        return search.compile(dspy.Predict("question -> answer"), trainset=words(12), valset=words(40, "v"))


# --- a file --------------------------------------------------------------------------------------------------


def test_a_file_has_every_event_and_the_result(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    made = run([JsonlEvents(file)])
    run(JsonlEvents(str(file)))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    kinds = [line["event"] for line in lines]
    assert kinds[0] == "RunStarted" and kinds[-1] == "RunFinished" and kinds.count("RunFinished") == 2
    first = lines[: kinds.index("RunFinished") + 1]
    assert lines[len(first)]["event"] == "RunStarted", "another run's events come after"
    done = Counter(line["role"] for line in first if line["event"] == "EffectDone")
    assert done["target"] + done["optimizer"] == made.compilation.spent.total.calls
    steps = [line["record"]["validation"]["mean"] for line in first if line["event"] == "StepDone"]
    assert steps == [step.validation.mean for step in made.compilation.steps]
    last, found = first[-1], made.compilation
    assert found.gain is not None and last["gain"]["difference"] == found.gain.difference
    assert last["prompt"]["prompts"]["self"]["instructions"] == made.signature.instructions
    facts = provenance(made)
    assert facts is not None and last["provenance"] == facts.to_json()
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def test_a_file_has_no_key_and_no_number_that_is_none(tmp_path: Path) -> None:
    def tells(system: str, user: str, number: int | None) -> str:
        return toy_reply(system, user, number).replace("Repeat the word.", f"Repeat the word {KEY}.")

    def constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    file = tmp_path / "events.jsonl"
    run(JsonlEvents(file), ToyEngine(reply=tells))
    text = file.read_text()
    assert KEY not in text and "Repeat the word" in text
    for line in text.splitlines():
        json.loads(line, parse_constant=constants)


def test_a_file_that_cannot_be_written_is_said_before_anything_is_called(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        JsonlEvents(tmp_path / "missing" / "events.jsonl")


# --- trackers ------------------------------------------------------------------------------------------------


def metrics_of(found: Compilation) -> dict[str, float]:
    assert found.gain is not None and found.best.fresh is not None and found.best.select is not None
    return {"gain": found.gain.difference, "gain_low": found.gain.low, "gain_n": found.gain.n,
            "best_fresh": found.best.fresh.mean, "calls": found.spent.total.calls,
            "selection": found.best.select.mean}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["given", "autolog", "alone", "in a loop"])
def test_mlflow_has_gain_steps_spending_and_prompt(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    experiment = mlflow.set_experiment("compiles").experiment_id
    if how == "autolog":
        mlflow.dspy.autolog(log_compiles=True, log_traces=False)
        try:
            made = run(MLflowEvents())
        finally:
            mlflow.dspy.autolog(disable=True)
    elif how == "alone":
        made = run(MLflowEvents())
    else:
        with mlflow.start_run():
            sink = MLflowEvents()

            async def inside() -> Compiled:
                return run(sink)

            made = asyncio.run(inside()) if how == "in a loop" else run(sink)
    client = mlflow.MlflowClient()
    (logged,) = client.search_runs([experiment])
    assert logged.info.status == "FINISHED"
    numbers = {name.removeprefix("cuesmith/"): value for name, value in logged.data.metrics.items()}
    expected = metrics_of(made.compilation)
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    steps = client.get_metric_history(logged.info.run_id, "cuesmith/selection")
    assert [(each.step, each.value) for each in steps] == [
        (step.step, step.validation.mean) for step in made.compilation.steps
    ]
    assert logged.data.params["cuesmith/compiler"] == "ToySearch"
    assert ("lm_params" in logged.data.params) == (how == "autolog"), "autolog's own parameters are in the same run"
    folder = Path(client.download_artifacts(logged.info.run_id, "cuesmith", str(tmp_path)))
    facts = provenance(made)
    assert facts is not None and json.loads((folder / "provenance.json").read_text()) == facts.to_json()
    assert json.loads((folder / "prompt.json").read_text()) == made.compilation.best.candidate.to_json()


@pytest.mark.slow
def test_wandb_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    if wandb.run is None:
        with pytest.raises(ValueError, match=r"call wandb\.init\(\.\.\.\) before it"):
            WandbEvents()
    with wandb.init(mode="offline", dir=str(tmp_path), project="compiles") as logged:
        made = run(WandbEvents())
        expected = metrics_of(made.compilation)
        found = {name: logged.summary[f"cuesmith/{name}"] for name in expected}
        assert logged.config["cuesmith/compiler"] == "ToySearch"
        prompt = json.loads(logged.summary["cuesmith/prompt"])
    assert found == pytest.approx(expected)
    assert prompt == made.compilation.best.candidate.to_json()
    assert len(list(tmp_path.rglob("*.wandb"))) == 1, "what wandb sync would send"


@pytest.mark.parametrize(("kind", "package"), [(MLflowEvents, "mlflow"), (WandbEvents, "wandb")])
def test_what_is_not_installed_is_named(kind: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is not installed: pip install 'cuesmith\[{package}\]'"):
        kind()


@pytest.mark.slow
def test_every_call_of_a_compile_is_a_span() -> None:
    instrumentation = pytest.importorskip("openinference.instrumentation.dspy")
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    exporting = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter, provider, engine = memory.InMemorySpanExporter(), trace.TracerProvider(), ToyEngine()
    provider.add_span_processor(exporting.SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.DSPyInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        made = run((), engine)
    finally:
        instrumentor.uninstrument()
    spans = exporter.get_finished_spans()
    calls = [span for span in spans if span.name == "LM.__call__"]
    assert len(calls) == engine.calls == made.compilation.spent.total.calls
    assert all(span.parent is not None and span.attributes["llm.model_name"] == "toy" for span in calls)
    assert {span.status.status_code.name for span in spans} == {"OK"}


# --- event loops ---------------------------------------------------------------------------------------------

CELLS = (
    f"import sys; sys.path.insert(0, {TESTS!r})\n"
    "import asyncio, dspy\n"
    "from e2e_support import ToyEngine, ToySearch, exact, toy_lm, words\n"
    "asyncio.get_running_loop()\n"
    "dspy.configure(lm=toy_lm(ToyEngine()))\n"
    "given = {'trainset': words(12), 'valset': words(40, 'v')}\n"
    "student = dspy.Predict('question -> answer')",
    "made = ToySearch(exact, steps=1).compile(student, **given)",
    "awaited = await ToySearch(exact, steps=1).acompile(student, **given)",
    "assert made.compilation.gain == awaited.compilation.gain\nprint('same', made.compilation.gain.n)",
)


@pytest.mark.slow
def test_a_notebook_compiles_in_either_way() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert notebook.cells[-1].outputs[-1]["text"] == "same 20\n"


@pytest.mark.slow
def test_a_server_answers_while_it_compiles() -> None:
    fastapi, uvicorn = pytest.importorskip("fastapi"), pytest.importorskip("uvicorn")
    app, engine = fastapi.FastAPI(), ToyEngine(latency=0.05)

    async def compiles() -> dict[str, object]:
        with dspy.context(lm=toy_lm(engine)):
            made = await ToySearch(exact, steps=1, max_in_flight=4).acompile(
                dspy.Predict("question -> answer"), trainset=words(12), valset=words(40, "v")
            )
        return {"prompt": made.signature.instructions, "calls": made.compilation.spent.total.calls}

    async def alive() -> dict[str, int]:
        return {"calls": engine.calls}

    app.get("/compile")(compiles)
    app.get("/alive")(alive)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    serving = threading.Thread(target=server.run, args=([listener],), daemon=True)
    serving.start()
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def get(path: str) -> dict[str, Any]:
        with urllib.request.urlopen(base + path, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    with ThreadPoolExecutor(1) as threads:
        compiling = threads.submit(get, "/compile")
        waits, seen = list[float](), set[int]()
        while not compiling.done():
            began = time.monotonic()
            seen.add(get("/alive")["calls"])
            waits.append(time.monotonic() - began)
    server.should_exit = True
    serving.join(30)
    result = compiling.result()
    assert result["calls"] == engine.calls > 50 and "skill=" in result["prompt"]
    assert len(seen) > 5, "it answered at many points of the compile"
    assert sorted(waits)[len(waits) // 2] < 0.5
