"""A TCP proxy on loopback that does what middleboxes do to connections: end them, or forget them without a word."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from deploy.local.server import LOOPBACK, free_port

PIECE = 64 * 1024


class Proxy:
    """Passes bytes on in both directions. With `forgets_after`, a connection that was idle for so long is dropped in
    silence: it stays open, and nothing passes any more.
    """

    def __init__(self, port: int, *, forgets_after: float | None = None) -> None:
        self.upstream, self.port = port, free_port()
        self.forgets_after = forgets_after
        self.accepted = self.forgotten = 0
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    def url_of(self, url: str) -> str:
        """The same server by way of the proxy."""
        return url.replace(f":{self.upstream}/", f":{self.port}/")

    def forget(self) -> None:
        """Pass nothing on any more for those that are connected now."""
        for link in self._links:
            link.forget()

    def reset(self) -> None:
        """End all that are connected now."""
        for link in self._links:
            link.end()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, LOOPBACK, self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [link.task for link in self._links]
        self.reset()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(self)
        self._links.add(link)
        try:
            await link.run(reader, writer)
        except asyncio.CancelledError:
            pass  # its end was asked for
        finally:
            self._links.discard(link)


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task, self._proxy = task, proxy
        self._is_forgotten = False
        self._used_at = 0.0

    def forget(self) -> None:
        if not self._is_forgotten:
            self._is_forgotten = True
            self._proxy.forgotten += 1

    def end(self) -> None:
        self.task.cancel()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            there, back = await asyncio.open_connection(LOOPBACK, self._proxy.upstream)
            ends.append(back)
            self._used_at = asyncio.get_running_loop().time()
            await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        except OSError:
            pass
        finally:
            for end in ends:
                with suppress(OSError, RuntimeError):
                    end.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while piece := await reader.read(PIECE):
            limit = self._proxy.forgets_after
            if limit is not None and loop.time() - self._used_at > limit:
                self.forget()
            if self._is_forgotten:
                continue
            self._used_at = loop.time()
            writer.write(piece)
            await writer.drain()
        if not self._is_forgotten:
            raise ConnectionResetError
