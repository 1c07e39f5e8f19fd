"""Where programs run besides this process, and what its workers are given. Source: ours."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import cloudpickle
import dspy

from cuesmith.teleprompters.runtime import _dask, _litellm
from cuesmith.teleprompters.runtime._dspy import copy_program, models_of, modules_of
from cuesmith.teleprompters.runtime._ray import RayExecutor
from cuesmith.teleprompters.runtime.checks import whole
from cuesmith.teleprompters.runtime.metric import Metric
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.remote_worker import FORKED, Work
from cuesmith.teleprompters.runtime.wire import CannotSend, packed

_PLAIN_SETTINGS = frozenset({"adapter", "rm", "async_max_workers", "track_usage", "provide_traceback", "num_threads",
                             "max_errors", "allow_tool_async_sync_conversion", "warn_on_type_mismatch",
                             "interpreter_factory"})  # fmt: skip
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHORTEST = 8
"""Characters of a variable of the environment that a key is looked for in."""


@dataclass(frozen=True)
class Remote:
    """Where programs run: an executor, and how many processes it has.

    Args:
        executor: A `dask.distributed.Client`, a `RayExecutor`, or any `concurrent.futures.Executor` whose tasks run in
            processes with the same packages installed. A client is kept as its executor.
        processes: How many tasks it runs at once. Default: what it says itself.
        threads: Program runs at once in each. Default: `max_in_flight` shared out.
        host: The address by which its workers reach this process, which listens there; no other one does. Default:
            the one that Dask or Ray knows, else 127.0.0.1, workers on this machine.

    Raises:
        TypeError: If it is no executor, or one of threads, which have nothing to give, or of forks of this process; or
            if a number is none.
        ValueError: If a number is out of range.
    """

    executor: Executor
    processes: int | None = None
    threads: int | None = None
    host: str = ""

    def __post_init__(self) -> None:
        """Check the arguments, and fill in what an executor says itself."""
        executor, host = self.executor, "127.0.0.1"
        if _dask.is_client(executor):
            executor, host = _dask.executor_of(executor), _dask.host_of(executor)
        elif isinstance(executor, RayExecutor):
            host = executor.host
        elif isinstance(executor, ThreadPoolExecutor) or not hasattr(executor, "submit"):
            raise TypeError(f"executor={executor!r} must run tasks in processes: a dask.distributed.Client, a "
                            "cuesmith.RayExecutor, a ProcessPoolExecutor, or another concurrent.futures.Executor of "
                            "processes. Threads are what max_in_flight has anyway")  # fmt: skip
        elif isinstance(executor, ProcessPoolExecutor) and _method_of(executor) == "fork":
            raise TypeError(FORKED)
        for name in ("processes", "threads"):
            if (value := getattr(self, name)) is not None:
                whole(name, value)
        object.__setattr__(self, "executor", executor)
        object.__setattr__(self, "host", self.host or host)


def remote_of(executor: object) -> Remote | None:
    """Return what `executor=` means.

    Raises:
        TypeError: If it is nothing that runs tasks in processes.
    """
    if executor is None or isinstance(executor, Remote):
        return executor
    return Remote(executor)  # type: ignore[arg-type]


def _method_of(pool: ProcessPoolExecutor) -> object:
    """Return how a pool begins its processes."""
    context: Any = pool._mp_context
    return context.get_start_method()


def processes_of(executor: Executor) -> int:
    """Return how many tasks an executor runs at once now; 1 if nobody can tell."""
    if isinstance(executor, ProcessPoolExecutor):
        return int(executor._max_workers)  # type: ignore[attr-defined]
    if isinstance(executor, RayExecutor):
        return executor.processes
    return _dask.workers_of(executor)


@dataclass(frozen=True)
class Parcel:
    """What workers get, packed.

    Attributes:
        remote: Where they are.
        data: The pickle.
        secrets: How they come by the keys that are not in it.
        examples: Those in it.
    """

    remote: Remote
    data: bytes
    secrets: tuple[Mapping[str, str], ...]
    examples: tuple[dspy.Example, ...]


def parcel(
    remote: Remote,
    student: dspy.Module,
    metric: Metric,
    lm: dspy.BaseLM | None,
    examples: Sequence[dspy.Example],
    *,
    hedge: float | None = None,
    sized: bool = False,
) -> Parcel:
    """Pack what workers need.

    Args:
        remote: Where they are.
        student: The program.
        metric: Its judge.
        lm: The LM for predictors that carry none.
        examples: Those that tasks will be about; others are sent with their task.
        hedge: As compilers take it.
        sized: Whether the length of requests matters to the budget.

    Raises:
        CannotSend: If something cannot be sent, or holds a key that cannot.
    """
    settings = {name: value for name, value in dspy.settings.copy().items() if name in _PLAIN_SETTINGS}
    models = models_of(student, lm)
    cache = bool(dspy.cache.enable_disk_cache), bool(dspy.cache.enable_memory_cache)
    prices = _litellm.prices_of(str(getattr(model, "model", "")) for model in models)
    told = Work(copy_program(student), metric.function, lm, tuple(examples), settings, hedge, sized, prices, cache)
    try:
        listening(remote.host).close()
    except OSError as error:
        raise CannotSend(f"nothing can listen at {remote.host} for executor='s workers ({error}): Remote(host=) is an "
                         "address of this machine by which they reach it") from None  # fmt: skip
    kinds = [type(each) for each in (metric.function, *modules_of(student))]
    homes = {str(kind.__module__) for kind in kinds} | {str(getattr(metric.function, "__module__", ""))}
    with _by_value(homes):
        data, withheld = packed(told, Redactor(models))
    return Parcel(remote, data, tuple(_told_of(secret, remote.host) for secret in withheld), tuple(examples))


@contextmanager
def _by_value(names: Iterable[str]) -> Iterator[None]:
    """Have what modules define that nobody could import pickled with its code: scripts, tests, notebooks' own."""
    held = [sys.modules[name] for name in names if name in sys.modules and not _is_found(sys.modules[name])]
    for module in held:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in held:
            cloudpickle.unregister_pickle_by_value(module)


def _is_found(module: ModuleType) -> bool:
    """Whether another process with this one's `sys.path` finds a module by its name."""
    name, path, spec = "", None, None
    for part in module.__name__.split("."):
        name = f"{name}.{part}" if name else part
        spec = next((found for finder in sys.meta_path if (found := finder.find_spec(name, path)) is not None), None)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    file, origin = getattr(module, "__file__", None), None if spec is None else spec.origin
    return file is None or origin is None or os.path.realpath(origin) == os.path.realpath(file)


def _told_of(secret: str, host: str) -> Mapping[str, str]:
    """Say how workers come by a key: from their own environment, or, on this machine alone, from here."""
    held = [(len(value), name) for name, value in os.environ.items() if len(value) >= _SHORTEST and value in secret]
    if held:
        name = max(held)[1]
        before, _, after = secret.partition(os.environ[name])
        return {"environment": name, "before": before, "after": after}
    if host in _LOOPBACK:
        return {"value": secret}
    raise CannotSend(
        "a dspy.LM holds a key that no environment variable has, and a key is not sent to other machines: set it "
        "in the environment of this process and of each worker, under the same name"
    )


def listening(host: str) -> socket.socket:
    """Return a socket that listens at an address, on a free port."""
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
