"""Fetches what others publish or answer: uncompressed, without redirects, and no more than was asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    import httpx

REFRESH, KEPT = 60, 24 * 3600  # seconds
MAX_PUBLISHED = 256 * 1024  # bytes
UNCOMPRESSED = {"Accept-Encoding": "identity"}
T = TypeVar("T")
log = logging.getLogger("metrics_api")


async def http_client(**options: Any) -> httpx.AsyncClient:
    """Made in a thread, for importing httpx and reading the certificates takes a tenth of a second."""
    return cast("httpx.AsyncClient", await asyncio.to_thread(lambda: import_module("httpx").AsyncClient(**options)))


async def read_answer(response: httpx.Response, limit: int) -> bytes:
    """The body of a 200; raises ValueError for another status, or for more bytes than limit."""
    if response.status_code != 200:
        raise ValueError(f"it answered with status {response.status_code}")
    # A few hundred bytes may come to gigabytes, and nobody asked for that.
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ValueError("its answer is compressed")
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit:
            raise ValueError(f"its answer is larger than {limit} bytes")
    return body


class Published(Generic[T]):
    """What the issuer publishes, fetched when it is missing and by a clock, kept for a day while that fails.

    At most one fetch is under way, one per 10 s after a success, one per 1, 2, 4, 8, 10 s after failures.
    """

    def __init__(self, url: str, parse: Callable[[bytes], dict[str, T]]) -> None:
        self.url, self.parse = url, parse
        self.forgotten_by: list[Callable[[], None]] = []
        self.known: dict[str, T] = {}
        self.body = b""
        self.failures = 0
        self.fetched_at = self.next_fetch = float("-inf")
        self.fetching: asyncio.Task[None] | None = None

    async def soon(self) -> dict[str, T]:
        """What is known, after a second of a first fetch at most."""
        if not self.known and (fetching := self.fetch()):
            await asyncio.wait([fetching], timeout=1)
        return self.known

    async def keep_fresh(self) -> None:
        """Fetch what is known again, for ever, so that what the issuer withdraws counts for a minute more at most."""
        while True:
            await asyncio.sleep(1)
            age = time.monotonic() - self.fetched_at
            if self.known and age > KEPT:
                self.replace({}, b"")
            elif self.known and age > REFRESH:
                self.fetch()

    def fetch(self) -> asyncio.Task[None] | None:
        """The last fetch, or a new one when it is over and time for another."""
        if (self.fetching is None or self.fetching.done()) and time.monotonic() >= self.next_fetch:
            self.fetching = asyncio.create_task(self.fetch_now(), name=self.url)
        return self.fetching

    async def fetch_now(self) -> None:
        try:
            async with asyncio.timeout(3):
                async with (
                    await http_client() as client,
                    client.stream("GET", self.url, headers=UNCOMPRESSED) as response,
                ):
                    body = await read_answer(response, MAX_PUBLISHED)
            self.replace(self.parse(body), body)
            self.failures, self.fetched_at = 0, time.monotonic()
            self.next_fetch = self.fetched_at + 10
        except Exception as exc:  # whatever an endpoint may do and whatever it may send
            self.failures += 1
            self.next_fetch = time.monotonic() + min(2 ** (self.failures - 1), 10)
            fields = {"url": self.url, "reason": repr(exc)}
            log.warning("what the issuer publishes cannot be fetched", extra={"fields": fields})

    def replace(self, known: dict[str, T], body: bytes) -> None:
        """Whoever was let in by keys that were the issuer's has to be looked at again when they are others."""
        changed, self.known, self.body = body != self.body, known, body
        for forget in self.forgotten_by if changed else ():
            forget()
