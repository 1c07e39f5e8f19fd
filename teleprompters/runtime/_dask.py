"""The one file of glue to Dask: a `dask.distributed.Client` as an executor. Source: ours."""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import Executor
from typing import Any, TypeGuard
from urllib.parse import urlsplit


def is_client(value: object) -> TypeGuard[Any]:
    """Whether a value is Dask's client; Dask is not loaded for that."""
    distributed = sys.modules.get("distributed")
    return distributed is not None and isinstance(value, distributed.Client)


def executor_of(client: Any) -> Executor:
    """Return a client as an executor.

    Raises:
        TypeError: If it is an asynchronous one, or its workers are threads of this process.
    """
    if client.asynchronous:
        raise TypeError("executor= takes a synchronous dask Client: dask.distributed.Client(address)")
    if str(client.scheduler.address).startswith("inproc"):
        raise TypeError("the workers of this dask Client are threads of this process, which run no program faster: use "
                        "Client(processes=True), or leave executor= and set max_in_flight=")  # fmt: skip
    executor: Executor = client.get_executor(pure=False)
    return executor


def host_of(client: Any) -> Any:
    """Return the address of this machine on the way to the client's scheduler."""
    utils: Any = importlib.import_module("distributed.utils")
    place = urlsplit(client.scheduler.address)
    return "127.0.0.1" if place.hostname in ("127.0.0.1", "localhost") else utils.get_ip(place.hostname, place.port)


def workers_of(executor: object) -> int:
    """Return how many workers the cluster behind an executor has now; 0 if it is none of Dask's."""
    client = getattr(executor, "_client", None)
    return len(client.scheduler_info(n_workers=-1)["workers"]) if is_client(client) else 0
