"""The judged check of the quickstart: held-out gains, with intervals, on generated and on real data.

    python benchmarks/quickstart.py [--families objects animals navigate trues] [--seeds 0 1 2]
                                    [--data FILE ...] [--test-size 250] [--json FILE]

Each line is one compile on the embedded model with the simulated optimizer. A line of ABO on a generated family
must gain at least 30 points with the interval's lower end above 15 points, one on real data at least 30 points,
each over n >= 200 held-out examples; the other lines stand beside it as they come out. The exit status is 0 only
if every judged line holds. It illustrates the machinery: the target is tiny, the optimizer simulated.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from cuesmith.programs import report
from cuesmith.programs.comparison import ComparisonRow, Result, Settings, models, read_task, run
from cuesmith.programs.evaluation import estimate
from cuesmith.programs.quickstart import to_json

BIGBENCH = Path(__file__).resolve().parents[2] / "shared" / "data" / "bigbench"
FAMILIES = ("objects", "animals", "navigate", "trues", "sum", "reverse")
REAL = ("object_counting.json", "navigate.json")
LEAST_GAIN, LEAST_LOW, LEAST_N = 0.30, 0.15, 200


@dataclass(frozen=True)
class Line:
    """One compile, and whether it is judged and holds."""

    name: str
    seed: int
    result: Result
    row: ComparisonRow
    generated: bool

    @property
    def judged(self) -> bool:
        """Whether the target of the issue applies: to ABO with its demonstrations."""
        return self.row.variant.compiler == "abo" and self.row.variant.demonstrations

    @property
    def holds(self) -> bool:
        """Whether the target is met."""
        gain = self.row.gain
        enough = gain.n >= LEAST_N and gain.difference >= LEAST_GAIN
        return enough and (gain.low > LEAST_LOW or not self.generated)

    def __str__(self) -> str:
        """The line of the table."""
        verdict = ("ok" if self.holds else "MISSED") if self.judged else ""
        baseline, compiled = (
            report.describe_estimate(estimate(scores)) for scores in (self.result.baseline, self.row.scores)
        )
        gain, row = self.row.gain, self.row
        return (
            f"{self.name:<16} {self.seed:>4} {row.variant.label:<14} {baseline:<18} {compiled:<20} "
            f"{report.describe_gain(gain):<23} {report.describe_p(gain):>6} {gain.n:>4} "
            f"{row.compilation.spent.total.calls:>6} {row.seconds:>5.0f} {verdict}"
        )


def lines(settings: list[tuple[str, Settings]]) -> Iterator[Line]:
    """Run everything, one line a compile."""
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in settings:
            setting = replace(setting, save=Path(folder) / "program.json")
            result = run(setting, read_task(setting), *models(setting))
            for row in result.rows:
                yield Line(name, setting.seed, result, row, setting.data is None)


def main() -> int:
    """Run the check and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", nargs="*", type=Path, default=[BIGBENCH / name for name in REAL])
    parser.add_argument("--test-size", type=int, default=250)
    parser.add_argument("--json", type=Path, help="also write all results here")
    options = parser.parse_args()
    settings = [
        (family, Settings(task=family, compilers=("abo",), seed=seed, test_size=options.test_size))
        for family in options.families
        for seed in options.seeds
    ]
    for path in options.data:
        if path.is_file():
            settings += [(path.stem, Settings(data=path, ablation=True, test_size=options.test_size))]
        else:
            print(f"{path} is not there: skipped", file=sys.stderr)

    for library in ("dspy", "LiteLLM"):  # their warnings, call by call, would drown the table
        logging.getLogger(library).setLevel(logging.ERROR)
    start, results, missed = time.perf_counter(), [], 0
    print(
        f"{'task':<16} seed {'compiler':<14} {'baseline %':<18} {'compiled %':<20} {'gain, points':<23} "
        f"{'p':>6} {'n':>4} {'calls':>6} {'s':>5}"
    )
    for line in lines(settings):
        print(line, flush=True)
        missed += line.judged and not line.holds
        results.append({"task": line.name, "seed": line.seed, **to_json(line.result)})
    print(f"\n{missed} judged lines missed; 95 % intervals; {time.perf_counter() - start:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
