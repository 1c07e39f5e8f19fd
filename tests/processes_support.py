"""Processes that begin with everything imported: forked from one that did it once, and that hashes differently.

    done = Forked("import sys; print(sys.argv[1])", "hello").done()

is what `subprocess.run([sys.executable, "-c", ...])` would be, without the seconds that an import of dspy takes. What a
process reads while it imports (PYTHON..., LITELLM_..., DSPY_CACHEDIR) is that of the first one, and cannot be given.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LARGEST = 1 << 17
"""Bytes of an order."""


@functools.cache
def _mother() -> tuple[socket.socket, threading.Lock]:
    """Start the process to fork from; it ends when this one does."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONHASHSEED": other}
    command = [sys.executable, __file__, str(there.fileno())]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[there.fileno()], env={**os.environ, **paths})
    there.close()
    return here, threading.Lock()


def _told(order: Mapping[str, object], *handed: int) -> Any:
    link, lock = _mother()
    with lock:
        socket.send_fds(link, [json.dumps(order).encode()], handed)
        return json.loads(link.recv(_LARGEST))


class Forked:
    """A process that runs Python code, as far as tests need it with the names of `subprocess.Popen`.

    Args:
        code: Runs as `__main__`.
        arguments: `sys.argv[1:]`.
        cwd: The folder it works in; by default the one of this process.
        env: Its environment; by default that of this process.
        stderr: A file descriptor for its standard error; without one, `communicate` returns what came.

    Attributes:
        pid: Its number.
        stdout: Its standard output, as text.
        returncode: How it ended, negative for a signal; None before `wait`.
    """

    def __init__(
        self, code: str, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> None:  # fmt: skip
        reading, writing = os.pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        order = {
            "code": code, "arguments": list(map(str, arguments)), "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }  # fmt: skip
        self.pid = _told(order, writing, self._errors.fileno() if stderr is None else stderr)
        os.close(writing)
        self.stdout = open(reading, encoding="utf-8", newline="")  # noqa: SIM115
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def poll(self, options: int = os.WNOHANG) -> int | None:
        """Return how it ended; None while it runs."""
        if self.returncode is None:
            self.returncode = _told({"wait": self.pid, "options": options})
        return self.returncode

    def wait(self) -> int:
        """Wait for its end; returns how it ended."""
        ended = self.poll(0)
        assert ended is not None
        return ended

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait for its end, and kill it where that takes more than `timeout` seconds; returns all that it wrote."""
        late = threading.Timer(timeout, self.send_signal, [signal.SIGKILL])
        late.start()
        with self.stdout:
            out = self.stdout.read()
        self.wait()
        late.cancel()
        with self._errors:
            self._errors.seek(0)
            return out, self._errors.read().decode(errors="replace")

    def done(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end."""
        out, err = self.communicate()
        return subprocess.CompletedProcess((), self.wait(), out, err)


def on_a_terminal(
    code: str, *arguments: object, cwd: Path | None = None
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run code with a terminal as its standard error; returns how it ended, and what the terminal got."""
    leader, follower = pty.openpty()
    env, seen = os.environ | {"TERM": "xterm-256color", "COLUMNS": "160"}, b""
    process = Forked(code, *arguments, cwd=cwd, env=env, stderr=follower)
    os.close(follower)
    with contextlib.suppress(OSError):  # the other end has closed
        while chunk := os.read(leader, 4096):
            seen += chunk
    os.close(leader)
    return process.done(), seen.decode(errors="replace")


def _serve(link: socket.socket) -> Mapping[str, Any]:
    """Fork for every order of code, and wait for a fork where asked to; returns, in a fork, what it is to run."""
    import cuesmith

    for name in ("litellm", "pytest", "cuesmith.programs.quickstart", "cuesmith.programs.commands.compiling"):
        importlib.import_module(name)
    for name in cuesmith.__all__:
        getattr(cuesmith, name)
    gc.collect()
    gc.freeze()  # or a second of every fork goes into garbage that it shares
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        data, handed, _, _ = socket.recv_fds(link, _LARGEST, 2)
        if not data:
            os._exit(0)
        order: Mapping[str, Any] = json.loads(data)
        answer: int | None
        if "wait" in order:
            pid, status = os.waitpid(order["wait"], order["options"])
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            for number, descriptor in enumerate(handed, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return order
        for descriptor in handed:
            os.close(descriptor)
        link.send(json.dumps(answer).encode())


def _run(order: Mapping[str, Any]) -> None:
    """Be what a new interpreter would be for `-c CODE ARGUMENTS`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv, sys.path[0] = ["-c", *order["arguments"]], ""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(order["code"], "<string>", "exec"), vars(main))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _link:
        _order = _serve(_link)
    _run(_order)
