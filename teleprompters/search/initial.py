"""Initial prompts written by the optimizer from examples. Source: 2402.02101 section 3 (4 examples); rest ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import dspy

from cuesmith.signatures import WriteInstructions
from cuesmith.teleprompters.runtime.candidate import Candidate, Prompt, made_from
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.context import Requests
from cuesmith.teleprompters.search.material import Casebook, Material, subsets
from cuesmith.teleprompters.search.setting import Setting
from cuesmith.teleprompters.search.texts import text_field


async def write_instructions(requests: Requests, setting: Setting, material: Material, book: Casebook
                             ) -> list[Candidate]:
    """Return the initial candidates: each has new instructions for every predictor, from its own examples.

    Each sample of examples gives `init_draws` candidates, the last one what is left of them. A candidate takes one draw
    of each predictor; where a draw cannot be used, the predictor keeps the student's instructions. Ours: the paper's
    programs have one predictor.

    Args:
        requests: Asks.
        setting: How many candidates, and examples for each.
        material: The examples.
        book: What each predictor has to do on them.
    """
    run = requests.run
    counts = [min(setting.init_draws, setting.initial - k) for k in range(0, setting.initial, setting.init_draws)]
    shown = subsets(run, material.evidence, setting.init_examples, len(counts), "initial")
    drawn = await asyncio.gather(*(
        asyncio.gather(*(_write(requests, book, name, examples, n, j) for name in run.baseline.names))
        for j, (examples, n) in enumerate(zip(shown, counts, strict=True))))
    return [_candidate(run, texts, examples)
            for examples, made in zip(shown, drawn, strict=True) for texts in zip(*made, strict=True)]


async def _write(requests: Requests, book: Casebook, name: str, examples: Sequence[dspy.Example], n: int, j: int
                 ) -> list[str | None]:
    request = {"examples": book.shown(name, examples)}
    own = requests.run.baseline.prompts[name].instructions
    replies = await requests.ask(WriteInstructions, name, request, instructions=own, n=n, salt=f"initial {j}")
    made = [requests.run.usable(name, text_field(reply, "instruction")) for reply in replies]
    return [*made, *([None] * (n - len(made)))]


def _candidate(run: Run, drawn: Sequence[str | None], examples: Sequence[dspy.Example]) -> Candidate:
    prompts = {name: prompt if text is None else Prompt(text, prompt.demos)
               for (name, prompt), text in zip(run.baseline, drawn, strict=True)}
    return Candidate(prompts, made_from("initial", examples, run.baseline))
