"""The embedded model's gates: ``python benchmarks/embedded.py [--quick] [--bigbench FOLDER]``.

Prints accuracy tables (exact match, %) over the task families and each gate with its number of examples and 95 %
interval. Inputs are fresh (the held-out tenth), replies come from the package's numpy engine through prompts that
dspy's adapters write and replies that they parse. Gates count families (or cells) that pass; a difference is over
the same questions. With ``--bigbench`` the real object-counting and navigation items of that folder are run too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy
from nano import corpus, phrasing

from cuesmith.modules.embedded.engine import NanoEngine
from cuesmith.modules.embedded.families import FAMILIES, Family, render_work

MAX_NEW_TOKENS = 224


@dataclass(frozen=True)
class Condition:
    """How a cell's prompts are written.

    Attributes:
        name: Its label in the tables.
        cot: Whether the program is a ChainOfThought.
        task: The instruction: "vague", "precise" (a trained phrasing), "unseen" or "free".
        steps: Whether a block of steps follows.
        demos: How many demonstrations.
        worked: Whether they have worked reasoning.
        fluff: Whether an unseen irrelevant sentence is added.
        names: "plain" (question and answer) or "unseen" field names.
        words: Whether all words of the words look are unseen.
        kind: The output type: "str", "own" (the family's) or "Literal" (True/False families).
        inputs: One input field, or two with a distractor.
        outputs: One output field, or two.
        adapter: "chat" or "json".
    """

    name: str
    cot: bool = False
    task: str = "precise"
    steps: bool = False
    demos: int = 0
    worked: bool = False
    fluff: bool = False
    names: str = "plain"
    words: bool = False
    kind: str = "str"
    inputs: int = 1
    outputs: int = 1
    adapter: str = "chat"


VAGUE, PRECISE = Condition("P vague", task="vague"), Condition("P precise")
COT_VAGUE, COT = Condition("C vague", cot=True, task="vague"), Condition("C precise", cot=True)
STEPS = Condition("C precise + steps", cot=True, steps=True)
CONDITIONS = (
    VAGUE,
    PRECISE,
    replace(PRECISE, name="P precise + fluff", fluff=True),
    replace(PRECISE, name="P unseen phrasing", task="unseen"),
    replace(PRECISE, name="P free phrasing", task="free"),
    replace(PRECISE, name="P unseen words", words=True),
    replace(PRECISE, name="P unseen names", names="unseen"),
    replace(VAGUE, name="P vague, 2 demos", demos=2),
    COT_VAGUE,
    COT,
    replace(STEPS, name="C vague + steps", task="vague"),
    STEPS,
    replace(STEPS, name="C precise + steps + fluff", fluff=True),
    replace(STEPS, name="C steps, unseen names", names="unseen"),
    replace(STEPS, name="C steps, unseen words", words=True),
    replace(COT_VAGUE, name="C vague, 2 worked demos", demos=2, worked=True),
    replace(PRECISE, name="P own type", kind="own"),
    replace(STEPS, name="C own type + steps", kind="own"),
    replace(PRECISE, name="P Literal", kind="Literal"),
    replace(PRECISE, name="P two inputs", inputs=2),
    replace(STEPS, name="C two inputs + steps", inputs=2),
    replace(PRECISE, name="P two outputs", outputs=2),
    replace(COT, name="C two outputs", outputs=2),
    replace(PRECISE, name="P JSON", adapter="json"),
    replace(STEPS, name="C JSON + steps", adapter="json"),
)


@dataclass
class Call:
    """One prompt with what its parsed reply must be."""

    signature: Any
    chat: list[tuple[str, str]]
    wanted: dict[str, str]
    adapter: Any


@dataclass
class Cell:
    """Scores of one family under one condition, per question."""

    right: list[bool] = field(default_factory=list)
    parsed: list[bool] = field(default_factory=list)


ADAPTERS: dict[str, Any] = {"chat": dspy.ChatAdapter(), "json": dspy.JSONAdapter()}
TYPES: dict[type, Any] = {int: int, bool: bool, str: str}


def instruction(condition: Condition, families: Sequence[Family], rng: random.Random, names: list[str]) -> str:
    """Write a fresh instruction for a cell."""
    family, source, target = families[0], names[0], names[-1]
    if condition.outputs == 2:
        nouns = [phrasing.noun_phrase(each.name, rng) for each in families]
        text = f"Give {nouns[0]} as `{names[-2]}` and {nouns[1]} as `{names[-1]}`."
    elif condition.task == "vague":
        text = f"Given the fields `{source}`, produce the fields `{target}`."
        if rng.random() < 0.5:
            text = phrasing.vague(rng, (source,), (target,), held_out=True)
    elif condition.task == "free":
        text = rng.choice(phrasing.FREE[family.name])
    else:
        text = phrasing.task(family.name, rng, source, target, held_out=condition.task == "unseen")
    if condition.inputs == 2:
        text += f" Use only `{source}`."
    if condition.fluff:
        sentence = phrasing.fluff(rng, held_out=True)
        text = f"{text} {sentence}" if rng.random() < 0.5 else f"{sentence} {text}"
    if condition.steps:
        steps = "\n".join(f"Step {k}: {step}" for k, step in enumerate(family.steps, 1))
        text += f"\n\n{phrasing.STEPS_HEADER}\n{steps}"
    return text


def _names(condition: Condition, rng: random.Random) -> tuple[list[str], list[str]]:
    if condition.names == "plain":
        inputs = ["question", "context"][: condition.inputs]
        return inputs, ["answer"] if condition.outputs == 1 else ["one", "two"]
    names: dict[str, None] = {}
    while len(names) < condition.inputs + condition.outputs:
        names[corpus.field_name(rng, held_out=True)] = None
    return list(names)[: condition.inputs], list(names)[condition.inputs :]


def _signature(
    condition: Condition, families: Sequence[Family], rng: random.Random
) -> tuple[Any, list[str], list[str]]:
    inputs, outputs = _names(condition, rng)
    fields: dict[str, Any] = {name: (str, dspy.InputField()) for name in inputs}
    for family, name in zip(families, outputs, strict=True):
        kind: Any = str if condition.kind == "str" else TYPES[family.answer_type]
        fields[name] = (Literal["yes", "no"] if condition.kind == "Literal" else kind, dspy.OutputField())
    text = instruction(condition, families, rng, [inputs[0], *outputs])
    signature: Any = dspy.Signature(fields, text)
    return (dspy.ChainOfThought(signature).predict.signature if condition.cot else signature), inputs, outputs


def _question(family: Family, condition: Condition, rng: random.Random) -> str:
    if condition.words and family.look == "words":
        return corpus.unseen_words(rng)
    return family.sample(rng, held_out=True)


def make_call(family: Family, condition: Condition, question: str, rng: random.Random) -> Call:
    """Write one prompt of a cell."""
    families = [family]
    if condition.outputs == 2:
        families.append(rng.choice([f for f in FAMILIES.values() if f.look == family.look and f is not family]))
    signature, inputs, outputs = _signature(condition, families, rng)

    def values(text: str) -> dict[str, str]:
        row = dict(zip(inputs, (text, rng.choice(list(FAMILIES.values())).sample(rng, held_out=True)), strict=False))
        for each, name in zip(families, outputs, strict=True):
            solved = each.solve(text)
            assert solved is not None
            yes = {"True": "yes", "False": "no"} if condition.kind == "Literal" else {}
            row[name] = yes.get(solved.answer, solved.answer)
        first = family.solve(text)
        assert first is not None
        return {**row, "reasoning": render_work(first) if condition.worked else corpus.VACUOUS}

    demos = [values(family.sample(rng, held_out=True)) for _ in range(condition.demos)]
    row = values(question)
    messages = ADAPTERS[condition.adapter].format(signature, demos, {name: row[name] for name in inputs})
    chat = [(message["role"], message["content"]) for message in messages]
    return Call(signature, chat, {name: row[name] for name in outputs}, ADAPTERS[condition.adapter])


def judge(calls: Sequence[Call], replies: Sequence[str]) -> Cell:
    """Parse replies with dspy and compare them with the solutions."""
    cell = Cell()
    for call, reply in zip(calls, replies, strict=True):
        try:
            parsed = call.adapter.parse(call.signature, reply)
        except Exception:
            parsed = None
        cell.parsed.append(parsed is not None)
        same = parsed is not None and all(str(parsed[name]) == value for name, value in call.wanted.items())
        cell.right.append(same)
    return cell


def wilson(hits: Sequence[bool]) -> tuple[float, float, float]:
    """A share in % with its 95 % Wilson interval."""
    n, p, z = len(hits), sum(hits) / len(hits), 1.96
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * p, 100 * (middle - half / (1 + z * z / n)), 100 * (middle + half / (1 + z * z / n))


def paired(after: Sequence[bool], before: Sequence[bool]) -> tuple[float, float, float]:
    """`gain` over the questions that both cells have: the smaller one's, which come first."""
    n = min(len(after), len(before))
    return gain(after[:n], before[:n])


def gain(after: Sequence[bool], before: Sequence[bool]) -> tuple[float, float, float]:
    """A paired difference in points with its 95 % interval."""
    each = [int(a) - int(b) for a, b in zip(after, before, strict=True)]
    mean = sum(each) / len(each)
    spread = math.sqrt(sum((x - mean) ** 2 for x in each) / max(1, len(each) - 1))
    half = 1.96 * spread / math.sqrt(len(each))
    return 100 * mean, 100 * (mean - half), 100 * (mean + half)


def _show(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.1f} [{values[1]:.1f}, {values[2]:.1f}]"


Table = dict[str, dict[str, Cell]]


def _cell(job: tuple[Path | None, str, Condition, int, int]) -> Cell:
    weights, name, condition, n, seed = job
    family = FAMILIES[name]
    questions = random.Random(f"{seed} {name} {condition.words}")
    rng = random.Random(f"{seed} {name} {condition.name}")
    calls = [make_call(family, condition, _question(family, condition, questions), rng) for _ in range(n)]
    return run(NanoEngine.load(weights), calls)


def run(engine: NanoEngine, calls: Sequence[Call]) -> Cell:
    """Answer and judge calls."""
    done = engine.generate([call.chat for call in calls], max_new_tokens=MAX_NEW_TOKENS)
    return judge(calls, [completion.text for completion in done])


def _fits(condition: Condition, family: Family) -> bool:
    if condition.words:
        return family.look == "words" and family.answer_type is str
    if condition.kind == "Literal":
        return family.answer_type is bool
    return condition.kind != "own" or family.answer_type is not str


def _all(cells: dict[str, Cell], what: str) -> list[bool]:
    return [hit for cell in cells.values() for hit in getattr(cell, what)]


BY_FAMILY = {"P vague", "P precise", "C vague", "C precise", "C precise + steps", "C vague, 2 worked demos"}


def measure(pool: ProcessPoolExecutor, options: argparse.Namespace, n: int) -> Table:
    """Run every condition on every family, always on the same questions.

    Conditions whose gate counts families have ``n`` examples a family; where a gate takes all families together,
    each has a fifth of that (at least 16), unless the condition fits few families.
    """
    table: Table = {}
    print(f"n = {n} a cell (* {max(16, n // 5)}); exact match in %; P = Predict, C = ChainOfThought")
    print(f"{'condition':27}" + "".join(f"{name[:7]:>8}" for name in FAMILIES) + "    MEAN  parsed", flush=True)
    for condition in CONDITIONS:
        if options.only not in condition.name:
            continue
        names = [f.name for f in FAMILIES.values() if _fits(condition, f)]
        size = n if condition.name in BY_FAMILY or len(names) < 5 else max(16, n // 5)
        jobs = [(options.weights, name, condition, size, options.seed) for name in names]
        cells = dict(zip(names, pool.map(_cell, jobs), strict=True))
        table[condition.name] = cells
        row = [f"{wilson(cells[f].right)[0]:8.0f}" if f in cells else f"{'-':>8}" for f in FAMILIES]
        means = (wilson(_all(cells, what))[0] for what in ("right", "parsed"))
        label = condition.name + ("" if size == n else " *")
        print(f"{label:27}{''.join(row)}" + "".join(f"{mean:8.1f}" for mean in means), flush=True)
    return table


def _line(name: str, passed: bool, text: str) -> None:
    print(f"{'pass' if passed else 'FAIL'}  {name}: {text}", flush=True)


def parse_gate(table: Table, name: str, conditions: Sequence[str], least: float) -> None:
    """The share of replies that dspy's parser accepts, over all families."""
    hits = [hit for condition in conditions for hit in _all(table[condition], "parsed")]
    share = wilson(hits)
    _line(name, share[0] >= least, f"{_show(share)} % of {len(hits)} parse (>= {least:.0f})")


def gain_gate(table: Table, name: str, after: str, before: str, least: float, families: int) -> None:
    """How many families gain at least so many points from one condition to the other."""
    gains = {f: paired(table[after][f].right, table[before][f].right) for f in table[after]}
    good = [f for f, values in gains.items() if values[0] >= least]
    _line(name, len(good) >= families, f"{len(good)} families gain >= {least:.0f} points (>= {families})")
    for family, values in gains.items():
        print(f"        {family:10} {_show(values):>24}{'  *' if family in good else ''}")


def ratio_gate(table: Table, name: str, condition: str) -> None:
    """The score with unseen phrasings as a share of the score with trained ones."""
    free, trained = _all(table[condition], "right"), _all(table["P precise"], "right")
    share = 100 * (sum(free) / len(free)) / max(1e-9, sum(trained) / len(trained))
    low = [f for f, c in table[condition].items() if _mean(c.right) < 0.6 * _mean(table["P precise"][f].right)]
    text = f"{_show(wilson(free))} % against {_show(wilson(trained))} %: {share:.0f} % of it (>= 60); n = {len(free)}"
    _line(name, share >= 60, text + (f"; below 60 % alone: {', '.join(low)}" if low else ""))


def _mean(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else 0.0


def gates(table: Table) -> None:
    """Print every gate."""
    print("\nGates: value [95 % interval]")
    parse_gate(table, "unseen field names", ("P unseen names", "C steps, unseen names"), 98)
    for condition in ("P unseen words", "C steps, unseen words"):
        for family, cell in table[condition].items():
            share = wilson(cell.right)
            _line(f"copying, {condition}, {family}", share[0] >= 85, f"{_show(share)} % of {len(cell.right)} (>= 85)")
    gain_gate(table, "precise minus vague", "P precise", "P vague", 30, 7)
    gain_gate(table, "steps minus precise without steps", "C precise + steps", "C precise", 15, 4)
    gain_gate(table, "two worked demonstrations, vague", "C vague, 2 worked demos", "C vague", 30, 6)
    for after, before in (("P precise + fluff", "P precise"), ("C precise + steps + fluff", "C precise + steps")):
        cells = [(table[before][f].right, c.right) for f, c in table[after].items()]
        cost = gain([x for b, a in cells for x in b[: len(a)]], [x for _, a in cells for x in a])
        _line(f"an irrelevant sentence costs ({after[0]})", cost[0] < 5, f"{_show(cost)} points (< 5)")
    ratio_gate(table, "unseen phrasing, from the grammar", "P unseen phrasing")
    ratio_gate(table, "unseen phrasing, written by hand", "P free phrasing")
    for name, conditions in {
        "int and bool outputs": ("P own type", "C own type + steps"), "Literal outputs": ("P Literal",),
        "two inputs": ("P two inputs", "C two inputs + steps"), "two outputs": ("P two outputs", "C two outputs"),
        "JSONAdapter": ("P JSON", "C JSON + steps"),
    }.items():  # fmt: skip
        parse_gate(table, name, conditions, 95)


def _bigbench_rows(path: Path, n: int) -> list[tuple[str, str]]:
    rows = json.loads(path.read_text())["examples"]
    random.Random(0).shuffle(rows)
    pairs = [(r["input"], r["target"][-1] if "target" in r else max(r["target_scores"], key=r["target_scores"].get))
             for r in rows]  # fmt: skip
    return pairs[:n]


def bigbench(engine: NanoEngine, folder: Path, n: int) -> None:
    """Run the real object-counting and navigation items, all of them with dspy's default program fields."""
    conditions = (VAGUE, PRECISE, CONDITIONS[7], COT_VAGUE, COT, STEPS, CONDITIONS[14])
    print(f"\nBIG-bench items, n = {n}; exact match in % [95 % interval]")
    for file, name in (("object_counting", "objects"), ("navigate", "navigate")):
        rows = _bigbench_rows(folder / f"{file}.json", n)
        solutions = [(FAMILIES[name].solve(text), target) for text, target in rows]
        reach = wilson([solution is not None and solution.answer == target for solution, target in solutions])
        print(f"  {file}: the family's own task answers {reach[0]:.1f} %; the other items ask for something else")
        for condition in conditions:
            rng = random.Random(f"{file} {condition.name}")
            calls = []
            for text, target in rows:
                call = make_call(FAMILIES[name], condition, text, rng)
                calls.append(replace(call, wanted={"answer": target}))
            cell = run(engine, calls)
            print(f"  {file:16} {condition.name:26} {_show(wilson(cell.right))}  parsed {wilson(cell.parsed)[0]:.1f}",
                  flush=True)  # fmt: skip


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description="The embedded model's gates.")
    parser.add_argument("--quick", action="store_true", help="32 examples a cell instead of 200")
    parser.add_argument("--n", type=int, default=0, help="examples a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=None, help="a folder with another model")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="only conditions whose name contains this; no gates")
    parser.add_argument("--bigbench", type=Path, default=None, help="folder of object_counting.json and navigate.json")
    options = parser.parse_args()
    n = options.n or (32 if options.quick else 200)
    start = time.monotonic()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        table = measure(pool, options, n)
    if not options.only:
        gates(table)
    if options.bigbench:
        bigbench(NanoEngine.load(options.weights), options.bigbench, n)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
