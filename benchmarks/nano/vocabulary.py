"""Training the embedded model's tokenizer: the fixed phrases of dspy's adapters and numbers are one token each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from cuesmith.modules.embedded.tokenizer import END, JOIN, ROLES, byte_characters, mark_words

_PIECES = r" -?\d+|\d| ?_?[A-Za-z]+|\n +(?= )| +(?= )| ?[^\s\w\x02]+\n*\x02?|\n+\x02?|\x02| |[^A-Za-z0-9\s]|\s"

_TYPES = ("int", "bool", "float")
_NOTES = ("must be a single int value", "must be True or False", "must be a single float value")
BOILERPLATE = (
    "Your input fields are:\n1. `",
    "\nYour output fields are:\n1. `",
    *(f"` ({kind}):" for kind in ("str", *_TYPES)),
    "` (Literal['",
    "\nAll interactions will be structured in the following way, with the appropriate values filled in.\n\n[[ ##",
    "\nAll interactions will be structured in the following way, with the appropriate values filled in.\n\n"
    "Inputs will have the following structure:\n\n[[ ##",
    "\n\nOutputs will be a JSON object with the following fields.\n\n{\n",
    "\n}\nIn adhering to this structure, your objective is: \n       ",
    "\n\n[[ ##",
    "[[ ##",
    " ## ]]\n",
    " ## ]]\n{",
    *(f"}}        # note: the value you produce {note}" for note in _NOTES),
    "}        # note: the value you produce must exactly match (no extra characters) one of:",
    "\n\n[[ ## completed ## ]]",
    "\n\n[[ ## completed ## ]]\nIn adhering to this structure, your objective is: \n       ",
    "[[ ## reasoning ## ]]\n",
    "[[ ## reasoning ## ]]\n{reasoning}\n\n[[ ##",
    "\n\nRespond with the corresponding output fields, starting with the field `[[ ##",
    "\n\nRespond with the corresponding output fields, starting with the field `[[ ## reasoning ## ]]`, then `[[ ##",
    " ## ]]`, then `[[ ##",
    " ## ]]`, and then ending with the marker for `[[ ## completed ## ]]`.",
    " ## ]]`",
    ", then `[[ ##",
    ", and then ending with the marker for `[[ ## completed ## ]]`.",
    *(f" (must be formatted as a valid Python {kind})" for kind in _TYPES),
    " (must be formatted as a valid Python Literal['",
    "\n\nRespond with a JSON object in the following order of fields: `",
    "`, then `",
    '{\n  "',
    '",\n  "',
    '": "',
    '": "{',
    '"\n}',
    '{\n  "reasoning": "',
    '"reasoning": "{reasoning}",\n  "',
    "This is an example of the task, though some input or output fields are not supplied.\n\n[[ ##",
    "Not supplied for this particular example.",
    "Given the fields `",
    "`, produce the fields `",
    "Follow every step in order and begin the work of each with its label "
    '("Step 1:", "Step 2:", ...):\n        Step 1:',
    "\n        Step",
    "\nStep",
    "\\nStep",
)
"""Fixed phrases of the prompts, one token each."""


def _number_merges() -> list[tuple[str, str]]:
    """Merges that make " -30" ... " 99" single tokens, whatever the training text."""
    digits, space = "0123456789", byte_characters()[32]
    merges = [(space, digit) for digit in digits] + [(space, "-")]
    merges += [(f"{space}{a}", b) for a in digits[1:] for b in digits]
    merges += [(f"{space}-", digit) for digit in digits[1:]]
    merges += [(f"{space}-{a}", b) for a in "12" for b in digits] + [(f"{space}-3", "0")]
    return merges


def _phrases() -> list[str]:
    """The added tokens: the fixed phrases as they look once marked, and again behind any character."""
    phrases = []
    for phrase in BOILERPLATE:
        marked = mark_words("." + phrase if phrase[0] == " " else phrase).removeprefix(".")
        phrases.append(marked + (JOIN if phrase[-1] in "`\n'{\"" and not phrase.endswith("{\n") else ""))
        if phrase[-1] == "\n":
            phrases.append(marked)
        if marked[0] == JOIN:
            phrases.append(phrases[-1].removeprefix(JOIN))
    return list(dict.fromkeys(phrases))


def build(texts: Iterable[str], path: Path, vocab_size: int = 2048) -> None:
    """Train a tokenizer on texts and write it as ``tokenizer.json``.

    Args:
        texts: The training texts.
        path: The file to write.
        vocab_size: The size of the vocabulary, fixed phrases, numbers and role marks included.
    """
    phrases = _phrases()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_PIECES), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - len(phrases) - len(ROLES) - 1, min_frequency=2, show_progress=False,
        initial_alphabet=sorted(byte_characters().values()),
    )  # fmt: skip
    cut = re.compile("|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True)))
    inner.train_from_iterator((part for text in texts for part in cut.split(mark_words(text)) if part), trainer)
    state = json.loads(inner.to_str())
    state["model"].update(_with_numbers(state["model"], vocab_size - len(phrases)))
    final = tokenizers.Tokenizer.from_str(json.dumps(state))
    final.add_tokens([tokenizers.AddedToken(phrase, normalized=False) for phrase in phrases])
    path.write_text(final.to_str())


def _with_numbers(model: dict[str, Any], size: int) -> dict[str, Any]:
    """Put role marks and numbers first in a trained BPE model and cut it to ``size`` tokens."""
    numbers = _number_merges()
    tokens = [f"<|{role}|>" for role in (*ROLES, END)] + sorted(byte_characters().values())
    known, merges = set(tokens), []
    for left, right in [*numbers, *map(tuple, model["merges"])]:
        if left + right in known or left not in known or right not in known or len(tokens) >= size:
            continue
        merges.append([left, right])
        tokens.append(left + right)
        known.add(left + right)
    return {"vocab": {token: key for key, token in enumerate(tokens)}, "merges": merges}
