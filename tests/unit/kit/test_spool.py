"""A file on its way: whole when it is read, and gone when it is closed, whoever has left."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from services.kit import spool as module
from services.kit.spool import PIECE_BYTES, Spool
from tests.integration.waiting import until


async def filled(data: bytes, piece: int) -> Spool:
    spool = Spool()
    for start in range(0, len(data), piece):
        await spool.write(data[start : start + piece])
    await spool.flush()
    return spool


def names_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 7])
async def test_what_was_written_is_read(size: int) -> None:
    data = os.urandom(size)
    with await filled(data, 10_007) as spool:
        assert spool.size == size
        assert b"".join([piece async for piece in spool.pieces()]) == data


async def test_two_readers_do_not_disturb_each_other() -> None:
    with await filled(b"0123456789", 3) as spool:
        first, second = spool.reader(), spool.reader()
        assert first.read(3) == b"012"
        assert second.read() == b"0123456789"
        assert first.read() == b"3456789"
        assert (first.seek(-2, os.SEEK_END), first.read()) == (8, b"89")
        assert (first.seek(1), first.seek(2, os.SEEK_CUR), first.tell()) == (1, 3, 3)


async def test_it_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with await filled(b"secret", 6):
        assert names_in(tmp_path) == []


async def test_a_number_is_not_given_back_while_a_thread_still_writes_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, write = threading.Event(), module._write

    def slowly(number: int, gathered: Any) -> None:
        may_write.wait(10)
        write(number, gathered)

    monkeypatch.setattr(module, "_write", slowly)
    spool = Spool()
    writing = asyncio.create_task(spool.write(bytes(PIECE_BYTES)))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    spool.close()
    assert os.fstat(spool.fileno()).st_size == 0
    may_write.set()

    async def closed() -> bool:
        return spool._file.closed

    await until(closed, saying="the file is closed")


async def test_a_full_disk_is_an_error_of_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int, gathered: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with Spool() as spool:
        await spool.write(b"a")
        with pytest.raises(OSError, match="No space"):
            await spool.flush()
