"""Requests as bytes on a connection, and the answers to them."""

from __future__ import annotations

import asyncio
import json


class Answer:
    """What came back on a raw connection."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        self.headers = dict(headers)
        self.repeated_headers = [name for name in self.headers if [one for one, _ in headers].count(name) > 1]
        self.body = body

    @property
    def code(self) -> str:
        """The problem's code."""
        assert self.headers["content-type"] == "application/problem+json"
        problem = json.loads(self.body)
        assert problem["request_id"] == self.headers["x-request-id"]
        return str(problem["code"])


async def read_answer(reader: asyncio.StreamReader, *, has_body: bool = True) -> Answer:
    """The next answer, which must come soon."""
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        found = Answer(head[:-4], b"")
        if has_body:
            found.body = await reader.readexactly(int(found.headers.get("content-length", "0")))
        return found


async def exchange(port: int, data: bytes) -> Answer:
    """Send these bytes and read one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await read_answer(reader)
    finally:
        writer.close()
