"""The one file of glue to Ray: its tasks as an executor. Source: ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class RayExecutor(Executor):
    """A Ray cluster as an executor: each task is a Ray task. Begins Ray on this machine if it was not (`ray.init`).

    Args:
        processes: Tasks at once. Default: as many as the cluster has CPUs.
        options: Of each task, as `ray.remote` takes them (`num_cpus=1` by default).

    Attributes:
        processes: Tasks at once.
        host: The address of this machine in the cluster; 127.0.0.1 if it is the only one.

    Raises:
        ImportError: If Ray is not installed: `pip install 'cuesmith[ray]'`.
    """

    def __init__(self, processes: int | None = None, **options: Any) -> None:
        ray: Any = importlib.import_module("ray")
        if not ray.is_initialized():
            ray.init()
        # A task that has died is begun again by who has submitted it, if there is still work.
        self._task = ray.remote(**{"num_cpus": 1, "max_retries": 0, **options})(_call)
        self.processes = processes or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.host = "127.0.0.1" if len(ray.nodes()) == 1 else ray.util.get_node_ip_address()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function on the cluster, as `Executor.submit`."""
        future: Future[Any] = self._task.remote(fn, args, kwargs).future()
        return future


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)
