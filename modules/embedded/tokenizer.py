"""The embedded model's tokenizer: byte-level BPE in which a word is one token wherever it stands.

Every word and number is written with a leading space before it is split, also after a quote, a bracket or a line
break; a join mark in front of such an added space lets `Tokenizer.decode` remove it again, so that any text comes
back unchanged. A word to copy has therefore the same tokens at the start of a line as inside of one. Numbers from
-30 to 99 are one token each, and so are the fixed phrases of dspy's adapters.

Role marks exist only as token ids: text that spells one out is encoded as ordinary characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

Message = tuple[str, str]
"""A role ("system", "user" or "assistant") and its text."""

ROLES = ("system", "user", "assistant")
_END = "end"
_JOIN = "\x02"
_JOINED = re.compile(r"(?<![ \w])(?<!\w')(?:(?=-\d)|(?<!-)(?=[A-Za-z0-9]))")
_PIECES = (
    r" -?\d+|\d| ?_?[A-Za-z]+|\n +(?= )| +(?= )| ?[^\s\w\x02]+\n*\x02?|\n+\x02?|\x02| |[^A-Za-z0-9\s]|\s"
)
_HEADER = re.compile(r"\[\[[ ]*##[ ]*(\w+)[ ]*##[ ]*\]\]")
_PATH = Path(__file__).with_name("tokenizer.json")

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


def _mark(text: str) -> str:
    return _JOINED.sub(_JOIN + " ", text.replace(_JOIN, ""))


def _unmark(text: str) -> str:
    return text.replace(_JOIN + " ", "").replace(_JOIN, "")


def repair(text: str) -> str:
    """Write every field header exactly as dspy's parsers expect it."""
    return _HEADER.sub(r"[[ ## \1 ## ]]", text)


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, path: Path = _PATH) -> None:
        """Load a tokenizer.

        Args:
            path: The ``tokenizer.json`` to load, by default the embedded model's.
        """
        self._inner = tokenizers.Tokenizer.from_file(str(path))
        self.vocab_size: int = self._inner.get_vocab_size()
        vocabulary = self._inner.get_vocab()
        mark = {role: vocabulary[f"<|{role}|>"] for role in (*ROLES, _END)}
        self.roles: dict[str, int] = {role: mark[role] for role in ROLES}
        self.end: int = mark[_END]
        added = {key: token.content for key, token in self._inner.get_added_tokens_decoder().items()}
        byte = {character: value for value, character in _byte_characters().items()}
        self._bytes: list[bytes] = []
        for key in range(self.vocab_size):
            token = self._inner.id_to_token(key) or ""
            plain = key in mark.values()
            text = added.get(key) or token
            self._bytes.append(
                b"" if plain else text.encode() if key in added else bytes(byte[character] for character in text)
            )

    @property
    def word_start(self) -> list[bool]:
        """For each token whether it begins a word: all but those that begin with a letter, digit or "_"."""
        return [not re.match(rb"[A-Za-z0-9_]", text) for text in self._bytes]

    def encode(self, text: str) -> list[int]:
        """The tokens of one text, never a role mark."""
        ids: list[int] = self._inner.encode(_mark(text), add_special_tokens=False).ids
        return ids

    def encode_message(self, role: str, text: str) -> list[int]:
        """The tokens of one message with its role mark and end mark; unknown roles count as "user"."""
        return [self.roles.get(role, self.roles["user"]), *self.encode(text), self.end]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat, ending where the assistant's reply begins."""
        ids = [token for role, text in messages for token in self.encode_message(role, text)]
        return [*ids, self.roles["assistant"]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens: role marks left out, field headers repaired."""
        text = b"".join(self._bytes[key] for key in ids).decode("utf-8", errors="replace")
        return repair(_unmark(text))


@cache
def default_tokenizer() -> Tokenizer:
    """The embedded model's tokenizer."""
    return Tokenizer()


def encode_chat(messages: Sequence[Message]) -> list[int]:
    """The embedded model's tokens of a chat, ending where the assistant's reply begins."""
    return default_tokenizer().encode_chat(messages)


def decode(ids: Iterable[int]) -> str:
    """The text of the embedded model's tokens."""
    return default_tokenizer().decode(ids)


def _byte_characters() -> dict[int, str]:
    """The printable stand-in of every byte in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {value: chr(value) for value in printable}
    for value in range(256):
        if value not in table:
            table[value] = chr(256 + len(table) - len(printable))
    return table


def _number_merges() -> list[tuple[str, str]]:
    """Merges that make " -30" ... " 99" single tokens, whatever the training text."""
    digits, space = "0123456789", _byte_characters()[32]
    merges = [(space, digit) for digit in digits] + [(space, "-")]
    merges += [(f"{space}{a}", b) for a in digits[1:] for b in digits]
    merges += [(f"{space}-", digit) for digit in digits[1:]]
    merges += [(f"{space}-{a}", b) for a in "12" for b in digits] + [(f"{space}-3", "0")]
    return merges


def _phrases() -> list[str]:
    """The added tokens: the fixed phrases as they look once marked, and again behind any character."""
    phrases = []
    for phrase in BOILERPLATE:
        marked = _mark("." + phrase if phrase[0] == " " else phrase).removeprefix(".")
        phrases.append(marked + (_JOIN if phrase[-1] in "`\n'{\"" and not phrase.endswith("{\n") else ""))
        if phrase[-1] == "\n":
            phrases.append(marked)
        if marked[0] == _JOIN:
            phrases.append(phrases[-1].removeprefix(_JOIN))
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
        initial_alphabet=sorted(_byte_characters().values()),
    )  # fmt: skip
    cut = re.compile("|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True)))
    inner.train_from_iterator((part for text in texts for part in cut.split(_mark(text)) if part), trainer)
    state = json.loads(inner.to_str())
    state["model"].update(_with_numbers(state["model"], vocab_size - len(phrases)))
    final = tokenizers.Tokenizer.from_str(json.dumps(state))
    final.add_tokens([tokenizers.AddedToken(phrase, normalized=False) for phrase in phrases])
    path.write_text(final.to_str())


def _with_numbers(model: dict[str, Any], size: int) -> dict[str, Any]:
    """Put role marks and numbers first in a trained BPE model and cut it to ``size`` tokens."""
    numbers = _number_merges()
    tokens = [f"<|{role}|>" for role in (*ROLES, _END)] + sorted(_byte_characters().values())
    known, merges = set(tokens), []
    for left, right in [*numbers, *map(tuple, model["merges"])]:
        if left + right in known or left not in known or right not in known or len(tokens) >= size:
            continue
        merges.append([left, right])
        tokens.append(left + right)
        known.add(left + right)
    return {"vocab": {token: key for key, token in enumerate(tokens)}, "merges": merges}
