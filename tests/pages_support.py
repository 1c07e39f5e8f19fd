"""Runs the blocks of a page: Python in one namespace a page, commands in bash, both in a folder like a clone's root.

A block runs unless the comment right above it says otherwise:

    <!-- not run: why -->     needs what is not here: a key, a download, a server
    <!-- slow -->             run by `pytest -m slow`
    <!-- output -->           a `text` block: what the block before it printed; "..." stands for anything. "output: its
                              beginning" compares no more than is there, "but for the seconds" no line's last number

Model names of a provider are answered on this machine: the embedded model runs programs, the simulated one optimizes.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dspy
import litellm
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from cuesmith import cli
from cuesmith.modules.embedded.lm import MODEL, register
from cuesmith.testing.fakes import Sent, Server, simulated

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("python", "bash", "text", "json", "yaml", "diff")
_SIGN = re.compile(r"<!-- (slow|output[^>]*|not run: [^>]+) -->\s*$")


def sign_of(example: Example) -> str:
    """Return what the comment right above a block says of it; "" without one."""
    found = _SIGN.search(example.document.text[: example.region.start])
    return found[1] if found else ""


@dataclass
class Page:
    """The run of a page.

    Attributes:
        slow: Whether slow blocks run too, and commands in a shell of their own.
        printed: What the last block printed; None if it did not run.
    """

    slow: bool = False
    printed: str | None = None
    _python: PythonEvaluator = field(default_factory=PythonEvaluator)

    def run(self, path: Path) -> None:
        """Run a page's blocks in their order."""
        parsers = [CodeBlockParser(name, getattr(self, f"_{name}_block")) for name in ("python", "bash", "text")]
        for example in Sybil(parsers).parse(path).examples():
            example.evaluate()

    def _wanted(self, example: Example) -> bool:
        sign = sign_of(example)
        if sign == "" or (sign == "slow" and self.slow):
            return True
        self.printed = None
        return False

    def _python_block(self, example: Example) -> None:
        if self._wanted(example):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                self._python(example)
            self.printed = printed.getvalue()

    def _bash_block(self, example: Example) -> None:
        if not self._wanted(example):
            return
        text = str(example.parsed)
        lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and line[0] != "#"]
        if self.slow or not all(re.fullmatch(r"cuesmith [^|&;>$`]*", re.sub('".*?"', "", line)) for line in lines):
            done = subprocess.run(["bash", "-e", "-c", text], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{example.path}, line {example.line}: {done.stdout}{done.stderr}"
            self.printed = done.stdout
            return
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            for line in lines:
                assert _command(shlex.split(line, comments=True)[1:]) == 0, f"{example.path}, {line}"
        self.printed = printed.getvalue()

    def _text_block(self, example: Example) -> None:
        sign = sign_of(example)
        if sign.startswith("output") and self.printed is not None:
            wanted, given = (_plain(text, sign) for text in (str(example.parsed), self.printed))
            if "beginning" in sign:
                given = "".join(given.splitlines(keepends=True)[: wanted.count("\n")])
            checker = doctest.OutputChecker()
            found = doctest.Example("", wanted)
            told = checker.output_difference(found, given, doctest.ELLIPSIS)
            assert checker.check_output(wanted, given, doctest.ELLIPSIS), f"{example.path}, {example.line}: {told}"


def _plain(text: str, sign: str) -> str:
    last = r"(?: \d+)?[ \t]*$" if "seconds" in sign else r"[ \t]+$"
    bare = re.sub(last, "", text, flags=re.MULTILINE).rstrip() + "\n"
    return re.sub(" +", " ", bare) if "seconds" in sign else bare  # a column is as wide as its numbers


def _command(arguments: list[str]) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


class Provider(Server):
    """Answers for every model: a program's request by the embedded model, an optimizer's by the simulated one."""

    def __init__(self) -> None:
        super().__init__(self._reply)
        self._simulated = simulated()
        register()

    def _reply(self, sent: Sent) -> str:
        if sent.asked.name:
            return str(self._simulated(sent))
        roles = ["user", "assistant"] * len(sent.turns)
        turns = [{"role": role, "content": text} for role, text in zip(roles, sent.turns, strict=False)]
        messages = [{"role": "system", "content": sent.system}, *turns]
        return str(litellm.completion(model=MODEL, messages=messages, temperature=0.0).choices[0].message.content)


@contextmanager
def clone(folder: Path) -> Iterator[None]:
    """Work in a folder with the repository's examples, with a provider at hand and dspy's settings given back."""
    (folder / "examples").symlink_to(ROOT / "examples")
    with Provider() as provider, contextlib.chdir(folder), settings():
        here = {
            "OPENAI_API_BASE": provider.base,
            "OPENAI_BASE_URL": provider.base,
            "OPENAI_API_KEY": "sk-0123456789abc",
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        with environment({**here, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}):
            yield


@contextmanager
def settings() -> Iterator[None]:
    """Give dspy's settings back as they were."""
    before = dict(dspy.settings.config)
    try:
        yield
    finally:
        dspy.configure(**before)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
