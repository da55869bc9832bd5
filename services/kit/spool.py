"""A file on its way through a process: on disk, without a name, so that even a crash leaves nothing behind."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast

T = TypeVar("T")

# What is gathered before a thread is asked to write it, and what is read at a time.
PIECE_BYTES = 128 * 1024


class Spool:
    """Bytes written once, in order, and then read as often as needed. Memory holds one piece of them.

    The folder is Python's usual one for temporary files, which TMPDIR names. A full disk is an OSError.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="backendai-", buffering=0)  # noqa: SIM115  # closed by `close`
        self._gathered = bytearray()
        self._in_threads: set[asyncio.Future[Any]] = set()
        self.size = 0

    def fileno(self) -> int:
        """For a child process to inherit. Its position is nobody's: read at an offset."""
        return self._file.fileno()

    async def write(self, piece: bytes) -> None:
        """Append a piece; `flush` after the last."""
        self._gathered += piece
        self.size += len(piece)
        if len(self._gathered) >= PIECE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write what has been gathered."""
        gathered, self._gathered = self._gathered, bytearray()
        if gathered:
            await self._in_thread(lambda: _write(self.fileno(), gathered))

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, from the start."""
        for offset in range(0, self.size, PIECE_BYTES):
            yield await self.read(PIECE_BYTES, offset)

    async def read(self, size: int, offset: int) -> bytes:
        """So many bytes from there, fewer at the end."""
        return await self._in_thread(lambda: os.pread(self.fileno(), size, offset))

    def reader(self) -> BinaryIO:
        """A binary file over all of it, with a position of its own. Good until the spool is closed."""
        return cast(BinaryIO, _Reader(self))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Beside the event loop. The work goes on when its caller is cancelled, and the file stays open for it."""
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self._in_threads.add(future)
        try:
            return await asyncio.shield(future)
        finally:
            if future.done():
                self._in_threads.discard(future)

    def close(self) -> None:
        """Give the space back, as soon as no thread uses the file: its number may be another file's next."""
        self._gathered.clear()
        for future in self._in_threads:
            future.add_done_callback(self._close_after)
        if not self._in_threads:
            self._file.close()

    def _close_after(self, future: asyncio.Future[Any]) -> None:
        self._in_threads.discard(future)
        if not future.cancelled():
            future.exception()  # its caller has left: nobody else would look
        if not self._in_threads:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Reader(io.RawIOBase):
    """Reads a spool from a position of its own."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self._spool, self._position = spool, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._spool.fileno()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._spool.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # the stub's Buffer needs 3.12
        count = os.preadv(self._spool.fileno(), [buffer], self._position)
        self._position += count
        return count


def _write(number: int, gathered: bytearray) -> None:
    """All of it, which one call need not do."""
    rest = memoryview(gathered)
    while rest:
        rest = rest[os.write(number, rest) :]
