"""The embedded model's tokenizer: byte-level BPE in which a word is one token wherever it stands.

Every word and number is written with a leading space before it is split, also after a quote, a bracket or a line
break; a join mark in front of such an added space lets `Tokenizer.decode` remove it again, so that any text comes
back unchanged. A word to copy has therefore the same tokens at the start of a line as inside of one. Numbers from
-30 to 99 are one token each, and so are the fixed phrases of dspy's adapters.

Role marks exist only as token ids: text that spells one out is encoded as ordinary characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import tokenizers

ROLES = ("system", "user", "assistant")
END = "end"
JOIN = "\x02"
"""Stands before a space that was added."""
_JOINED = re.compile(r"(?<![ \w])(?<!\w')(?:(?=-\d)|(?<!-)(?=[A-Za-z0-9]))")
_HEADER = re.compile(r"\[\[[ ]*##[ ]*(\w+)[ ]*##[ ]*\]\]")
_PATH = Path(__file__).with_name("tokenizer.json")


def mark_words(text: str) -> str:
    """Write every word and number with a space before it, and a join mark before each space that is added."""
    return _JOINED.sub(JOIN + " ", text.replace(JOIN, ""))


def _unmark(text: str) -> str:
    return text.replace(JOIN + " ", "").replace(JOIN, "")


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
        mark = {role: vocabulary[f"<|{role}|>"] for role in (*ROLES, END)}
        self.roles: dict[str, int] = {role: mark[role] for role in ROLES}
        self.end: int = mark[END]
        added = {key: token.content for key, token in self._inner.get_added_tokens_decoder().items()}
        byte = {character: value for value, character in byte_characters().items()}
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
        ids: list[int] = self._inner.encode(mark_words(text), add_special_tokens=False).ids
        return ids

    def encode_message(self, role: str, text: str) -> list[int]:
        """The tokens of one message with its role mark and end mark; unknown roles count as "user"."""
        return [self.roles.get(role, self.roles["user"]), *self.encode(text), self.end]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens: role marks left out, field headers repaired."""
        text = b"".join(self._bytes[key] for key in ids).decode("utf-8", errors="replace")
        return repair(_unmark(text))


def byte_characters() -> dict[int, str]:
    """The printable stand-in of every byte in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {value: chr(value) for value in printable}
    for value in range(256):
        if value not in table:
            table[value] = chr(256 + len(table) - len(printable))
    return table
