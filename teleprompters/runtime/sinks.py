"""Where events may go besides the screen: a file of JSON lines, MLflow's active run, Weights & Biases' run.

Callbacks like any other (`callbacks=`): none can change a run; one that fails is reported and left out. Source: ours.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic_core import to_json, to_jsonable_python

from cuesmith.teleprompters.runtime.compilation import Compilation, Report
from cuesmith.teleprompters.runtime.events import Event, RunFinished, RunStarted, SpentChanged, StepDone
from cuesmith.teleprompters.runtime.ledger import Spent
from cuesmith.teleprompters.runtime.redaction import Redactor, redacted
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain


class JsonlEvents:
    """Appends every event to a file, as a line of JSON: `event` is its kind, `time` is in UTC, the rest are its fields.

    The last line of a run, "RunFinished", has the prompt, the scores, what was spent and where the prompt comes from.

    Args:
        path: The file; other runs' events that it has stay.

    Raises:
        OSError: If it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._redactor = Redactor()
        self.path.open("a").close()

    def __call__(self, event: Event) -> None:
        """Append a line."""
        fields = _finished(event.compilation) if isinstance(event, RunFinished) else _fields(event)
        line = {"event": type(event).__name__, "time": datetime.now(UTC).isoformat(), **fields}
        plain = redacted(to_jsonable_python(line, inf_nan_mode="constants", fallback=str), self._redactor)
        with self.path.open("ab") as file:
            file.write(to_json(plain, inf_nan_mode="null") + b"\n")


class MLflowEvents:
    """Logs a compile into MLflow's active run: its parameters, scores by step, what is spent, gain, prompt.

    The run is that which is active where the compile begins, such as `mlflow.dspy.autolog` starts one for each compile,
    or else where this object was made: a compile in a running event loop, as in a notebook, has a thread of its own,
    and MLflow's active run is a thread's. Without any, the compile gets a run of its own. Metrics are named
    `cuesmith/...`; the prompt is the artifact `cuesmith/prompt.json`, where it comes from `cuesmith/provenance.json`.

    Raises:
        ImportError: If MLflow is not installed (`pip install 'cuesmith[mlflow]'`).
    """

    def __init__(self) -> None:
        self._mlflow = _imported("mlflow")
        self._here = self._mlflow.active_run()
        self._run = ""
        self._own = False
        self._spent = Spent()

    def __call__(self, event: Event) -> None:
        """Log what the event says."""
        client = self._mlflow.MlflowClient()
        match event:
            case RunStarted():
                active = self._mlflow.active_run() or self._here
                self._own = active is None
                run = active or client.create_run(self._experiment(client), run_name=f"cuesmith {event.compiler}")
                self._run = run.info.run_id
                for name, value in _settings(event).items():
                    client.log_param(self._run, f"cuesmith/{name}", value)
            case SpentChanged():
                self._spent = event.spent
            case StepDone():
                step = event.record.step
                for name, value in (*_of_step(event), *_of_spent(self._spent)):
                    client.log_metric(self._run, f"cuesmith/{name}", value, step=step)
            case RunFinished():
                last = len(event.compilation.steps)  # of two values MLflow shows that of the later step
                for name, value in _of_result(event.compilation):
                    client.log_metric(self._run, f"cuesmith/{name}", value, step=last)
                for name, text in _texts(event.compilation).items():
                    client.log_text(self._run, text, f"cuesmith/{name}.json")
                if self._own:
                    client.set_terminated(self._run)

    def _experiment(self, client: Any) -> str:
        """Return the experiment that MLflow is set to, or its default one."""
        return str(self._mlflow.tracking.fluent._get_experiment_id())


class WandbEvents:
    """Logs a compile into the run of Weights & Biases that `wandb.init` has begun, by the names of `MLflowEvents`.

    Raises:
        ImportError: If wandb is not installed (`pip install 'cuesmith[wandb]'`).
        ValueError: If no run has begun.
    """

    def __init__(self) -> None:
        self._run = _imported("wandb").run
        if self._run is None:
            raise ValueError("WandbEvents logs into a run that has begun: call wandb.init(...) before it")
        self._spent = Spent()

    def __call__(self, event: Event) -> None:
        """Log what the event says."""
        match event:
            case RunStarted():
                self._run.config.update({f"cuesmith/{name}": value for name, value in _settings(event).items()},
                                        allow_val_change=True)  # fmt: skip
            case SpentChanged():
                self._spent = event.spent
            case StepDone():
                self._run.log(_named((*_of_step(event), *_of_spent(self._spent))))
            case RunFinished():
                texts = _texts(event.compilation)
                self._run.summary.update({**_named(_of_result(event.compilation)), "cuesmith/prompt": texts["prompt"],
                                          "cuesmith/provenance": texts["provenance"]})  # fmt: skip


def _named(numbers: Iterable[tuple[str, float]]) -> dict[str, float]:
    return {f"cuesmith/{name}": value for name, value in numbers}


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: pip install 'cuesmith[{name}]'") from error


def _fields(event: Event) -> dict[str, object]:
    if not dataclasses.is_dataclass(event):
        return {"text": str(event)}
    return {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}


def _finished(c: Compilation) -> dict[str, object]:
    return {
        "compiler": c.compiler,
        "prompt": c.best.candidate.to_json(),
        "baseline": c.baseline.candidate.id,
        "select": {"baseline": c.baseline.select, "best": c.best.select},
        "fresh": {"baseline": c.baseline.fresh, "best": c.best.fresh},
        "gain": c.gain,
        "candidates": len(c.candidates),
        "stopped_by": c.stopped_by,
        "spent": c.spent,
        "notes": list(c.notes),
        "provenance": None if c.provenance is None else c.provenance.to_json(),
    }


def _settings(event: RunStarted) -> dict[str, object]:
    return {
        "compiler": event.compiler,
        "predictors": ", ".join(event.predictors),
        "train": event.n_train,
        "selection": event.n_select,
        "fresh": event.n_fresh,
        "most_calls": event.forecast.calls,
    }


def _of_step(event: StepDone) -> Iterator[tuple[str, float]]:
    yield from _estimated("selection", event.record.validation)
    yield from _estimated("train", event.record.train)


def _of_spent(spent: Spent) -> Iterator[tuple[str, float]]:
    total = spent.total
    yield "calls", float(total.calls)
    yield "tokens", float(total.tokens)
    if total.usd is not None:
        yield "usd", total.usd


def _of_result(c: Compilation) -> Iterator[tuple[str, float]]:
    yield from _of_spent(c.spent)
    yield from _reported("baseline", c.baseline)
    yield from _reported("best", c.best)
    if isinstance(c.gain, Gain):
        for name, value in dataclasses.asdict(c.gain).items():
            if math.isfinite(value):
                yield ("gain" if name == "difference" else f"gain_{name}"), float(value)


def _reported(name: str, report: Report) -> Iterator[tuple[str, float]]:
    yield from _estimated(f"{name}_selection", report.select)
    yield from _estimated(f"{name}_fresh", report.fresh)


def _estimated(name: str, estimate: Estimate95 | None) -> Iterator[tuple[str, float]]:
    if estimate is not None and math.isfinite(estimate.mean):
        yield name, estimate.mean


def _texts(c: Compilation) -> dict[str, str]:
    facts = None if c.provenance is None else c.provenance.to_json()
    found = redacted({"prompt": c.best.candidate.to_json(), "notes": list(c.notes), "provenance": facts}, Redactor())
    return {name: json.dumps(value, indent=2, ensure_ascii=False) for name, value in found.items()}
