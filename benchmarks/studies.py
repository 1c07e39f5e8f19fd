"""All ready studies on this machine, with what each found first, what it used and how long it took.

    python benchmarks/studies.py [--data TASK.json] [--prior-bias 0 1] [--seed 0] [--json FILE]

The target is the embedded model and the optimizer is simulated: with `--prior-bias 0` it looks at the errors that it is
shown, with 1 it never does. So the figures say whether the studies see what is there, and nothing of large models.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from cuesmith.programs.arguments import seed, share
from cuesmith.programs.diagnosis.page import measured, plain, probability
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.study import StudyReport, StudySettings, run


def line(bias: float, found: StudyReport) -> str:
    """Return a study's row: its first figure, and what it used."""
    first = next(figure for section in found.findings.sections for figure in section.figures)
    p_value = f", p {probability(first.p_value)}" if first.p_value is not None else ""
    value = f"{first.name}: {measured(first)} (n = {first.n}{p_value})"
    used = f"{found.bench.spent.total.calls:,} | {found.seconds:.0f}"
    return f"| {found.study.name} | {bias:g} | {value} | {found.n} {found.study.unit} | {used} |"


def studies(data: Path | None, biases: list[float], number: int) -> Iterator[tuple[float, StudyReport]]:
    """Yield what each study found, at each bias; on a file those that are about one task, and complexity."""
    for name in STUDIES:
        for bias in biases:
            files = () if data is None or name == "abo-gain" else (data,)
            yield bias, run(StudySettings(name, files=files, prior_bias=bias, seed=number), quiet=True)


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a task file, in place of generated tasks; not for abo-gain")
    parser.add_argument("--prior-bias", type=share, nargs="+", default=[0.0], help="of the optimizer (default: 0)")
    parser.add_argument("--seed", type=seed, default=0, help="of examples and decisions (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every result here")
    given = parser.parse_args()
    print("| study | prior bias | first figure [95 %] | size | calls | s |\n|---|---|---|---|---|---|", flush=True)
    kept = []
    for bias, found in studies(given.data, given.prior_bias, given.seed):
        print(line(bias, found), flush=True)
        print(f"  {found.findings.sections[0].summary}", flush=True)
        kept.append({"study": found.study.name, "prior_bias": bias, "result": plain(found.findings.result)})
    if given.json is not None:
        given.json.write_text(json.dumps(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
