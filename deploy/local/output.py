"""The runner's screen: every line behind the name of who said it, in that process's colour."""

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

COLOURS = {"gateway": 36, "chat": 32, "billing": 33, "agent": 35, "postgres": 34, "nats": 94, "ai": 95}
BOLD, WHITE = 1, 37
NAME_WIDTH = 10

# What a healthy server says of itself.
CHATTER = {
    "postgres": re.compile(r"the database system is (starting up|shutting down|not yet)|Consistent recovery state"),
    "nats": re.compile(r"\[(INF|DBG|TRC)\]"),
}


def coloured(text: str, colour: int) -> str:
    """`text` in an ANSI colour, where the screen shows colours and nobody asked for none."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def say(line: str) -> None:
    """Print a line of the runner's own."""
    _write(f"{_prefix('up', BOLD)} {line}")


def show(text: str) -> None:
    """Print text as it is."""
    _write(text)


def _prefix(name: str, colour: int) -> str:
    return coloured(f"{name:<{NAME_WIDTH}}│", colour)


def _write(line: str) -> None:
    with suppress(OSError):  # a closed terminal or pipe must not keep the runner from its stop
        print(line, flush=True)


class Screen:
    """Takes one process's output from Circus and prints it line by line."""

    def __init__(self, name: str, *, verbose: bool = False) -> None:
        kind = name.split(".")[0]
        self._prefix = _prefix(name, COLOURS.get(kind, WHITE))
        self._chatter = None if verbose else CHATTER.get(kind)
        self._rest: dict[tuple[int, str], bytes] = {}

    def __call__(self, chunk: Mapping[str, Any]) -> None:
        """Print the whole lines of a chunk and keep the broken one for the next."""
        source = (chunk["pid"], chunk["name"])
        *lines, rest = (self._rest.pop(source, b"") + chunk["data"]).split(b"\n")
        if rest:
            self._rest[source] = rest
        for line in lines:
            self._print(line)

    def close(self) -> None:
        """Print what did not end in a newline."""
        for rest in self._rest.values():
            self._print(rest)
        self._rest.clear()

    def _print(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text and not (self._chatter and self._chatter.search(text)):
            _write(f"{self._prefix} {text}")
