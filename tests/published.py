"""The searches that `search="native"` stands for, written anew from the papers' pseudo-code to be compared with ours.

Where a paper's pseudo-code is silent, numbers and the order of steps are those of the public code, of whose text
nothing is taken over. What is drawn at random is a parameter, so that ours and these can be given the same draws.
Sources: PromptAgent 2310.16427, ProTeGi 2305.03495, OPRO 2309.03409, APE 2211.01910, and the public code of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

Take = Callable[[Sequence[T], int], list[T]]
"""Draws so many without replacement."""


def plan_prompts(
    root: str,
    rewrite: Callable[[str, int], str],
    reward: Callable[[str], float],
    *,
    iterations: int = 12,
    width: int = 3,
    depth_limit: int = 8,
    min_depth: int = 2,
    exploration: float = 2.5,
) -> tuple[str, list[list[str]]]:
    """PromptAgent: Monte-Carlo tree search over prompts.

    Args:
        root: The prompt to begin with.
        rewrite: (prompt, k) -> its k-th rewrite, from a batch of its own.
        reward: The score on the fixed set.
        iterations: Iterations.
        width: Rewrites of a prompt.
        depth_limit: Depth at which every path ends.
        min_depth: Depth up to which none ends for its rewards.
        exploration: The weight of exploration in UCT.

    Returns:
        The prompt that is returned, and each iteration's path.
    """
    depth, above, below = {root: 0}, {root: ""}, dict[str, list[str]]()
    value, sums = {root: reward(root)}, {root: list[float]()}
    paths, best_seen = list[list[str]](), value[root]

    def terminal(s: str) -> bool:
        if depth[s] <= min_depth:
            return depth[s] >= depth_limit
        return depth[s] >= depth_limit or value[s] < (value[root] + value[above[s]]) / 2

    def index(s: str) -> float:
        q = sum(sums[s]) / len(sums[s]) if sums[s] else value[s]
        return q + exploration * math.sqrt(math.log(len(sums[above[s]]) + 1) / max(1, len(sums[s])))

    def expand(s: str) -> None:
        below[s] = [rewrite(s, k) for k in range(width)]
        for new in below[s]:
            depth[new], above[new], value[new], sums[new] = depth[s] + 1, s, reward(new), []

    for _ in range(iterations):
        path = [root]
        while path[-1] in below and not terminal(path[-1]):  # selection
            path.append(max(below[path[-1]], key=index))
        while not terminal(path[-1]):  # expansion and simulation
            if path[-1] not in below:
                expand(path[-1])
            path.append(max(below[path[-1]], key=lambda s: value[s]))
            record, best_seen = value[path[-1]] > best_seen, max(best_seen, value[path[-1]])
            if record and depth[path[-1]] > min_depth:
                break
        for i, s in enumerate(path):  # back-propagation
            sums[s].append(sum(value[t] for t in path[i:]))
        paths.append(path)
    means = [sum(value[s] for s in path) / len(path) for path in paths]
    last_best = max(range(len(paths)), key=lambda i: (means[i], i))
    return max(paths[last_best], key=lambda s: value[s]), paths


def epochs(examples: Sequence[T], size: int, shuffle: Callable[[int], list[T]]) -> Iterator[list[T]]:
    """PromptAgent: batches of `size` without end, epoch by epoch, the last batch of an epoch what is left of it."""
    number = 0
    while True:
        left = shuffle(number)
        assert sorted(map(repr, left)) == sorted(map(repr, examples))
        while left:
            batch, left = left[:size], left[size:]
            yield batch
        number += 1


def select_by_ucb(
    arms: Sequence[str],
    mean_of: Callable[[str, int, int], float],
    keep: int,
    *,
    rounds: int = 8,
    together: int = 8,
    samples: int = 32,
    c: float = 1.0,
) -> tuple[list[str], list[list[str]]]:
    """ProTeGi: the arms with the best means after so many rounds of upper confidence bounds.

    Args:
        arms: In a random order, in which the first round takes them.
        mean_of: (arm, samples it has, samples now) -> their mean score.
        keep: Arms kept.
        rounds: Rounds.
        together: Arms of a round.
        samples: Samples of an arm in a round.
        c: The weight of exploration.

    Returns:
        The arms that are kept, best first, and each round's arms.
    """
    count, total, chosen = dict.fromkeys(arms, 0), dict.fromkeys(arms, 0.0), list[list[str]]()

    def bound(arm: str, t: int) -> float:
        return total[arm] / max(1, count[arm]) + c * math.sqrt(math.log(t) / (count[arm] + 0.001))

    for t in range(rounds):
        order = sorted(arms, key=lambda arm: -bound(arm, t)) if t else list(arms)
        chosen.append(order[:together])
        for arm in chosen[-1]:
            total[arm] += mean_of(arm, count[arm], samples) * samples
            count[arm] += samples
    return sorted(arms, key=lambda arm: -total[arm] / max(1, count[arm]))[:keep], chosen


def expand_by_gradients(
    prompt: str,
    errors: Sequence[T],
    take_group: Callable[[int, Sequence[T], int], list[T]],
    reasons: Callable[[str, Sequence[T]], list[str]],
    edit: Callable[[str], str],
    paraphrase: Callable[[str], str],
    cut: Take[str],
    *,
    groups: int = 4,
    group_size: int = 4,
    paraphrases: int = 2,
    most: int = 8,
) -> list[str]:
    """ProTeGi: the successors of one prompt.

    Args:
        prompt: The prompt.
        errors: What it gets wrong in the minibatch.
        take_group: (j, errors, size) -> the j-th group of them.
        reasons: (prompt, group) -> the reasons that are given for it.
        edit: prompt -> an edit of it.
        paraphrase: prompt -> a paraphrase of it.
        cut: Draws the successors that are left.
        groups: Groups of errors.
        group_size: Errors in a group.
        paraphrases: Paraphrases of each edit and of the prompt.
        most: Successors left.
    """
    edits = []
    for j in range(groups if errors else 0):
        group = take_group(j, errors, min(group_size, len(errors)))
        edits += [edit(prompt) for _ in reasons(prompt, group)]
    pool = edits + [paraphrase(one) for one in (*edits, prompt) for _ in range(paraphrases)]
    return cut(pool, min(most, len(pool)))


def shown_by_opro(
    tried: Sequence[tuple[str, float]], *, most: int = 20, least: float = 0.3, buckets: int = 100
) -> list[tuple[str, int]]:
    """OPRO: the prompts that the meta-prompt shows, with their scores as whole numbers, in ascending order.

    Args:
        tried: Prompts and scores in the order in which they were proposed.
        most: How many are shown.
        least: The score that a prompt has to have.
        buckets: The whole number that stands for a score of 1.
    """
    by_score = sorted(enumerate(tried), key=lambda entry: (entry[1][1], entry[0]))
    return [(text, round(score * buckets)) for _, (text, score) in by_score[-most:] if score >= least]


def propose_by_ape(
    examples: Sequence[T],
    take: Take[T],
    draw: Callable[[Sequence[T], int], str],
    *,
    subsamples: int = 5,
    size: int = 5,
    draws: int = 50,
) -> list[str]:
    """APE: the initial prompts, so many drawn from each subsample of the examples."""
    groups = [take(examples, size) for _ in range(subsamples)]
    return list(dict.fromkeys(draw(group, k) for group in groups for k in range(draws)))
