"""What can be known to be wrong before the first paid call: inputs that do not fit, a metric that refuses the truth.

Nothing here calls a model. Source: ours.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, TypeAlias, get_args, get_origin

import dspy
from dspy.adapters.utils import annotation_allows_none
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from cuesmith.teleprompters.runtime._dspy import PaidCall, async_tools, modules_of, named_predictors, no_calls
from cuesmith.teleprompters.runtime.compilation import Note
from cuesmith.teleprompters.runtime.corpus_statistics import finite
from cuesmith.teleprompters.runtime.evidence import labels_of
from cuesmith.teleprompters.runtime.metric import BadScore, Metric
from cuesmith.teleprompters.runtime.remarks import listed

_LOOKED_AT = 100
"""Examples of a set whose values are compared with the signature's types. Ours."""

_Verdict: TypeAlias = "float | AttributeError | BadScore | None"
"""A score of given outputs, or why there is none; None where that is not known."""

PATIENCE = 2.0
"""Seconds that the metric has for a gold answer. Ours."""


@dataclass(frozen=True)
class Takes:
    """What a program can be called with.

    Attributes:
        fields: The names that it knows, in order; empty if it tells none.
        needed: Those that it cannot do without.
        open: Whether it takes others as well.
        gives: The names of what it answers, where they are known.
        certain: Whether that is certain; else it is what its only predictor takes, which its code may fill otherwise.
    """

    fields: tuple[str, ...] = ()
    needed: frozenset[str] = frozenset()
    open: bool = True
    gives: frozenset[str] = frozenset()
    certain: bool = False


def takes(program: dspy.Module) -> Takes:
    """Return what a program can be called with, by its `forward` or, where that takes anything, by its signature."""
    if type(program).__call__ not in (dspy.Module.__call__, dspy.Predict.__call__):
        return Takes()
    try:
        name = "forward" if hasattr(type(program), "forward") else "aforward"
        forward = object.__getattribute__(program, name)  # dspy warns of whoever asks for it in the common way
        parameters = inspect.signature(forward, follow_wrapped=False).parameters.values()
    except (AttributeError, TypeError, ValueError):
        return Takes()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    fields = tuple(p.name for p in named)
    required = frozenset(p.name for p in named if p.default is p.empty)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return Takes(fields, required, open=False, certain=True)
    inner = _inner(program)
    if inner is not None:  # dspy's own: what it is called with goes to its signature
        own = _takes_of(inner)
        return replace(own, fields=(*fields, *own.fields), needed=required | own.needed, certain=True)
    predictors = named_predictors(program)
    if fields or len(predictors) != 1:
        return Takes(fields, required, certain=bool(fields))
    return _takes_of(predictors[0][1].signature)


def check_inputs(program: dspy.Module, **sets: Sequence[dspy.Example] | None) -> tuple[Note, ...]:
    """Compare the marked inputs of all examples with what the program takes.

    Args:
        program: The student.
        **sets: Name -> examples, each with its inputs marked; None if there are none.

    Returns:
        What may be meant so.

    Raises:
        ValueError: If the program cannot work on one.
    """
    known, notes = takes(program), dict[str, Note]()
    kinds = _kinds(program) if known.certain else {}
    for name, examples in sets.items():
        for text in (*_odd_values(name, examples or (), kinds), *_out_of_reach(name, examples or (), program)):
            notes.setdefault(text, Note("inputs", text))
        seen: set[tuple[frozenset[str], frozenset[str]]] = set()
        for i, example in enumerate(examples or ()):
            marked, keys = frozenset(example.inputs().keys()), frozenset(example.keys())
            if (marked, keys) in seen:
                continue
            seen.add((marked, keys))
            if (wrong := _misfit(f"{name}[{i}]", program, known, marked, keys)) is not None:
                if not wrong.may_be_meant:
                    raise ValueError(wrong.text)
                notes.setdefault("inputs", Note("inputs", wrong.text))
    return tuple(notes.values())


def check_parts(program: dspy.Module) -> tuple[Note, ...]:
    """Say which parts of a program do not work as they look: tools that fail, predictors that dspy does not see."""
    return (*_unawaited(program), *_hidden(program))


def _unawaited(program: dspy.Module) -> Iterator[Note]:
    """Say which tools fail at every call: those that can only be awaited, in a program that cannot be."""
    tools = [] if hasattr(type(program), "aforward") else async_tools(program)
    if tools:
        told = f"every call of the tool {tools[0]} will fail: it is async, and {_described(program)} has no aforward()"
        mend = "give it one that awaits its modules' acall(), or dspy.configure(allow_tool_async_sync_conversion=True)"
        yield Note("parts", f"{told}: {mend}")


def _hidden(program: dspy.Module) -> Iterator[Note]:
    """Say how many predictors stand in containers of containers, where dspy's own walk ends."""
    known, modules = {id(predictor) for _, predictor in named_predictors(program)}, modules_of(program)
    known |= {id(inner) for module in modules if module._compiled for inner in modules_of(module)}  # frozen
    held = [one for one in modules if isinstance(one, dspy.Predict) and id(one) not in known]
    if held:
        several = f"{len(held)} predictors stand" if len(held) > 1 else "a predictor stands"
        told = f"{several} inside a list or dict of lists or dicts, where dspy does not look, and will not be compiled"
        first = f"the first: {held[0].signature.signature}"
        yield Note("parts", f"{told} ({first}): make each list or dict an attribute of {_described(program)}")


def _kinds(program: dspy.Module) -> dict[str, TypeAdapter[object]]:
    """Return input -> what tells whether a value is of its type, for what dspy's own modules are called with."""
    signature, found = _inner(program), dict[str, TypeAdapter[object]]()
    for name, info in signature.input_fields.items() if signature is not None else ():
        if info.annotation is not str:  # anything can be shown as text
            with suppress(PydanticUserError):
                found[name] = TypeAdapter(info.annotation)
    return found


def _odd_values(name: str, examples: Sequence[dspy.Example], kinds: Mapping[str, TypeAdapter[object]]) -> Iterator[str]:
    """Yield what of the examples' values cannot be meant so: nothing where something is due, or another type."""
    none: Counter[str] = Counter(field for example in examples for field, value in example.items() if value is None)
    for field, n in none.items():
        if field in kinds and _fits(None, kinds[field]):
            continue
        if n < len(examples) or len(examples) == 1 or field in kinds:
            told = f"{n} of {len(examples)} examples of {name}"
            yield f"{told} have None as {field!r}: leave them out, if it is not meant so."
        else:
            yield f"All {n} examples of {name} have None as {field!r}."
    for field, kind in kinds.items():
        held = [(i, e[field]) for i, e in enumerate(examples[:_LOOKED_AT]) if e.get(field) is not None]
        odd = [(i, value) for i, value in held if not _fits(value, kind)]
        if odd:
            i, value = odd[0]
            yield f"{name}[{i}] has {listed({field: value})}, a {type(value).__name__}: the signature has another type."


def _out_of_reach(name: str, examples: Sequence[dspy.Example], program: dspy.Module) -> Iterator[str]:
    """Yield what of the examples' labels the program cannot answer, for its field has other options."""
    signature = _inner(program)
    for field, info in signature.output_fields.items() if signature is not None else ():
        options = {_plain(option) for option in _options(info.annotation)}
        if not options:
            continue
        held = [e[field] for e in examples if isinstance(e.get(field), str | int)]
        other = Counter(value for value in held if _plain(value) not in options)
        if other:
            shown = ", ".join(repr(value) for value, _ in other.most_common(3))
            yield (
                f"{other.total()} of {len(examples)} examples of {name} have {shown} as {field!r}, which is none of "
                f"the options that {_described(program)} has for it: it can never be right on them."
            )


def _options(kind: object) -> Iterator[object]:
    """Yield what a field of that type may be, where these are a few; nothing for other types."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif isinstance(kind, type) and issubclass(kind, Enum):
        for member in kind:
            yield from (member.value, member.name)


def _plain(value: object) -> str:
    return " ".join(str(value).split()).casefold()


def _fits(value: object, kind: TypeAdapter[object]) -> bool:
    try:
        kind.validate_python(value)
    except (ValidationError, UnicodeError, RecursionError):
        return False
    return True


@dataclass(frozen=True)
class _Misfit:
    text: str
    may_be_meant: bool


def _misfit(
    where: str, program: dspy.Module, known: Takes, marked: frozenset[str], keys: frozenset[str]
) -> _Misfit | None:
    missing = [field for field in known.fields if field in known.needed - marked]
    unknown = sorted(marked - set(known.fields)) if known.fields or not known.open else []
    if known.certain and (answers := sorted(known.gives & set(unknown))):
        told = f"{where} has {_names(answers)} marked as input, which {_described(program)} is to answer"
        return _Misfit(f"{told}: mark the inputs by .with_inputs({_names(known.fields)})", False)
    if known.certain and known.open and known.gives and unknown and not missing:
        return _Misfit(
            f"{where} has {_names(unknown)} marked as input, which {_described(program)} does not take: "
            f"it takes {_names(known.fields)}",
            True,
        )
    if not missing and (known.open or not unknown):
        return None
    absent = [field for field in missing if field not in keys]
    wanted = [field for field in known.fields if field in known.needed or field in marked or field in keys]
    mark = f".with_inputs({', '.join(map(repr, wanted))})" if wanted else ".with_inputs() of what it takes"
    if absent and unknown:
        mend = f"rename {_names(unknown)} to {_names(absent)}, and mark the inputs by {mark}"
    elif absent:
        mend = f"the example has no {_names(absent)}"
    else:
        mend = f"mark the inputs by {mark}"
    text = (
        f"{where} has {_names(sorted(marked))} marked as input, but {_described(program)} takes "
        f"{_names(known.fields) or 'no input'}: {mend}"
    )
    # A field that the examples do not have at all, beside others that fit, may be left out on purpose.
    left_out = known.open and not unknown and absent == missing and bool(marked & set(known.fields))
    guessed = not known.certain
    if guessed and marked & set(known.fields):
        return None
    return _Misfit(text, left_out or guessed)


def _inner(program: dspy.Module) -> type[dspy.Signature] | None:
    """Return the signature that one of dspy's own modules is called by; None for a program of the user's."""
    while type(program).__module__.split(".")[0] == "dspy":
        signature = getattr(program, "signature", None)
        if isinstance(signature, type) and issubclass(signature, dspy.Signature):
            return signature
        held = getattr(program, "module", None)  # BestOfN, Refine
        if not isinstance(held, dspy.Module):
            predictors = named_predictors(program)
            found: type[dspy.Signature] | None = predictors[0][1].signature if len(predictors) == 1 else None
            return found
        program = held
    return None


def _takes_of(signature: type[dspy.Signature]) -> Takes:
    fields = signature.input_fields
    needed = (n for n, info in fields.items() if info.default is PydanticUndefined and _must_be(info.annotation))
    return Takes(tuple(fields), frozenset(needed), gives=frozenset(signature.output_fields))


def _must_be(annotation: object) -> bool:
    history = isinstance(annotation, type) and issubclass(annotation, dspy.History)
    return not history and not annotation_allows_none(annotation)


def _described(program: dspy.Module) -> str:
    return f"the program ({type(program).__name__})"


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


async def check_gold(
    metric: Metric,
    examples: Sequence[dspy.Example],
    program: dspy.Module,
    threshold: float | None,
    scored: Sequence[dspy.Example] = (),
) -> tuple[Note, ...]:
    """Ask the metric what it gives to the right answer of an example: it should not refuse it.

    It is called once, once more where the examples have labels that the program does not answer, and at most three
    times if something seems wrong; never where it calls a model, raises, takes more than `PATIENCE` seconds, or where
    the examples have no labels.

    Args:
        metric: The judge.
        examples: As given; one with labels is taken.
        program: The student, for the names of its outputs.
        threshold: The score that a search counts as a success; None if it asks for none.
        scored: More examples that it will judge: one that lacks a label of the others' is asked about too.

    Raises:
        ValueError: If all of `scored` lack what it reads, if it reads a label of a prediction that the program does not
            answer, or if it returns no score for right answers.
    """
    right = _right_answers(examples, program)
    labelled = [(i, e, labels) for i, (e, labels) in enumerate(zip(examples, right, strict=True)) if labels]
    if not labelled:
        return ()
    i, example, labels = labelled[0]
    lacking = next((each for each in scored if labels.keys() - each.keys()), None)
    if lacking is not None and isinstance(error := await _judged(metric, lacking, labels), AttributeError):
        told = [f"In the valset: {n.text}" for n in _unknown_field(error, program, [(i, lacking, labels_of(lacking))])]
        if told and all(labels.keys() - each.keys() for each in scored):
            raise ValueError(told[0])
        return tuple(Note("gold", text) for text in told)
    if (field := await _label_of_no_answer(metric, example, labels, program)) is not None:
        answers = _names(sorted(_answered(program)))
        raise ValueError(
            f"the metric reads {field!r} of a prediction, which {_described(program)} does not answer: it "
            f"answers {answers}"
        )
    score = await _judged(metric, example, labels)
    if isinstance(score, BadScore):
        others = [await _judged(metric, e, each) for _, e, each in labelled[1:3]]
        if all(isinstance(other, BadScore) for other in others):
            raise ValueError(f"{score}, as it did for the right answer of example {i} ({listed(labels)})")
        return ()
    if isinstance(score, AttributeError):
        return tuple(_unknown_field(score, program, labelled))
    if score is None or (score > 0.0 and (threshold is None or score >= threshold)):
        return ()
    if score > 0.0:
        return (
            Note(
                "threshold",
                f"{_said(i, labels, score)}, which is below the threshold {threshold:g}: if no "
                f"answer scores more, give threshold={score:g}.",
            ),
        )
    other = next((each for _, _, each in labelled[1:] if each != labels), None)
    if other is not None:  # of a loss, 0 is the best
        wrong = await _judged(metric, example, other)
        if isinstance(wrong, float) and wrong < score:
            return ()
    return (
        Note(
            "gold",
            f"{_said(i, labels, score)}: does it compare what it should, and are the labels what the "
            "program is to answer?",
        ),
    )


def _right_answers(examples: Sequence[dspy.Example], program: dspy.Module) -> list[dict[str, object]]:
    """Return the labels of examples as the program would answer them: a file has its numbers as text."""
    adapters = {}
    for name, info in (field for _, p in named_predictors(program) for field in p.signature.output_fields.items()):
        if info.annotation is not str:
            with suppress(PydanticUserError):  # a type that only the program's adapter reads
                adapters[name] = TypeAdapter(info.annotation)

    def read(name: str, label: object) -> object:
        if isinstance(label, str) and name in adapters:
            with suppress(ValueError, PydanticUserError):  # then it is as it is
                return adapters[name].validate_python(label)
        return label

    return [{name: read(name, label) for name, label in labels_of(example).items()} for example in examples]


def _answered(program: dspy.Module) -> frozenset[str]:
    """Return all that is in a program's predictions, for dspy's own that answer their signature and nothing else."""
    while type(program) in (dspy.BestOfN, dspy.Refine) and isinstance(program.module, dspy.Module):
        program = program.module
    exact = type(program) in (dspy.Predict, dspy.ChainOfThought)
    fields = (p.signature.output_fields for _, p in named_predictors(program)) if exact else ()
    return frozenset(name for each in fields for name in each)


async def _label_of_no_answer(
    metric: Metric, example: dspy.Example, labels: Mapping[str, object], program: dspy.Module
) -> str | None:
    """Return the label that the metric looks for in a prediction, although the program never answers it."""
    answered = _answered(program)
    if not answered or labels.keys() <= answered:
        return None
    error = await _judged(metric, example, {name: value for name, value in labels.items() if name in answered})
    found = re.fullmatch(r"'Prediction' object has no attribute '(\w+)'", str(error))
    missing = isinstance(error, AttributeError) and found is not None and found[1] in labels.keys() - answered
    return found[1] if missing and found is not None else None


def _said(i: int, labels: Mapping[str, object], score: float) -> str:
    return f"The metric gives the right answer of example {i} ({listed(labels)}) the score {score:g}"


def _unknown_field(
    error: AttributeError, program: dspy.Module, labelled: Sequence[tuple[int, dspy.Example, object]]
) -> Iterator[Note]:
    """Yield a note if what the metric reads is no field of what it reads it from."""
    found = re.fullmatch(r"'(Prediction|Example)' object has no attribute '(\w+)'", str(error))
    if found is None:
        return
    kind, field = found.groups()
    fields = {name for _, example, _ in labelled for name in example.toDict()}
    if kind == "Prediction":
        if _inner(program) is None:
            return  # its code may answer by names of its own
        fields |= {name for _, p in named_predictors(program) for name in p.signature.output_fields}
    if field not in fields:
        what = "a prediction" if kind == "Prediction" else "an example"
        yield Note("gold", f"The metric reads {field!r} of {what}, which has none: there are {_names(sorted(fields))}.")


async def _judged(metric: Metric, example: dspy.Example, labels: Mapping[str, object]) -> _Verdict:
    """Return the score of given outputs, or why there is none where that is known; None where it cannot be asked."""
    answer = dspy.Prediction(**labels)
    with dspy.context(trace=None), no_calls() as tried:
        judging = _awaited(metric, example, answer) if metric.is_async else _in_thread(metric, example, answer)
        try:
            score = await asyncio.wait_for(judging, PATIENCE)
        except TimeoutError:
            return None
    return None if tried else score


async def _awaited(metric: Metric, example: dspy.Example, answer: dspy.Prediction) -> _Verdict:
    try:
        return (await metric.acall(example, answer)).score
    except (AttributeError, BadScore) as error:
        return error
    except (Exception, PaidCall):
        return None


async def _in_thread(metric: Metric, example: dspy.Example, answer: dspy.Prediction) -> _Verdict:
    """Judge in a thread that nobody waits for at the end, should it hang."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Verdict] = loop.create_future()

    def tell(score: _Verdict) -> None:
        if not done.done():
            done.set_result(score)

    def judge() -> None:
        score: _Verdict = None
        try:
            score = metric.call(example, answer).score
        except (AttributeError, BadScore) as error:
            score = error
        except BaseException:  # of its own thread: whatever it is, there is no score
            pass
        with suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(tell, score)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(judge,), daemon=True, name="cuesmith-preflight").start()
    return await done


def check_corpus(metric: Metric, examples: Sequence[dspy.Example], program: dspy.Module) -> tuple[Note, ...]:
    """Ask a metric's `corpus` to judge the right answers, and the same with one missing.

    Examples without labels give no answers to judge. Where it reads of a prediction what the program may answer but the
    labels have not, nothing is known before the student has answered.

    Args:
        metric: The metric; it may have no `corpus`.
        examples: Those that it will judge, as given.
        program: The student, for the names of its outputs.

    Raises:
        ValueError: If it raises, calls a model, or returns no finite number.
    """
    labels = _right_answers(examples, program)
    if metric.corpus is None or not all(labels):
        return ()
    right: list[dspy.Prediction | None] = [dspy.Prediction(**each) for each in labels]
    values = []
    for predictions, what in ((right, "the right answers"), ([None, *right[1:]], "a missing answer (None)")):
        with no_calls() as tried:
            try:
                values.append(finite(metric.corpus, examples, predictions))
                error: BaseException | None = None
            except (Exception, PaidCall) as raised:
                error = raised
        if error is not None and _is_of_the_program(error, program, {name for each in labels for name in each}):
            return ()
        if error is not None or tried:
            told = tried[-1] if tried else f"{type(error).__name__}: {error}"
            raise ValueError(f"the metric's `corpus` must judge {what}, and return a finite number: {told}") from error
    if any(values):
        return ()
    return (
        Note(
            "gold",
            "The metric's `corpus` gives the right answers of all examples the value 0: do they have the "
            "class that it looks for, and more than one?",
        ),
    )


def _is_of_the_program(error: BaseException, program: dspy.Module, labels: Collection[str]) -> bool:
    """Whether a field was looked for in a prediction that has the labels alone, and that the program may answer."""
    found = re.fullmatch(r"'Prediction' object has no attribute '(\w+)'", str(error))
    own = {name for _, predictor in named_predictors(program) for name in predictor.signature.output_fields} - {*labels}
    if isinstance(error, AttributeError) and found is not None:
        return found[1] in own or _inner(program) is None
    return isinstance(error, KeyError) and error.args[:1] != () and error.args[0] in own
