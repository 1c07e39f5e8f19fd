"""Runs to report on: of the toy compiler, with hostile models, and records of many candidates written by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

from e2e_support import ToyEngine, toy_compile, toy_lm, toy_reply

from cuesmith import Compilation
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Json, Origin, Prompt
from cuesmith.teleprompters.runtime.record import FILE

EVIL = (
    "</script></style></title><script>document.title='run'</script>\"'>"
    "<img src=http://a.test/x onerror=document.title='run'><svg onload=document.title='run'>"
    "<a href=javascript:alert(1)>x</a>{{ 7 * 7 }}\u202e\u2066\u200f\x07\x1b[31m\x00\ud800"
)


def hostile_run(directory: Path | None = None) -> Compilation:
    """Return a compile of models that answer with markup, control characters and words of 100 kB."""

    def reply(system: str, user: str, drawn: int | None) -> str:
        said = toy_reply(system, user, drawn)
        if "`variation`" in system:
            return said.replace("Repeat the word.", f"Repeat the word. {EVIL[:-1]} {'w' * 1500}")
        return said.replace("\nno\n", f"\n{EVIL[:-1]}{'W' * 100_000}\n")

    found: Compilation = toy_compile(toy_lm(ToyEngine(reply=reply)), run_dir=directory).compilation
    return found


def large_run(directory: Path, candidates: int = 2_000, examples: int = 100) -> Path:
    """Write the record of a run of many candidates, as long as those of a real search; return its folder."""
    rng = random.Random(0)
    words = [f"word{k}" for k in range(400)]
    made = [Candidate({"answer": Prompt("Given the fields `question`, produce the fields `answer`.")})]
    for k in range(1, candidates):
        parent = made[rng.randrange(max(0, k - 60), k)]
        text = parent.prompts["answer"].instructions.split()[:150]
        for _ in range(12):
            text.insert(rng.randrange(len(text) + 1), rng.choice(words))
        demos = (Demo.of({"question": " ".join(rng.choices(words, k=20)), "answer": str(k)}),) * (k % 3)
        made.append(
            Candidate(
                {"answer": Prompt(" ".join(text), demos)},
                Origin(rng.choice(["edit", "merge", "vary"]), (parent.id,), ("0" * 16,)),
            )
        )
    scores = [[float(rng.random() < 0.3 + 0.6 * k / candidates) for _ in range(examples)] for k in range(candidates)]
    rows: list[tuple[float, Candidate, list[float]]] = sorted(
        ((sum(s) / examples, c, s) for c, s in zip(made, scores, strict=True)), key=lambda row: -row[0]
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text(json.dumps(_record(rows, made, scores[0], examples, words, rng)), "utf-8")
    return directory


def _record(
    rows: list[tuple[float, Candidate, list[float]]],
    made: list[Candidate],
    student: list[float],
    examples: int,
    words: list[str],
    rng: random.Random,
) -> dict[str, Json]:
    best = rows[0][2]

    def answer(score: float) -> dict[str, Json]:
        fields: Json = {"reasoning": " ".join(rng.choices(words, k=60)), "answer": rng.choice(words)}
        return {"score": score, "outcome": "Scored", "steps": [["answer", fields]], "words": "not quite" * (score < 1)}

    def view(k: int, a: float, b: float) -> Json:
        return {
            "id": f"{k:016x}",
            "inputs": {"question": " ".join(rng.choices(words, k=30))},
            "labels": {"answer": rng.choice(words)},
            "baseline": answer(a),
            "best": answer(b),
        }

    steps: list[Json] = [
        {
            "step": k,
            "best_id": made[20 * k].id,
            "beam": [c.id for c in made[20 * k : 20 * k + 8]],
            "train": None,
            "validation": {"mean": 0.3 + k / 250, "low": 0.2 + k / 250, "high": 0.4 + k / 250, "n": examples},
            "calls": 1000 * (k + 1),
        }
        for k in range(len(made) // 20)
    ]
    ids: list[Json] = [f"{k:016x}" for k in range(examples)]
    usage: Json = {"calls": 180_000, "input_tokens": 90_000_000, "output_tokens": 9_000_000, "usd": 31.4}
    shown: Json = [view(k, a, b) for k, (a, b) in enumerate(zip(student, best, strict=True))]
    candidates: list[Json] = [
        {**_mapping(c.to_json()), "scores": list(s), "mean": mean, "n": examples} for mean, c, s in rows
    ]
    return {
        "format": 1,
        "compiler": "APO",
        "predictors": {"answer": {"inputs": ["question"], "outputs": ["answer"]}},
        "baseline": made[0].id,
        "best": rows[0][1].id,
        "candidates": candidates,
        "steps": steps,
        "selection": ids,
        "train": [],
        "select": [{"id": one, "inputs": {}, "labels": {}} for one in ids],
        "fresh_scores": {"baseline": list(student), "best": list(best)},
        "gain": {"difference": 0.6, "low": 0.5, "high": 0.7, "p_value": 1e-9, "n": examples},
        "stopped_by": "usd",
        "notes": [{"kind": "verdict", "text": f"The gain on fresh examples is significant (n = {examples})."}],
        "spent": {"target": usage, "optimizer": usage},
        "seconds": 4321.0,
        "shown": {"select": shown, "fresh": shown},
        "front": [rows[0][1].id],
        "provenance": {"compiler": "apo", "seed": 0, "target": "openai/gpt-4.1-mini", "cuesmith": "0.1.0"},
    }


def _mapping(data: Json) -> dict[str, Json]:
    assert isinstance(data, dict)
    return data
