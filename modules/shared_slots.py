"""llama.cpp's slots, and the beginnings of prompts that calls have in common, which are computed once.

Slots compute each on their own. A beginning that several calls have is computed once, kept in a file, and read by
each slot that needs it; a freed slot goes to a call that begins as its last one did.

All of it runs in one event loop in a thread of its own, so that nothing is locked, a call that is given up leaves its
slot at once (llama.cpp stops where the connection is closed), and both threads and event loops can wait for a reply.

Source: ours; the server is llama.cpp's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

SHARED = 400
"""Characters that requests must have in common for their common beginning to be kept."""

KEPT = 12
"""How many common beginnings are kept at once; each takes some megabytes."""

REMEMBERED = 1000
"""Of how many beginnings it is known that a call has had them."""

TOGETHER = 0.01
"""Seconds that the first call with a beginning waits for others that come with it."""

PASSED_OVER = 32
"""How often a waiting call may be passed over by one that goes on where a slot is."""

_UNIX = "unix://"


async def post(address: str, key: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a server's answer; an answer with an "error" where there is none.

    Args:
        address: As in "http://127.0.0.1:8080", or "unix:///path/of/a/socket".
        key: The server's API key.
        path: As in "/v1/chat/completions".
        body: Sent as JSON.
    """
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: local\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    try:
        reader, writer = await _connect(address)
        try:
            writer.write(head.encode() + content)
            told = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            size = int(told.partition("content-length:")[2].partition("\r\n")[0])
            answer: dict[str, Any] = json.loads(await reader.readexactly(size))
        finally:
            writer.close()
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        return {"error": {"message": f"llama.cpp's server has not answered ({error})", "code": 503}}
    return answer


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith(_UNIX):
        return await asyncio.open_unix_connection(address.removeprefix(_UNIX))
    host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
    return await asyncio.open_connection(host, int(port))


@dataclass(eq=False)
class _Waiting:
    """A call that waits for a slot."""

    prefix: str | None
    slot: asyncio.Future[int]
    passed: int = 0


@dataclass(eq=False)
class Slots:
    """Who may use which slot. A freed slot goes to a call that begins as the slot's last one did, if one waits.

    Attributes:
        free: Those that are not in use.
        holds: How the last call of each began.
        queue: Who waits, the longest first.
    """

    free: list[int]
    holds: dict[int, str | None] = field(default_factory=dict)
    queue: list[_Waiting] = field(default_factory=list)

    @asynccontextmanager
    async def taken(self, prefix: str | None) -> AsyncIterator[int]:
        """Wait for a slot."""
        mine = _Waiting(prefix, asyncio.get_running_loop().create_future())
        self.queue.append(mine)
        self._assign()
        done = False
        try:
            yield await mine.slot
            done = True
        finally:
            if mine in self.queue:  # given up before there was one
                self.queue.remove(mine)
            else:
                slot = mine.slot.result()
                self.holds[slot] = prefix if done else None
                self.free.append(slot)
                self._assign()

    def _assign(self) -> None:
        while self.free and (queue := [each for each in self.queue if not each.slot.cancelled()]):
            following = [
                (each, slot) for each in queue for slot in self.free if each.prefix == self.holds.get(slot, "")
            ]
            first = queue[0]
            chosen, slot = following[0] if following and first.passed < PASSED_OVER else (first, self.free[0])
            for each in queue[: queue.index(chosen)]:
                each.passed += 1
            self.queue.remove(chosen)
            self.free.remove(slot)
            chosen.slot.set_result(slot)


class SharedSlots:
    """A server's slots. Thread-safe."""

    def __init__(self, count: int, address: str, key: str = "", forget: Callable[[str], object] = bool) -> None:
        """Take the slots of a server.

        Args:
            count: How many.
            address: Where it listens; see `post`.
            key: Its API key.
            forget: Called with the name of a saved slot that is no longer needed.
        """
        self._address, self._key, self._forget = address, key, forget
        self._slots = Slots(list(range(count)))
        self._kept: OrderedDict[str, asyncio.Event] = OrderedDict()
        self._seen: deque[str] = deque(maxlen=REMEMBERED)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cuesmith-llama", daemon=True)
        self._thread.start()

    def submit(self, body: dict[str, Any]) -> Future[dict[str, Any]]:
        """Return the answer to a Chat Completions body, to be waited for; cancel it to give the call up."""
        return asyncio.run_coroutine_threadsafe(self._complete(body), self._loop)

    def close(self) -> None:
        """Give up all calls, and end the thread."""
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = body["messages"]
        beginning = json.dumps([messages[:-1], body.get("tools")])
        prefix = beginning if len(messages) > 1 and len(beginning) > SHARED else None
        async with self._slots.taken(prefix) as slot:
            if prefix is not None and self._slots.holds.get(slot) != prefix:
                await self._share(prefix, slot, body)
            return await self._send(body, slot)

    async def _send(self, body: Mapping[str, Any], slot: int) -> dict[str, Any]:
        return await post(self._address, self._key, "/v1/chat/completions", {**body, "id_slot": slot})

    async def _share(self, prefix: str, slot: int, body: Mapping[str, Any]) -> None:
        """Give a slot the beginning of its call, if it is kept; compute and keep it, if others want it."""
        name = hashlib.sha256(prefix.encode(errors="surrogatepass")).hexdigest()[:24]
        first = name not in self._seen
        if first:
            self._seen.append(name)
            await asyncio.sleep(TOGETHER)
        if name in self._kept:
            self._kept.move_to_end(name)
            await self._kept[name].wait()
            if name in self._kept:
                await self._act(slot, "restore", name)
        elif not first or any(each.prefix == prefix for each in self._slots.queue):
            await self._keep(name, slot, body)

    async def _keep(self, name: str, slot: int, body: Mapping[str, Any]) -> None:
        """Compute a call's prompt in a slot, and keep it; others with the same beginning wait meanwhile."""
        ready = self._kept[name] = asyncio.Event()
        kept = False
        try:
            plain = {k: v for k, v in body.items() if k not in ("response_format", "logprobs", "top_logprobs")}
            answer = await self._send({**plain, "max_tokens": 1}, slot)
            kept = "choices" in answer and await self._act(slot, "save", name)
        finally:
            if not kept:
                self._kept.pop(name, None)
            ready.set()
        while len(self._kept) > KEPT:
            self._forget(self._kept.popitem(last=False)[0])

    async def _act(self, slot: int, action: str, name: str) -> bool:
        """Save or restore what a slot has computed; a failure costs time alone."""
        answer = await post(self._address, self._key, f"/slots/{slot}?action={action}", {"filename": name})
        return "error" not in answer


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)
