"""Each native search against a reference written from the paper's pseudo-code, step by step on seeded landscapes."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from landscape_support import ROOT, Landscape, World, child, questions_in
from published import epochs, expand_by_gradients, plan_prompts, propose_by_ape, select_by_ucb, shown_by_opro

from cuesmith.teleprompters import APO, OPRO, IterativeAPE, PromptAgent
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin, digest
from cuesmith.teleprompters.runtime.effects import seeded

LANDSCAPES: Mapping[str, Mapping[str, float]] = {
    "climbing": {},
    "rugged": {"kept": 0.5, "spread": 0.2},
    "falling": {"start": 0.6, "drift": -0.04, "spread": 0.08},
    "unrelated": {"kept": 0.0, "drift": 0.05, "spread": 0.15},
    "level": {"steps": 8},
}


def metric(example: object, prediction: object) -> bool:
    raise AssertionError("a landscape scores by itself")


def landscape(kind: str, seed: int) -> Landscape:
    return Landscape(seed, **LANDSCAPES[kind])  # type: ignore[arg-type]


def named(text: str) -> Candidate:
    """Return the candidate with that text, as the student with other instructions is one."""
    return World(Landscape(0), 1, 1).baseline.replace("self", instructions=text, origin=Origin("given"))


# --- PromptAgent ---------------------------------------------------------------------------------------------


def compare_trees(world: World, **options: int) -> None:
    """Run PromptAgent and the reference, and compare what is rewritten, in which order, and what is returned."""
    sizes = {
        "steps": options.get("iterations", 12),
        "depth": options.get("depth_limit", 8),
        "width": options.get("width", 3),
    }
    found = world.search(PromptAgent(metric, search="native", threshold=1.0, **sizes))  # type: ignore[arg-type]
    rewritten = list[str]()

    def rewrite(text: str, k: int) -> str:
        rewritten.append(text)
        return child(text, k)

    best, paths = plan_prompts(ROOT, rewrite, world.landscape.quality, **options)
    assert [text for text, _ in world.named("RewriteInstruction")] == rewritten
    assert world.scored_texts() == {ROOT, *(child(text, k) for text in rewritten for k in range(sizes["width"]))}
    assert found == best and len(world.steps) == len(paths) + 1


@pytest.mark.parametrize("kind", LANDSCAPES)
def test_prompt_agent_visits_and_returns_what_the_published_search_does(kind: str) -> None:
    for seed in range(4):
        compare_trees(World(landscape(kind, seed), 12, 32))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LANDSCAPES)
def test_prompt_agent_does_so_on_150_landscapes_of_each_kind(kind: str) -> None:
    for seed in range(100, 250):
        compare_trees(World(landscape(kind, seed), 12, 32))


def test_prompt_agent_does_so_with_other_numbers() -> None:
    for seed in range(4):
        compare_trees(World(landscape("climbing", seed), 12, 32), iterations=10, depth_limit=5, width=2)


def test_an_early_stop_ends_an_iteration_and_not_a_node() -> None:
    later = 0
    for seed in range(4):
        world = World(landscape("climbing", seed), 12, 32)
        world.search(PromptAgent(metric, search="native", threshold=1.0))
        _, paths = plan_prompts(ROOT, child, world.landscape.quality)
        ends = [path[-1] for path in paths if 3 <= len(path) - 1 < 8]
        later += sum(any(text == end for text, _ in world.named("RewriteInstruction")) for end in ends)
    assert later >= 4


@pytest.mark.parametrize("n_train", [3, 5, 17])
def test_prompt_agent_shows_every_example_once_before_any_again(n_train: int) -> None:
    world = World(Landscape(3, start=0.0, drift=0.0, spread=0.0), n_train, 8)  # nothing is ever right
    world.search(PromptAgent(metric, search="native", threshold=1.0, steps=5, depth=3))
    shown = [questions_in(inputs["failures"]) for _, inputs in world.named("ReflectOnFailures")]
    assert len(shown) >= 10 and max(map(len, shown)) == min(5, n_train)
    evidence = [f"t{i}" for i in range(n_train)]
    seeded(world.seed, "material").shuffle(evidence)  # as the searches share the examples out
    expected = epochs(evidence, 5, lambda epoch: seeded(world.seed, "epoch", epoch).sample(evidence, n_train))
    assert shown == list(itertools.islice(expected, len(shown)))


def test_temperatures_are_those_of_the_public_code() -> None:
    kinds = APO, IterativeAPE, OPRO, PromptAgent
    native = {kind: kind(metric, search="native").setting.temperature for kind in kinds}
    assert native == {APO: 0.7, IterativeAPE: 0.9, OPRO: None, PromptAgent: None}  # None: the provider's 1
    assert APO(metric).setting.temperature is None and APO(metric, temperature=0.2).setting.temperature == 0.2


# --- APO -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LANDSCAPES)
def test_apo_expands_and_selects_as_published(kind: str) -> None:
    world = World(landscape(kind, 1), 90, 256, exact=False)  # 8 rounds of 32: no arm is out of examples
    found = world.search(APO(metric, search="native", threshold=1.0, steps=3))
    beams, groups = protegi(world, steps=3)
    assert world.beams() == beams and found == beams[-1][0]
    assert [questions_in(inputs["failures"]) for _, inputs in world.named("CriticizeInstruction")] == groups


class Draws:
    """What ours draws at random for one prompt in one step."""

    def __init__(self, seed: int, step: int, prompt: str) -> None:
        self.seed, self.step, self.prompt = seed, step, prompt

    def group(self, j: int, errors: Sequence[str], n: int) -> list[str]:
        return seeded(self.seed, "errors", self.step, self.prompt, j).sample(errors, n)

    def cut(self, texts: Sequence[str], n: int) -> list[str]:
        return seeded(self.seed, "cut", self.step, self.prompt).sample(texts, n)


def protegi(world: World, *, steps: int, keep: int = 4, minibatch: int = 64) -> tuple[list[list[str]], list[list[str]]]:
    """Return each step's beam and the groups of errors that reasons were asked for, with the draws of ours."""
    train = [str(example.question) for example in world.train]
    seeded(world.seed, "material").shuffle(train)
    select = [str(example.question) for example in world.select]
    right, written = world.landscape.right, Counter[str]()
    groups: list[list[str]] = []

    def write(text: str) -> str:
        written[text] += 1
        return child(text, written[text] - 1)

    def reasons(prompt: str, group: Sequence[str]) -> list[str]:
        groups.append(list(group))
        return ["why"]

    def full(text: str) -> float:
        return sum(right(text, question) for question in select) / len(select)

    beam = [ROOT]
    beams = [beam]
    for step in range(1, steps + 1):
        batch = seeded(world.seed, "minibatch", step).sample(train, minibatch)
        pool = list(beam)
        for prompt in beam:
            draws = Draws(world.seed, step, named(prompt).id)
            errors = [question for question in batch if not right(prompt, question)]
            pool += expand_by_gradients(prompt, errors, draws.group, reasons, write, write, draws.cut)
        arms = seeded(world.seed, "arms", step).sample(pool, len(pool))
        order = seeded(world.seed, "bandit", step).sample(range(len(select)), len(select))

        def share(arm: str, seen: int, n: int, order: Sequence[int] = order) -> float:
            return sum(right(arm, select[i]) for i in order[seen : seen + n]) / n

        kept, _ = select_by_ucb(arms, share, keep)
        beam = sorted(kept, key=lambda text: (-full(text), len(text)))
        beams.append(beam)
    return beams, groups


# --- OPRO ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_opro_shows_the_published_history_at_every_step(seed: int) -> None:
    """What is proposed hangs on all that is shown, so that one difference would show in every later step."""

    def proposals(step: int, shown: Sequence[tuple[str, int]]) -> list[str]:
        return [f"{ROOT}.{digest(step, [list(pair) for pair in shown])}.{k}" for k in range(8)]

    def write(name: str, inputs: Mapping[str, object], text: str, n: int) -> list[Mapping[str, object]]:
        return [{"instruction": made} for made in proposals(len(world.asked), pairs(inputs))[:n]]

    # few qualities, many of them below the threshold: ties, and histories of no prompt at all
    world = World(Landscape(seed, start=0.2, spread=0.2, steps=20), 12, 20, write=write)
    world.search(OPRO(metric, search="native", threshold=1.0, steps=12))
    tried, shown = [(ROOT, world.landscape.quality(ROOT))], []
    for step in range(1, 13):
        shown.append(shown_by_opro(tried))
        tried += [(text, world.landscape.quality(text)) for text in proposals(step, shown[-1])]
    assert [pairs(inputs) for _, inputs in world.named("ProposeInstruction")] == shown
    assert shown[0] == [] and len(shown[-1]) == 20 and len({score for _, score in shown[-1]}) < 12


def pairs(inputs: Mapping[str, object]) -> list[tuple[str, int]]:
    """Return the texts and scores that a request shows."""
    found = [re.fullmatch(r"text: (.*)\nscore: (\d+)", str(text)) for text in inputs["scored_instructions"]]  # type: ignore[attr-defined]
    return [(match[1], int(match[2])) for match in found if match]


@pytest.mark.parametrize(
    ("options", "shown"),
    [({}, 1), ({"search": "native"}, 0), ({"search": "native", "least_score": 0.1}, 1), ({"least_score": 0.11}, 0)],
)
def test_opro_shows_what_scores_enough(options: Mapping[str, object], shown: int) -> None:
    world = World(Landscape(0, start=0.1, steps=10), 12, 20)
    world.search(OPRO(metric, threshold=1.0, steps=1, initial=0, **options))  # type: ignore[arg-type]
    assert {len(pairs(inputs)) for _, inputs in world.named("ProposeInstruction")} == {shown}


# --- Iterative-APE -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_iterative_ape_draws_the_published_initial_prompts_and_resamples(seed: int) -> None:
    def write(name: str, inputs: Mapping[str, object], text: str, n: int) -> list[Mapping[str, object]] | None:
        if name != "WriteInstructions":
            return None
        return [{"instruction": first(questions_in(inputs["examples"]), k)} for k in range(n)]

    def first(group: Sequence[str], k: int) -> str:
        return f"{ROOT}.{digest(list(group))}.{k}"

    world = World(Landscape(seed, steps=100), 40, 100, write=write)
    found = world.search(IterativeAPE(metric, search="native", threshold=1.0, steps=2, racing=False))
    train = [f"t{i}" for i in range(40)]
    seeded(world.seed, "material").shuffle(train)
    number = itertools.count()
    initial = propose_by_ape(
        train, lambda all_, n: seeded(world.seed, "subset", "initial", next(number)).sample(all_, n), first
    )
    assert len(initial) == 250 and len(world.named("WriteInstructions")) == 5
    written, beam, beams = Counter[str](), [ROOT, *initial], []
    for step in range(3):
        pool = [ROOT, *beam]
        for parent in beam if step else ():
            pool += [child(parent, written[parent] + k) for k in range(4)]
            written[parent] += 4
        beam = sorted(dict.fromkeys(pool), key=lambda text: (-world.landscape.quality(text), len(text)))[:4]
        beams.append(beam)
    assert world.beams() == beams and found == beams[-1][0]
