"""The papers' questions on real language models and public tasks, replayable by anyone without a model.

    python benchmarks/papers.py --replay                                # the figures, from the records beside this file
    python benchmarks/papers.py --server qwen05=URL qwen15=URL          # conduct the studies that have no record yet
    python benchmarks/papers.py --server ... --studies errors --tasks objects
    python benchmarks/papers.py --server ... --align smollm2.gguf       # Align-Pro, and its weights without training

The ready studies of 2402.02101's questions (`cuesmith study`), each on real data with the target and the optimizer of
`real.py`; and Align-Pro (2501.03486) with a trained SmolLM2 in front of that target, on requests in shorthand. Every
reply is recorded before it is used, so that a killed run goes on where it was (`records.py`).

A study says itself what could have been found at its size. Sizes were fixed before any reply was seen, by what two
cores can do in a day: they are the smallest that the studies' tests make sense with, or little more.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

sys.path.insert(0, str(Path(__file__).parent))

from real import DATA, MODELS, OPTIMIZER, PROBLEMS, RECORDS, SEEN, SIZES, Problem, fill, model_at
from records import PACKED, Book, RecordedLM, RecordError

from cuesmith.modules.decoding import GREEDY
from cuesmith.modules.policy import LocalPolicy
from cuesmith.modules.prompter import Prompter, given
from cuesmith.modules.reweighted import Reweighted
from cuesmith.programs.diagnosis.page import measured, plain, probability
from cuesmith.programs.evaluation import evaluate
from cuesmith.programs.studies import study
from cuesmith.programs.studies.bench import Bench, Findings
from cuesmith.programs.tasks import Sizes, Task, TaskError, load
from cuesmith.programs.tasks.task import Row, build
from cuesmith.teleprompters.align_pro import AlignPro
from cuesmith.teleprompters.alignment.training import Training, train, warm_start
from cuesmith.teleprompters.alignment.training_result import alignment_of
from cuesmith.teleprompters.runtime.statistics import Gain, estimate95, paired_gain

TARGET = "qwen05"
IN_FLIGHT = 4


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Attributes:
        n: As the study counts it.
        validation: Validation examples.
        test: Test examples.
        more: Whether the other test examples are for training: to find more errors on.
    """

    n: int
    validation: int
    test: int = 1
    more: bool = False


SIZE = {
    "errors": Size(8, validation=4, more=True),
    "reflection": Size(6, validation=12),
    "similarity": Size(8, validation=16, test=20),
    "demonstrations": Size(7, validation=10, test=20),
}
TASKS: Mapping[str, Problem] = {
    "objects": PROBLEMS["objects"],
    "sentiment": Problem("two classes", "instruction_induction/execute/sentiment.json", dspy.Predict, 64),
}


@dataclass(frozen=True)
class Cell:
    """A study on a task."""

    study: str
    task: str

    @property
    def folder(self) -> Path:
        """Where its record is."""
        return RECORDS / "papers" / f"{self.task}-{TARGET}"

    @property
    def packed(self) -> Path:
        """Its finished record."""
        return self.folder / f"{self.study}{PACKED}"


@dataclass(frozen=True)
class Done:
    """What a cell came to.

    Attributes:
        task: As the study had it.
        findings: The study's own.
        calls: By role.
        seconds: The replies' own times, over the calls in flight.
    """

    cell: Cell
    task: Task
    findings: Findings
    calls: Mapping[str, int]
    seconds: float


def read(cell: Cell, data: Path) -> Task:
    """Return the task as the study has it: of the splits of `real.py`, whose replies of the student are recorded."""
    problem, size = TASKS[cell.task], SIZE[cell.study]
    whole = load(data / problem.path, sizes=SIZES, seed=0, **dict(problem.options))
    train = (*whole.train, *whole.test[size.test :]) if size.more else whole.train
    return replace(whole, train=train, validation=whole.validation[: size.validation], test=whole.test[: size.test])


def run(cell: Cell, data: Path, models: Mapping[str, str]) -> Done:
    """Conduct a study; replies that are not in the records come from the models.

    Raises:
        RecordError: If there is no such reply, and no model; or the models were gone for too long.
    """
    for library in ("dspy", "LiteLLM"):
        logging.getLogger(library).setLevel(logging.ERROR)
    problem, task = TASKS[cell.task], read(cell, data)
    book = Book(cell.folder, cell.study, filling=bool(models), also=(RECORDS / f"{cell.task}-{TARGET}",))
    engines = {name: model_at(place) for name, place in models.items()}
    target = RecordedLM(MODELS[TARGET], book, engines.get(TARGET), max_tokens=problem.max_tokens, **SEEN["target"])
    optimizer = RecordedLM(MODELS[OPTIMIZER], book, engines.get(OPTIMIZER), **SEEN["optimizer"])
    before = -1
    with dspy.context(disable_history=True):
        # What a busy machine lets time out is in the book by the next time: what is kept is what a replay gives.
        while before < len(book):
            before = len(book)
            target.asked.clear()
            optimizer.asked.clear()
            bench = Bench(target, optimizer, max_in_flight=IN_FLIGHT, program=lambda own: problem.module(own.signature))
            findings = study(cell.study).conduct(bench, [task], SIZE[cell.study].n)
            book.check()
            if bench.stopped_by is not None:
                raise RecordError(f"{cell}: stopped by {bench.stopped_by}; start it again to go on")
    book.close()
    spent = bench.spent.by_role
    calls = {role: spent[role].calls for role in ("target", "optimizer") if role in spent}
    seconds = sum(entry.get("s", 0.0) for entry in (*target.asked, *optimizer.asked)) / IN_FLIGHT
    return Done(cell, task, findings, calls, seconds)


# --- what is said -----------------------------------------------------------------------------------------------


def report(done: Done) -> Iterator[str]:
    """Yield the lines of a study's report, in Markdown."""
    cell, task, chosen = done.cell, done.task, study(done.cell.study)
    calls = " + ".join(f"{done.calls.get(role, 0)} {role}" for role in ("target", "optimizer"))
    yield f"## {cell.study} on {cell.task}: {chosen.question}"
    yield ""
    yield (f"{MODELS[TARGET]} with {MODELS[OPTIMIZER]}; {SIZE[cell.study].n} {chosen.unit}; {len(task.train)} train, "
           f"{len(task.validation)} validation, {len(task.test)} test; calls {calls}; "
           f"{done.seconds / 60:.0f} min")  # fmt: skip
    for section in done.findings.sections:
        yield from ("", f"**{section.title}** {section.summary}", "")
        if section.figures:
            yield from ("| figure | value [95 %] | n | p |", "|---|---|---|---|")
        for one in section.figures:
            yield f"| {one.name} | {measured(one)} | {one.n} | {probability(one.p_value)} |"
    yield ""
    yield from (f"- {limit}" for limit in done.findings.limits)
    yield ""


# --- Align-Pro --------------------------------------------------------------------------------------------------

SHORTHAND = {
    "singular_to_plural": ("pl: {}", "pl of {}?"),
    "first_word_letter": ("1st ltr: {}", "{} - 1st ltr?"),
}
"""Tasks of instruction induction -> how somebody in a hurry asks for it. Asked in full the target answers most."""
ALONE, UNTAUGHT, UNTRAINED, ALIGN_PRO, LARGER = "0.5B alone", "SmolLM2 as it is", "untrained", "Align-Pro", "1.5B"
TRAINING = Training(
    trainer="ppo", kl_coefficient=0.1, steps=30, batch_size=16, generations=4, updates_per_batch=2, learning_rate=3e-4,
    max_new_tokens=16, lora_rank=16, save_every=2,
)  # fmt: skip
DECODING = replace(GREEDY, max_new_tokens=TRAINING.max_new_tokens)
WORDINGS = (
    "What is the plural of {}?", "What is the first letter of {}?", "What is the opposite of {}?",
    "What does {} mean?", "How is {} spelled?",
)  # fmt: skip
"""What the warm start teaches SmolLM2, one at random whatever was asked for: to ask in full, and not what is asked."""
WEIGHED = 4
"""Rewrites drawn at each run where nothing is trained."""


class Bare(dspy.Adapter):  # type: ignore[misc]
    """The question as it is, and the reply as it is: as somebody asks a chat model."""

    def format(self, signature: Any, demos: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the messages."""
        return [{"role": "user", "content": inputs["question"]}]

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """Return the answer."""
        return {"answer": completion}


class Chat(dspy.Module):  # type: ignore[misc]
    """The frozen program."""

    def __init__(self) -> None:
        """Create it."""
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Ask."""
        with dspy.context(adapter=Bare()):
            return self.ask(question=question)


class Fits(dspy.Signature):  # type: ignore[misc]
    """Judge whether the answer is right and is what was asked for."""

    question: str = dspy.InputField()
    answer: str = dspy.InputField()
    fits: bool = dspy.OutputField()


def says(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    """Whether the answer has the right word among its words."""
    return float(example.answer.lower() in re.findall(r"[a-z]+(?:'[a-z]+)?", str(prediction.answer).lower()))


def _asked(data: Path) -> Iterator[tuple[str, str, str]]:
    """Yield requests in shorthand, of tasks of instruction induction: the request, its word, the answer."""
    for name, forms in SHORTHAND.items():
        file = data / "instruction_induction" / "execute" / f"{name}.json"
        for k, one in enumerate(json.loads(file.read_text("utf-8"))["examples"].values()):
            if one["input"] != one["output"]:
                yield forms[k % len(forms)].format(one["input"]), one["input"], one["output"]


def shorthand(data: Path) -> Task:
    """Return the task."""
    rows = [Row({"question": asked}, (answer,)) for asked, _, answer in _asked(data)]
    task = build("shorthand", "requests in shorthand", rows, sizes=Sizes(train=96, validation=16, test=60), seed=0)
    return replace(task, metric=says)


def _pairs(data: Path, task: Task) -> list[tuple[str, str]]:
    """The training inputs, each with a wording drawn at random."""
    words, rng = {asked: word for asked, word, _ in _asked(data)}, random.Random(0)
    return [(one.question, rng.choice(WORDINGS).format(words[one.question])) for one in task.train]


def align(data: Path, models: Mapping[str, str], gguf: Path, work: Path) -> None:
    """Warm-start and train SmolLM2 before the frozen target; keep what each configuration made of the test inputs."""
    logging.getLogger("dspy").setLevel(logging.ERROR)
    book = Book(ALIGNED, "align-pro", filling=True)
    task, (target, larger, judge) = shorthand(data), _aligned_models(book, models)
    program, texts = Chat(), [example.question for example in task.test]
    begun = time.monotonic()
    with dspy.context(lm=target, disable_history=True):
        plainly = LocalPolicy.from_pretrained(gguf, instructions="")
        if not (work / "untrained" / "done").exists():
            taught = warm_start(plainly, _pairs(data, task), steps=40, batch_size=8, learning_rate=3e-4)
            taught.save_pretrained(work / "untrained")
            (work / "untrained" / "done").touch()
        start = LocalPolicy.from_pretrained(work / "untrained", instructions="")
        print(f"warm start: {time.monotonic() - begun:.0f} s", flush=True)
        shared: dict[str, Any] = {"field": "question", "decoding": DECODING, "max_in_flight": IN_FLIGHT,
                                  "progress": False}  # fmt: skip
        compiled = AlignPro(task.metric, prompter=start, training=TRAINING, rewrites=8, yardstick=12, **shared).compile(
            program, trainset=list(task.train), valset=list(task.validation), run_dir=work / "train"
        )
        found = alignment_of(compiled.compilation)
        assert found is not None
        print(found.verdict(), f"{time.monotonic() - begun:.0f} s", flush=True)
        trained = _trained(start, task, work / "train" / "prompter")
        rewrites = {ALONE: texts, LARGER: _rewrites(Prompter(larger), texts)}
        for name, model in ((UNTAUGHT, Prompter(plainly)), (UNTRAINED, Prompter(start)), (ALIGN_PRO, trained)):
            rewrites[name] = [draws[0].text for draws in model.sample(texts, 1, DECODING)]
        few = list(task.validation[:8])
        weighed = AlignPro(_judged(judge), prompter=start, mode="weights", yardstick=0, rewrites=WEIGHED,
                           training=TRAINING, **shared)  # fmt: skip
        kept_by = weighed.compile(program, trainset=list(task.train), valset=few, run_dir=work / "weights").compilation
        print("kept by mode='weights':", kept_by.best.candidate.origin.move, flush=True)
        front = Reweighted(Prompter(start), program, "question", _judged(judge), rewrites=WEIGHED,
                           kl_coefficient=TRAINING.kl_coefficient)  # fmt: skip
        scores = evaluate(front, task.test, task.metric, max_in_flight=IN_FLIGHT)
        for each in rewrites.values():
            evaluate(program, _rewritten(task, each), task.metric, max_in_flight=IN_FLIGHT)
    kept = {
        "rewrites": rewrites,
        "alignment": plain(found),
        "verdict": found.verdict(),
        "weights": scores.values,
        "seconds": sum(step.seconds for step in found.curve),
    }
    book.add(RESULT, kept)
    book.close()


ALIGNED = RECORDS / "papers" / f"shorthand-{TARGET}"
RESULT = "what came of it"


def _aligned_models(book: Book, models: Mapping[str, str]) -> tuple[RecordedLM, RecordedLM, RecordedLM]:
    engines = {name: model_at(place) for name, place in models.items()}
    own, other = engines.get(TARGET), engines.get(OPTIMIZER)
    target = RecordedLM(MODELS[TARGET], book, own, temperature=0.0, max_tokens=24)
    larger = RecordedLM(MODELS[OPTIMIZER], book, other, temperature=0.0, max_tokens=48)
    return target, larger, RecordedLM(MODELS[OPTIMIZER], book, other, temperature=0.0, max_tokens=32)


def _rewrites(rewriter: Prompter, texts: Sequence[str]) -> list[str]:
    """A language model's rewrites; the text itself where the reply cannot be used."""

    def one(text: str) -> str:
        try:
            return str(rewriter(text=text).rewritten)
        except AdapterParseError:
            return text

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(one, texts))


def _trained(start: LocalPolicy, task: Task, folder: Path) -> Prompter:
    """The trained prompter, whichever program was kept: a training that has ended is read from its checkpoints."""
    if not folder.exists():
        return Prompter(start)  # there was nothing to gain
    texts = [example.question for example in task.train]
    return Prompter(train(start, texts, lambda rows, rewrites: [None] * len(rows), TRAINING, directory=folder,
                          on_step=lambda step: True))  # fmt: skip


def _judged(judge: dspy.BaseLM) -> Callable[..., float]:
    """A metric that needs no label: the optimizer's judgement of the answer to the original request."""
    fits = dspy.Predict(Fits)
    fits.lm = judge

    def judged(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return float(fits(question=example.question, answer=str(prediction.answer)).fits)

    return judged


def _rewritten(task: Task, rewrites: Sequence[str]) -> list[dspy.Example]:
    return [
        example.copy(question=given(example.question, rewrite))
        for example, rewrite in zip(task.test, rewrites, strict=True)
    ]


def aligned(data: Path) -> Iterator[str]:
    """Yield the figures of Align-Pro, from the record."""
    book, task = Book(ALIGNED, "align-pro", filling=False), shorthand(data)
    kept, (target, *_) = book.get(RESULT), _aligned_models(book, {})
    assert kept is not None
    with dspy.context(lm=target, disable_history=True):
        scores = {name: evaluate(Chat(), _rewritten(task, each), task.metric, max_in_flight=IN_FLIGHT).values
                  for name, each in kept["rewrites"].items()}  # fmt: skip
    book.check()
    scores["weights of Lemma 1"] = tuple(kept["weights"])
    yield from (f"## Align-Pro: requests in shorthand, n = {len(task.test)} held-out", "", kept["verdict"],
                f"{len(kept['alignment']['curve'])} steps of training, {kept['seconds'] / 3600:.1f} hours.", "",
                "| configuration | right % | over the 0.5B alone | over the untrained prompter |",
                "|---|---|---|---|")  # fmt: skip
    for name, values in scores.items():
        own = estimate95(values)
        against = (_points(paired_gain(scores[other], values)) if other != name else "" for other in (ALONE, UNTRAINED))
        yield f"| {name} | {100 * own.mean:.0f} [{100 * own.low:.0f}, {100 * own.high:.0f}] | {' | '.join(against)} |"


def _points(gain: Gain) -> str:
    return f"{100 * gain.difference:+.0f} [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}], p = {gain.p_value:.2g}"


# --- running ----------------------------------------------------------------------------------------------------


def conducted(cell: Cell, data: Path, models: Mapping[str, str]) -> Iterator[str]:
    """Conduct a study, or read it from its record, and yield the lines of its report."""
    yield from report(run(cell, data, models))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--replay", action="store_true", help="print what the records give; asks no model")
    parser.add_argument("--server", nargs="+", default=[], metavar="NAME=URL", help="models behind servers")
    parser.add_argument("--studies", nargs="+", choices=SIZE, default=list(SIZE))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--align", type=Path, metavar="FILE", help="Align-Pro instead, with SmolLM2 from this file")
    parser.add_argument("--work", type=Path, default=Path("runs/papers"), help="keeps Align-Pro's weights and journal")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the public data sets")
    options = parser.parse_args()
    models = dict(pair.split("=", 1) for pair in options.server)
    cells = [Cell(name, task) for name in options.studies for task in options.tasks]
    try:
        if options.align:
            align(options.data, models, options.align, options.work)
            return 0
        if not options.replay:
            fill((cell.packed, partial(conducted, cell, options.data, models)) for cell in cells)
            return 0
        for cell in cells:
            if cell.packed.exists():
                print("\n".join(conducted(cell, options.data, {})))
        if (ALIGNED / f"align-pro{PACKED}").exists():
            print("\n".join(aligned(options.data)))
    except (RecordError, TaskError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
