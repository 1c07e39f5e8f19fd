"""The metrics by name: what counts as the same answer, and what a wrong one is told."""

from __future__ import annotations

import pickle
from typing import Any, Literal

import dspy
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuesmith.programs.tasks import METRICS, Choice, ExactMatch, JsonFields, Number, SetF1, TokenF1
from cuesmith.programs.tasks.answers import LETTERS, is_number, number_in, options_in
from cuesmith.teleprompters.runtime.fingerprint import fingerprint
from cuesmith.teleprompters.runtime.metric import Metric, MetricFunction


def judged(metric: MetricFunction, gold: object, answer: object, **more: object) -> tuple[float, str]:
    example = dspy.Example(question=more.pop("question", "?"), answer=gold, **more).with_inputs("question")
    return Metric(metric).call(example, dspy.Prediction(answer=answer))[:2]


# --- numbers ---


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "18"),
        ("18", "She makes 9 * 2 = $18 every day."),
        ("18", "<<9*2=18>>18 dollars\n#### 18"),
        ("#### 18", "18"),
        ("18", "The numbers 3 and 4 first. #### 18 (of 20 in all... no: #### 18"),
        ("1,234", "$1234.00"),
        ("1234", "1,234 apples"),
        ("1234567", "1'234'567"),
        ("1000", "1e3"),
        ("0.001", "1E-3"),
        ("-5", "-5"),
        ("-5", "it is −5 degrees"),
        ("-5", "-$5"),
        ("-5", "$-5"),
        ("5", "10-5"),
        ("5", "the range is 3–5"),
        ("3/4", "0.75"),
        ("0.5", "\\frac{1}{2}"),
        ("2.5", "2 1/2 cups"),
        ("50%", "50"),
        ("50", "50 %"),
        ("0.5", "50%"),
        ("12", "\\boxed{12}, since 7 is out"),
        ("1000", "\\$1{,}000"),
        (".5", "0.5"),
        ("8", "eight"),
        ("21", "Twenty-one."),
        ("80", "eighty"),
        ("7", "**7**"),
        ("6", "so 6."),
        ("5", "5kg"),
        ("30", "x2 gives 30"),
    ],
)
def test_the_last_number_counts_however_it_is_written(gold: str, answer: str) -> None:
    assert judged(Number(), gold, answer) == (1.0, "")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "17"),
        ("18", "18 of 20"),
        ("18", ""),
        ("18", "none"),
        ("1000001", "1000000"),
        ("5", "-5"),
        ("50", "0.5"),
        ("1", "A1"),
        ("1", "the one I computed is 4"),
        ("3", "9" * 5000),
    ],
)
def test_another_number_does_not(gold: str, answer: str) -> None:
    assert judged(Number(), gold, answer)[0] == 0.0


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "so {}.", "${}", "#### {:,}", "= {} apples"]))
def test_any_whole_number_is_read_back(number: int, form: str) -> None:
    found = number_in(form.format(number))
    assert found is not None and found.value == number


@given(st.text())
def test_no_text_breaks_the_reading(text: str) -> None:
    number_in(text)
    (options_in(text) or LETTERS).picked(text)
    if is_number(text):
        assert judged(Number(), text, text)[0] == 1.0


@pytest.mark.parametrize(
    ("text", "so"),
    [("18", True), ("$1,200", True), ("3/4", True), ("eight", True), ("#### 5", True), ("-2.5%", True),
     ("12/25/1937", False), ("7:30", False), ("5 apples", False), ("(A)", False), ("", False), ("1.2.3", False)],
)  # fmt: skip
def test_what_is_a_number_and_nothing_else(text: str, so: bool) -> None:
    assert is_number(text) is so


# --- options ---

BBH = "Which?\nOptions:\n(A) a dog\n(B) a cat\n(C) Ambiguous"
YES_NO = "Is it?\nOptions:\n- Yes\n- No"
LINES = "Which?\nA. first\nB. second"
INLINE = "Which is sarcastic? (a) Good (s) one. (b) Fine day."
NAMED = "Which?\n  choice: True\n  choice: False"


@pytest.mark.parametrize(
    ("question", "gold", "answer"),
    [
        (BBH, "(B)", "(B)"),
        (BBH, "(B)", "B"),
        (BBH, "(B)", "b."),
        (BBH, "(B)", "(b)"),
        (BBH, "(B)", "B) a cat"),
        (BBH, "(B)", "B: a cat"),
        (BBH, "(B)", "a cat"),
        (BBH, "(B)", "A cat."),
        (BBH, "(B)", "The answer is (B)."),
        (BBH, "(B)", "The answer is B"),
        (BBH, "(B)", "Answer: B"),
        (BBH, "(B)", "It is option B because cats purr."),
        (BBH, "(B)", "**(B)** a cat"),
        (BBH, "(B)", "\\boxed{B}"),
        (BBH, "(B)", "\\boxed{\\text{(B)}}"),
        (BBH, "(B)", "Not (A), but (B)"),
        (BBH, "(B)", "Therefore B."),
        (BBH, "(A)", "A"),
        (BBH, "(A)", "A dog"),
        (BBH, "(A)", "The answer is A."),
        (BBH, "(C)", "It is ambiguous"),
        (YES_NO, "Yes", "yes"),
        (YES_NO, "Yes", "Yes, for there is no other way."),
        (YES_NO, "No", "no."),
        (LINES, "B", "(B)"),
        (LINES, "B", "second"),
        (INLINE, "(b)", "b"),
        (NAMED, "True", "true"),
        ("Which?", "(B)", "B"),
        ("Which?", "B", "The answer is (B)"),
        (BBH, "Monsters, Inc", "monsters, inc."),
    ],
)
def test_an_option_is_picked_by_letter_or_text(question: str, gold: str, answer: str) -> None:
    assert judged(Choice(), gold, answer, question=question) == (1.0, "")


@pytest.mark.parametrize(
    ("question", "gold", "answer"),
    [
        (BBH, "(A)", "A reasonable person would say so"),
        (BBH, "(A)", "A cat"),
        (BBH, "(B)", "(C)"),
        (BBH, "(B)", "a dog or a cat"),
        (BBH, "(B)", ""),
        (BBH, "(B)", "(D)"),
        (BBH, "(B)", "Z"),
        (YES_NO, "Yes", "No, yes is wrong"),
        (YES_NO, "No", "N"),
        ("Which?", "(B)", "(A)"),
        (BBH, "Monsters, Inc", "(A)"),
    ],
)
def test_another_option_or_none_is_wrong(question: str, gold: str, answer: str) -> None:
    assert judged(Choice(), gold, answer, question=question)[0] == 0.0


def test_several_accepted_options() -> None:
    accepted = ("a", "b")
    for answer, right in (("a", 1.0), ("b", 1.0), ("c", 0.0)):
        question = "Which?\n  choice: a\n  choice: b\n  choice: c"
        assert judged(Choice(), "a", answer, question=question, accepted=accepted)[0] == right


# --- texts and lists ---


def test_f1_is_that_of_squad() -> None:
    assert judged(TokenF1(), "the Eiffel Tower", "Eiffel tower!") == (1.0, "")
    assert judged(TokenF1(), "Eiffel Tower", "a tower in Paris")[0] == pytest.approx(0.4)
    assert judged(TokenF1(), "x", "eiffel tower", accepted=("x", "eiffel tower"))[0] == 1.0
    assert judged(TokenF1(), "the", "")[0] == 1.0 and judged(TokenF1(), "the", "cat")[0] == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (["b", "A"], 1.0),
        ("a, b", 1.0),
        ('["a", "b"]', 1.0),
        ("- a\n- b", 1.0),
        (["a", "a", "b"], 1.0),
        (["a"], 2 / 3),
        (["a", "b", "c", "d"], 2 / 3),
        ([], 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_sets_do_not_care_for_order_and_form(answer: object, score: float) -> None:
    assert judged(SetF1(), ["a", "b"], answer)[0] == pytest.approx(score)


def test_a_wrong_set_is_told_what_is_missing_and_what_is_too_much() -> None:
    assert judged(SetF1(), ["a", "b"], ["b", "c"]) == (0.5, "missing: a; not expected: c")
    assert judged(SetF1(), [], []) == (1.0, "") and judged(SetF1(), [], ["x"])[0] == 0.0
    assert judged(SetF1(), [{"k": 1, "t": "x"}], [{"t": "X", "k": 1}])[0] == 1.0
    many = judged(SetF1(), [f"m{k}" for k in range(20)], [])[1]
    assert many.endswith("m7 and 12 more")


# --- records ---


class Kinds(pydantic.BaseModel):
    repair: bool
    other: bool


class Ticket(pydantic.BaseModel):
    urgency: Literal["high", "low"]
    kinds: Kinds
    due: str | None = pydantic.Field(None, alias="due date")


GOLD: dict[str, Any] = {"urgency": "high", "kinds": {"repair": True, "other": False}}


def test_a_record_is_the_mean_of_its_fields_and_the_wrong_ones_are_named() -> None:
    answer = Ticket.model_validate({"urgency": "low", "kinds": {"repair": True, "other": True}})
    score, told = judged(JsonFields(), GOLD, answer)
    assert score == 0.25
    assert told == "wrong: answer.urgency (expected 'high', got 'low'); answer.kinds.other (expected False, got True)"
    assert judged(JsonFields(), GOLD, Ticket.model_validate(GOLD)) == (1.0, "")


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        (GOLD, {**GOLD, "urgency": "HIGH"}, 1.0),
        (GOLD, '{"urgency": "high", "kinds": {"repair": true, "other": false}}', 1.0),
        (GOLD, '```json\n{"urgency": "high"}\n```', 0.5),
        (GOLD, "nothing", 0.0),
        (GOLD, None, 0.0),
        (GOLD, {**GOLD, "due": "Monday"}, 2 / 3),
        ({"total": 5}, {"total": "5.0"}, 1.0),
        ({"total": 5}, {"total": True}, 0.0),
        ({"paid": True}, {"paid": "true"}, 1.0),
        ({"due": None}, {"due": None}, 1.0),
        ({"due": None}, {}, 1.0),
        ({"due": None}, {"due": "x"}, 0.0),
        ({"tags": ["a", "b"]}, {"tags": ["b"]}, 2 / 3),
        ({}, {}, 1.0),
        ({}, {"x": None}, 1.0),
        ({}, "x", 0.0),
        ("high", "High.", 1.0),
    ],
)
def test_fields_are_compared_by_what_they_are(gold: object, answer: object, score: float) -> None:
    assert judged(JsonFields(), gold, answer)[0] == pytest.approx(score)


def test_a_models_alias_is_the_name_of_its_field() -> None:
    answer = Ticket.model_validate({**GOLD, "due date": "Monday"})
    assert judged(JsonFields(), {**GOLD, "due date": "monday"}, answer)[0] == 1.0


def test_several_outputs_count_the_same() -> None:
    metric = JsonFields(("urgency", "count"))
    example = dspy.Example(text="x", urgency="high", count=3).with_inputs("text")
    assert Metric(metric).call(example, dspy.Prediction(urgency="high", count="3")) == (1.0, "", {})
    assert Metric(metric).call(example, dspy.Prediction(urgency="low", count="3"))[0] == 0.5
    with pytest.raises(AttributeError):
        metric(example, dspy.Prediction(urgency="high"))


def test_many_wrong_fields_and_long_values_stay_short() -> None:
    told = judged(JsonFields(), {f"f{k}": "x" * 500 for k in range(30)}, {})[1]
    assert len(told) < 1500 and told.endswith("and 22 more")


def test_only_a_full_score_is_a_success_while_dspy_bootstraps() -> None:
    example = dspy.Example(question="?", answer=["a", "b"]).with_inputs("question")
    for metric in (SetF1(), JsonFields()):
        assert metric(example, dspy.Prediction(answer=["a"]), trace=[]) is False
        assert metric(example, dspy.Prediction(answer=["b", "a"]), trace=[]) is True


# --- all of them ---


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_known_by_their_content(name: str) -> None:
    field: Any = ("a",) if name == "json_fields" else "a"
    other: Any = ("b",) if name == "json_fields" else "b"
    one, same, another = METRICS[name](field), METRICS[name](field), METRICS[name](other)
    assert one == same == pickle.loads(pickle.dumps(one)) and one != another
    assert fingerprint(one) == fingerprint(same) != fingerprint(another)


@pytest.mark.parametrize("metric", [ExactMatch("x"), Number("x"), Choice("x"), TokenF1("x"), SetF1("x"),
                                    JsonFields(("x",))])  # fmt: skip
def test_a_missing_field_is_an_error_and_no_zero(metric: MetricFunction) -> None:
    with pytest.raises(AttributeError):
        metric(dspy.Example(x="a"), dspy.Prediction(answer="a"))


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("80796964954", "80796965004", False),
        ("80796964954", "80,796,964,954", True),
        ("0.3", str(0.1 + 0.2), True),
        ("20", "one hundred and twenty", False),
        ("120", "One hundred and twenty.", True),
        ("21", "two, nineteen, twenty-one", True),
        ("2300000", "two million three hundred thousand", True),
        ("5", "5 million", False),
        ("5000000", "about $5 million", True),
        ("5", "minus five", False),
        ("-5", "It is minus 5.", True),
        ("-5", "negative $5", True),
        ("5", "10 minus 5", True),
        ("5", "5k", False),
        ("2500", "some 2.5k", True),
        ("5000000", "$5m", True),
        ("5", "5m", True),
        ("5", "5km", True),
        ("5000000000", "€5bn", True),
        ("5000000000000", "5 trillion", True),
        ("5000000000000", "five trillion", True),
        ("1234.56", "It costs 1.234,56 €.", True),
        ("-1234567.5", "-1.234.567,5", True),
        ("1234567", "1.234.567", True),
        ("12.5", "12,5 %", True),
        ("12.50", "€12,50", True),
        ("1.234", "1.234", True),
        ("1234", "1,234", True),
        ("5", "1,2,3,4,5", True),
        ("5", "between 3,5", True),
        ("234.5", "0.234,5", False),
    ],
)
def test_a_number_is_no_other_number(gold: str, answer: str, right: bool) -> None:
    assert judged(Number(), gold, answer)[0] == float(right)


def test_a_code_is_no_number() -> None:
    assert not is_number("02160") and is_number("0.5") and is_number("0")


@pytest.mark.parametrize("said", ["(A) or (B)", "A/B", "A, B and C", "Not A", "not (B)."])
def test_more_than_one_option_is_none(said: str) -> None:
    assert LETTERS.picked(said) is None and LETTERS.picked("(B)") == LETTERS.picked("b.") == 1


FRUIT = "Which?\n(A) red apple\n(B) green pear\n(C) not ripe"


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("The answer is (A) or (B).", None),
        ("It is either A or B", None),
        ("Neither A nor B.", None),
        ("It's between (A) and (B)", None),
        ("Both (A) red apple and (B) green pear", None),
        ("Answer: A/B", None),
        ("The answer is not (A).", None),
        ("The answer isn't (A)", None),
        ("Definitely not B", None),
        ("red apple or green pear", None),
        ("It is not a red apple", None),
        ("(A) is wrong", None),
        ("A or B, but B is better: (B)", 1),
        ("(A) or (B)? I say (B).", 1),
        ("It is not (A), it is (B)", 1),
        ("(A) is wrong, (C) is not the answer, so (B)", 1),
        ("The answer is B and A is wrong", 1),
        ("The answer is (B), not (A) or (C)", 1),
        ("I would pick (B) rather than (A)", 1),
        ("(B), since (A) and (C) are out", 1),
        ("I am not sure, but (B)", 1),
        ("Either way, the answer is (B)", 1),
        ("green pear, not red apple", 1),
        ("It is not ripe", 2),
        ("Not ripe, because it is green", 2),
    ],
)
def test_an_option_that_is_named_is_not_always_picked(said: str, place: int | None) -> None:
    options = options_in(FRUIT)
    assert options is not None and options.picked(said) == place


def test_yes_or_no_is_neither() -> None:
    options = options_in(YES_NO)
    assert options is not None
    assert [options.picked(said) for said in ("Yes or no", "yes/no", "No, not yes.", "Yes and it is so")] == [
        None, None, 1, 0
    ]  # fmt: skip
