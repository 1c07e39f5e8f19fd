"""Splits: disjoint by content, the same for the same examples, and honest about what is left out."""

import random

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuesmith.teleprompters.runtime.candidate import example_id
from cuesmith.teleprompters.runtime.splitting import Split, split_examples


def _examples(numbers: list[int]) -> list[dspy.Example]:
    return [dspy.Example(q=f"question {i}", a=str(i)).with_inputs("q") for i in numbers]


def _ids(part: tuple[dspy.Example, ...]) -> list[str]:
    return [example_id(e) for e in part]


def _split(
    train: list[int], val: list[int] | None = None, seed: int = 0, n_select: int = 50, n_fresh: int = 100
) -> Split:
    valset = None if val is None else _examples(val)
    return split_examples(_examples(train), valset, seed=seed, n_select=n_select, n_fresh=n_fresh)


NUMBERS = st.lists(st.integers(0, 40), min_size=1, max_size=60)


@given(NUMBERS, st.none() | st.lists(st.integers(20, 80), max_size=60), st.integers(0, 5), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_disjoint_bounded_and_nothing_invented(
    train: list[int], val: list[int] | None, seed: int, n_select: int
) -> None:
    split = _split(train, val, seed, n_select, 25)
    parts = [set(_ids(part)) for part in (split.train, split.select, split.fresh)]
    assert split.train and split.select and len(split.select) <= n_select and len(split.fresh) <= 25
    assert len(parts[1]) == len(split.select) and len(parts[2]) == len(split.fresh)
    assert not parts[1] & parts[2] and not parts[0] & parts[2]
    only_one = len(set(train)) == 1 and not set(val or ()) - set(train)
    assert (parts[0] == parts[1]) if only_one else not parts[0] & parts[1]
    given_ids = {example_id(e) for e in _examples([*train, *(val or ())])}
    assert parts[0] | parts[1] | parts[2] <= given_ids


@given(st.lists(st.integers(0, 40), min_size=2, max_size=40, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_given_does_not_matter(numbers: list[int], rng: random.Random) -> None:
    shuffled = list(numbers)
    rng.shuffle(shuffled)
    val = [n + 100 for n in numbers]
    assert _split(numbers) == _split(shuffled)
    a, b = _split(numbers, val), _split(numbers, val[::-1])
    assert (a.select, a.fresh) == (b.select, b.fresh)


def test_seeds_differ_and_repeat() -> None:
    numbers = list(range(40))
    assert _split(numbers, seed=1) == _split(numbers, seed=1) != _split(numbers, seed=2)
    assert _split(numbers, numbers[:1], seed=1).select == _split(numbers, seed=1).select


def test_shares_without_a_valset() -> None:
    split = _split(list(range(100)))
    assert (len(split.train), len(split.select), len(split.fresh)) == (40, 35, 25) and split.notes == ()
    large = _split(list(range(1000)))
    assert (len(large.train), len(large.select), len(large.fresh)) == (850, 50, 100)


def test_a_valset_is_shared_between_selection_and_report() -> None:
    split = _split(list(range(10)), list(range(100, 131)))
    assert _ids(split.train) == _ids(tuple(_examples(list(range(10)))))
    assert (len(split.select), len(split.fresh)) == (16, 15) and split.notes == ()
    large = _split([1], list(range(100, 400)))
    assert (len(large.select), len(large.fresh)) == (50, 100)


def test_overlaps_and_duplicates_are_left_out_and_said() -> None:
    split = _split(list(range(10)), [5, 6, 100, 100, 101, 102])
    assert {e.a for e in (*split.select, *split.fresh)} == {"100", "101", "102"}
    assert split.notes == (
        "3 of the 6 validation examples are duplicates or stand in the training set too, and are not used for "
        "validation.",
    )
    same = _split(list(range(20)), list(range(20)))
    assert "20 of the 20" in same.notes[0] and len(same.train) + len(same.select) + len(same.fresh) == 20
    assert not set(_ids(same.train)) & set(_ids(same.select))
    twice = _split([1, 1, 2, 2, 3, 3])
    copies = "3 of the 6 training examples ask what another one asks, and are not used; 3 of them are copies, outputs "
    assert twice.notes == (f"{copies}included.",)
    beside = _split([1, 1, 2], [7, 8])
    told = "1 of the 3 training examples ask what another one asks; 1 of them are copies, outputs included."
    assert beside.notes == (told,)
    assert len(twice.select) + len(twice.fresh) + len(twice.train) == 3


@pytest.mark.parametrize(
    ("train", "val", "sizes"),
    [
        ([1], None, (1, 1, 0)),
        ([1, 1], None, (1, 1, 0)),
        ([1], [1], (1, 1, 0)),
        ([1], [2], (1, 1, 0)),
        ([1], [2, 3], (1, 1, 1)),
        ([1, 2], None, (1, 1, 0)),
        ([1, 2, 3], None, (1, 1, 1)),
        ([1, 2, 3], [], (1, 1, 1)),
        ([1, 2], [9], (1, 2, 0)),
    ],
)
def test_tiny_sets(train: list[int], val: list[int] | None, sizes: tuple[int, int, int]) -> None:
    split = _split(train, val)
    assert (len(split.train), len(split.select), len(split.fresh)) == sizes


def test_one_example_only_is_said() -> None:
    assert _split([1]).notes == ("There is one training example only: it serves for evidence and for selection alike.",)
    both = _split([1], [2])
    assert both.notes == ("There is one validation example only.",) and both.select[0].a == "2"


def test_the_same_values_with_other_inputs_are_another_example() -> None:
    one, two = dspy.Example(q="1", a="2").with_inputs("q"), dspy.Example(q="1", a="2").with_inputs("a")
    split = split_examples([one, two], None, seed=0, n_select=5, n_fresh=5)
    assert len(split.train) == len(split.select) == 1 and split.train[0] is not split.select[0]


def test_no_two_sets_share_a_question_whatever_case_space_and_label() -> None:
    def asked(text: str, label: str) -> dspy.Example:
        return dspy.Example(q=text, a=label).with_inputs("q")

    def questions(part: tuple[dspy.Example, ...]) -> set[str]:
        return {" ".join(e.q.casefold().split()) for e in part}

    twice = [asked(f"Is {i} even?", "yes") for i in range(20)] + [asked(f" is  {i} EVEN?", "no") for i in range(20)]
    split = split_examples(twice, None, seed=0, n_select=50, n_fresh=100)
    parts = [questions(part) for part in (split.train, split.select, split.fresh)]
    assert [len(part) for part in parts] == [len(split.train), len(split.select), len(split.fresh)] == [8, 7, 5]
    assert len(set.union(*parts)) == 20
    assert split.notes[0] == "20 of the 40 training examples ask what another one asks, and are not used."
    assert split.notes[1].startswith("20 of the 20 questions stand with contradicting outputs, as q='")
    assert split == split_examples(twice[::-1], None, seed=0, n_select=50, n_fresh=100)
    val = [asked("IS 3 EVEN?", "no"), asked("is 30 even?", "yes"), asked("Is 30  even?", "no"), asked("31?", "no")]
    valid = split_examples(twice[:20], val, seed=0, n_select=50, n_fresh=100)
    assert len(valid.train) == 20 and questions((*valid.select, *valid.fresh)) == {"is 30 even?", "31?"}
    assert len(valid.select) == len(valid.fresh) == 1 and "2 of the 4 validation examples" in valid.notes[0]


def test_copies_and_contradictions_are_counted_apart() -> None:
    def asked(text: str, label: str, **more: object) -> dspy.Example:
        return dspy.Example(q=text, a=label, **more).with_inputs("q")

    once = [asked(f"q {i}", "ab"[i % 2]) for i in range(10)]
    more = [asked("q 0", "a"), asked(" Q  0", "A"), asked("q 1", "c"), asked("q 1", "c"), asked("q 1", "d")]
    told = (
        "5 of the 15 training examples ask what another one asks, and are not used; 3 of them are copies, outputs "
        "included.",
        "1 of the 10 questions stand with contradicting outputs, as q='q 1' with a='b' and with a='c'; correct or "
        "leave out these.",
    )
    for examples in ([*once, *more], [*more, *once][::-1]):
        assert split_examples(examples, None, seed=0, n_select=50, n_fresh=100).notes == told
    val = [asked("q 3", "z"), asked("q 4", "a"), asked("q 20", "a"), asked("q 20", "b"), asked("q 21", "a")]
    notes = split_examples(once, val, seed=0, n_select=50, n_fresh=100).notes
    assert notes[1].startswith("2 of the 12 questions stand with contradicting outputs, as q='q ")
    assert "3 of the 5 validation examples are duplicates" in notes[0] and len(notes) == 2
    numbered = [asked(f"q {i // 2}", "ab"[i // 2 % 2], row=i, why=f"for {i}") for i in range(12)]
    notes = split_examples(numbered, None, seed=0, n_select=50, n_fresh=100).notes
    assert len(notes) == 1 and "6 of the 12" in notes[0] and "6 of them are copies" in notes[0]


def test_documents_with_a_common_frame_are_different_questions() -> None:
    frame = [dspy.Example(q="a" * 2500 + str(i) + "z" * 2500, a="x").with_inputs("q") for i in range(20)]
    split = split_examples(frame, None, seed=0, n_select=50, n_fresh=100)
    assert (len(split.train), len(split.select), len(split.fresh)) == (8, 7, 5) and split.notes == ()
