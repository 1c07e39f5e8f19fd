"""What a .gguf file says of itself: llama.cpp ends the process on some damaged files, so they are found before.

Source: ours; the format is described in ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_MAGIC = b"GGUF"
_TEXT, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FORMATS = {code: struct.Struct(f"<{code}") for code in _NUMBERS.values()}
_MOST = 2**31 - 1
"""llama.cpp keeps sizes in 32 bits with a sign."""


class LocalModelError(ValueError):
    """A model file, or options for it, with which no model can be had; the message is one line."""


@dataclass(frozen=True)
class Header:
    """What is read of a header.

    Attributes:
        values: Its numbers and texts; arrays are left out.
        tensors: How many tensors the file has.
    """

    values: dict[str, int | float | str]
    tensors: int

    def own(self, name: str) -> int | None:
        """Return a whole number of the model's architecture, as in "context_length"; None if it is not there."""
        value = self.values.get(f"{self.values.get('general.architecture')}.{name}")
        return value if isinstance(value, int) else None

    @property
    def bytes_per_token(self) -> int:
        """What a token takes in a slot, as far as the header tells for every layer alike; else 0."""
        layers, heads = self.own("block_count"), self.own("attention.head_count")
        shared = self.own("attention.head_count_kv") or heads
        if not layers or not heads or not shared or self.own("attention.sliding_window"):
            return 0
        width = (self.own("embedding_length") or 0) // heads
        sizes = self.own("attention.key_length") or width, self.own("attention.value_length") or width
        return layers * shared * sum(sizes) * 2


class _Reader:
    """Reads a header's parts one after the other; `struct.error` or IndexError where the file ends."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> int | float:
        form = _FORMATS[code]
        value: int | float = form.unpack_from(self.data, self.at)[0]
        self.at += form.size
        return value

    def count(self) -> int:
        """A number of things of which each takes a byte at least."""
        number = int(self.number("Q"))
        if number > len(self.data) - self.at:
            raise IndexError
        return number

    def text(self) -> bytes:
        size = self.count()
        self.at += size
        return self.data[self.at - size : self.at]

    def value(self, kind: int) -> int | float | str | None:
        if kind == _TEXT:
            return self.text().decode(errors="replace")
        if kind == _ARRAY:
            self.skip(int(self.number("I")), self.count())
            return None
        return self.number(_NUMBERS[kind])

    def skip(self, kind: int, items: int) -> None:
        if kind in _NUMBERS:
            self.at += items * _FORMATS[_NUMBERS[kind]].size
            return
        data, at, size = self.data, self.at, _FORMATS["Q"].unpack_from
        if kind == _TEXT:  # a vocabulary has some hundred thousand
            for _ in range(items):
                at += 8 + size(data, at)[0]
            self.at = at
            return
        for _ in range(items):
            self.value(kind)

    def tensor(self) -> int:
        """Return where a tensor's data begins, from the beginning of all data."""
        self.text()
        dimensions = int(self.number("I"))
        self.at += 8 * dimensions + 4
        return int(self.number("Q"))


def read_header(file: Path) -> Header:
    """Return a file's header, once it is sure that llama.cpp can read the file or will refuse it in peace.

    Raises:
        LocalModelError: If there is no such file, it is no GGUF file, it is cut off, or it is no language model.
    """
    try:
        about = file.stat()
        return _read(file, about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise LocalModelError(f"{file}: {error.strerror or error}; LocalLM takes a .gguf file") from None


@lru_cache
def _read(file: Path, size: int, changed: int) -> Header:
    with file.open("rb") as opened:
        head = opened.read(8)
        if head[:4] != _MAGIC or len(head) < 8 or not 2 <= struct.unpack("<I", head[4:])[0] <= 3:
            raise LocalModelError(f"{file}: not a GGUF file of version 2 or 3 (it begins with {head!r})")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header, needed = _parse(_Reader(data))
            except (struct.error, IndexError):
                raise LocalModelError(f"{file}: cut off at {size} bytes, within its header; get it again") from None
            except KeyError as error:
                raise LocalModelError(f"{file}: damaged: no value is of kind {error}; get it again") from None
    if needed >= size:
        raise LocalModelError(f"{file}: cut off at {size} bytes of more than {needed}; get it again")
    _check(file, header)
    return header


def _parse(reader: _Reader) -> tuple[Header, int]:
    """Return the header, and the place where the last tensor's data begins."""
    reader.at = 8
    tensors, entries = reader.count(), reader.count()
    values: dict[str, int | float | str] = {}
    for _ in range(entries):
        name = reader.text().decode(errors="replace")
        value = reader.value(int(reader.number("I")))
        if value is not None:
            values[name] = value
    offsets = [reader.tensor() for _ in range(tensors)]
    align = int(values.get("general.alignment", 32)) or 1
    return Header(values, tensors), (math.ceil(reader.at / align) * align + max(offsets)) if offsets else 0


def _check(file: Path, header: Header) -> None:
    """Refuse what llama.cpp ends the process on.

    Raises:
        LocalModelError: If the model has no layers, a size or a figure that cannot be, or gives no text.
    """
    kind = header.values.get("general.architecture")
    for name, most in (("context_length", _MOST), ("block_count", 10_000)):
        number = header.own(name)
        if number is None or not 1 <= number <= most:
            raise LocalModelError(f"{file}: no language model, or damaged: its {kind}.{name} is {number}")
    odd = [name for name, value in header.values.items() if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        raise LocalModelError(f"{file}: damaged: its {odd[0]} is {header.values[odd[0]]}")
    if header.values.get(f"{kind}.attention.causal") is False:
        raise LocalModelError(f"{file}: a model of embeddings ({kind}), which gives no text")


def memory() -> int:
    """Return the bytes that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
