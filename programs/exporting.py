"""A program's prompts for use without dspy: chat messages, a request of OpenAI's kind, a page to read.

The messages are those that dspy's adapter really makes: each predictor is called, with a model that takes note of what
it is sent and answers nothing. Source: ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import dspy
from pydantic import TypeAdapter

from cuesmith.modules.prompter import Prompter
from cuesmith.programs.report import json_text
from cuesmith.teleprompters.runtime._dspy import modules_of, named_predictors
from cuesmith.teleprompters.runtime.provenance import Provenance, provenance

Format = Literal["messages", "openai", "markdown"]

SENT = ("temperature", "max_tokens", "max_completion_tokens", "top_p", "stop", "seed", "n")
"""Options of a model or a predictor that a request keeps. All others stay out, keys and addresses among them."""

MODEL = "{model}"
"""Stands in a request for the model's name."""


class _Heard(Exception):
    """What an adapter was about to send."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> None:
        super().__init__("not sent")
        self.messages = [dict(message) for message in messages]
        self.options = dict(options)


class _Listener(dspy.LM):  # type: ignore[misc]
    """A model that answers nothing. It has no native features but schemas, so that all else is said in the messages."""

    supports_function_calling = supports_reasoning = False
    supports_response_schema = True
    supported_params = frozenset({"response_format"})

    def __call__(self, prompt: str | None = None, *, messages: Any = None, **options: Any) -> Any:
        """Raise what is heard."""
        raise _Heard(messages or [{"role": "user", "content": prompt}], options)


def export(program: dspy.Module, format: Format, inputs: Mapping[str, object] | None = None) -> str:
    """Return the prompts of a program for use without dspy and without Cuesmith.

    "messages" are the chat messages that the configured adapter (`dspy.settings.adapter`; dspy's default is
    `ChatAdapter`) sends, as JSON. "openai" is the body of a request to `chat.completions`, as JSON: a placeholder for
    the model, the messages, the model's options such as the temperature, and `response_format` with the schema of the
    output fields (or `json_object`, where a field has a type that no strict schema allows). Its messages are
    `JSONAdapter`'s, as a schema and another form of the reply would contradict each other: instructions and
    demonstrations are the same, the lines on the form of the reply are not. What such a prompt scores is found out
    under `dspy.context(adapter=dspy.JSONAdapter())`. "markdown" is a page for people.

    A program with one predictor gives its messages, or its body; one with several gives an object with those of each,
    by the predictor's name. The placeholder of an input field is its name in braces, in the last message. Put the value
    there by `str.replace`: other messages may have braces of their own.

    Args:
        program: Any program, compiled or not.
        format: "messages", "openai" or "markdown".
        inputs: Values of input fields, to be written in place of their placeholders; what one predictor passes on to
            the next stays one.

    Raises:
        ValueError: If there is no such format, no predictor, no input field of a name in `inputs`, or if part of the
            program is no prompt: a local model in front of it.
    """
    if format not in get_args(Format):
        raise ValueError(f"format={format!r} must be one of {', '.join(get_args(Format))}")
    predictors = _predictors(program)
    given = dict(inputs or {})
    known = {name for predictor in predictors.values() for name in predictor.signature.input_fields}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"inputs has {unknown[0]!r}, which no predictor takes: they take {', '.join(sorted(known))}")
    if format == "markdown":
        return _page(program, {name: _heard(each, given).messages for name, each in predictors.items()})
    one = _messages if format == "messages" else _body
    found = {name: one(predictor, given) for name, predictor in predictors.items()}
    return json_text(found if len(found) > 1 else next(iter(found.values())), indent=2)


def _predictors(program: dspy.Module) -> dict[str, dspy.Predict]:
    """Return all predictors, with those of compiled programs inside, which dspy hides.

    Raises:
        ValueError: As `export`.
    """
    if any(isinstance(module, Prompter) and module.policy is not None for module in modules_of(program)):
        raise ValueError(
            "a local prompter rewrites the inputs of this program, which no prompt can say: save it instead"
        )
    named = {id(predictor): (name, predictor) for name, predictor in named_predictors(program)}
    for path, each in program.named_sub_modules(dspy.Predict):
        named.setdefault(id(each), (str(path).removeprefix("self."), each))
    if not named:
        raise ValueError(f"{type(program).__name__} has no predictors, and so no prompt to export")
    return dict(named.values())


def _messages(predictor: dspy.Predict, given: Mapping[str, object]) -> object:
    return _heard(predictor, given).messages


def _body(predictor: dspy.Predict, given: Mapping[str, object]) -> object:
    adapter = dspy.settings.adapter if isinstance(dspy.settings.adapter, dspy.JSONAdapter) else dspy.JSONAdapter()
    heard = _heard(predictor, given, adapter)
    own = getattr(predictor.lm or dspy.settings.lm, "kwargs", None) or {}
    options = {name: value for name, value in {**own, **heard.options}.items() if name in SENT and value is not None}
    return {
        "model": MODEL,
        "messages": heard.messages,
        **options,
        "response_format": _schema(heard.options["response_format"], predictor),
    }


def _schema(wanted: Any, predictor: dspy.Predict) -> object:
    """Return a response format as JSON: dspy gives a pydantic model, or that there is only JSON to be asked for."""
    if isinstance(wanted, Mapping):
        return dict(wanted)
    if any(_is_open(TypeAdapter(info.annotation).json_schema()) for info in predictor.signature.output_fields.values()):
        return {"type": "json_object"}
    name = re.sub(r"\W", "_", predictor.signature.__name__)[:64] or "reply"
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": wanted.model_json_schema()}}


def _is_open(schema: object) -> bool:
    """Whether objects of a schema have names of their own, as a dict's: dspy closes them, and only `{}` would fit."""
    if isinstance(schema, list):
        return any(map(_is_open, schema))
    if not isinstance(schema, Mapping):
        return False
    free = schema.get("type") == "object" and (not schema.get("properties") or schema.get("additionalProperties"))
    return bool(free) or any(map(_is_open, schema.values()))


def _heard(predictor: dspy.Predict, given: Mapping[str, object], adapter: dspy.Adapter | None = None) -> _Heard:
    """Return what an adapter, by default the configured one, sends for a predictor."""
    values = {name: _placeholder(name, info) for name, info in predictor.signature.input_fields.items()}
    values |= {name: value for name, value in given.items() if name in values}
    quiet: dict[str, Any] = {"callbacks": [], "trace": None, "warn_on_type_mismatch": False}
    try:
        with dspy.context(adapter=adapter or dspy.settings.adapter, **quiet):
            predictor(**values, lm=_Listener("openai/none"))
    except _Heard as heard:
        return heard
    raise ValueError(f"the predictor {predictor!r} asks no model, and so has no prompt to export")


def _placeholder(name: str, info: Any) -> object:
    """Return what stands for an input: its name in braces; a conversation has no place in one message."""
    return dspy.History(messages=[]) if info.annotation is dspy.History else f"{{{name}}}"


def _page(program: dspy.Module, prompts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    facts = provenance(program)
    parts = [f"# The prompts of {_inline(type(program).__name__)}", *([_origin(facts)] if facts else [])]
    for name, messages in prompts.items():
        parts.append(f"## Predictor {_inline(name)}")
        for message in messages:
            parts.append(f"**{message['role']}**\n\n{_fenced(message['content'])}")
    return "\n\n".join(parts) + "\n"


def _origin(facts: Provenance) -> str:
    made = f"Compiled by {_inline(facts.compiler)} of Cuesmith {_inline(facts.cuesmith)} on {_inline(facts.created)}"
    models = f"for {_inline(facts.target)}, written by {_inline(facts.optimizer)}, seed {facts.seed}"
    gained = f" Gain on fresh examples: {facts.gain}." if facts.gain and facts.gain.n else ""
    return f"{made}, {models}.{gained} Prompt {_inline(facts.prompt)}."


def _inline(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def _fenced(content: object) -> str:
    """Return a message's content in a block that nothing in it can end."""
    text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
