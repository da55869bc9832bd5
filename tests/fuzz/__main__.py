"""Read random and mutated answers: `make fuzz STREAMS=1000000 SEED=1 RECORDINGS=folder`. Ends with 1 if any was a bug.

A recording is a JSON file with `api` ("chat" or "gemini"), `status` and its body as `text` or `base64`. Nothing else of
it is looked at. Each stream is made from its own seed, which is printed with what went wrong: `--only SEED` runs it.
"""

import argparse
import asyncio
import base64
import json
import logging
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import structlog

from tests.conformance.exchanges import EXCHANGES
from tests.fuzz.mutations import mutated, pieces_of
from tests.fuzz.reading import GOOGLE, OPENAI, read

Seed = tuple[str, bytes]
SHOWN_BUGS = 20
SLOW_SECONDS = 2.0
MAX_SEED_BYTES = 20_000


def main() -> int:
    """Run it, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Stop after this time.")
    parser.add_argument("--recordings", type=Path, help="A folder of recorded answers.")
    parser.add_argument("--only", help="Run one stream, by the seed that was printed.")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    seeds = [(exchange.vendor, exchange.body) for exchange in EXCHANGES]
    if options.recordings is not None:
        seeds += recorded(options.recordings)
    print(f"{len(seeds)} answers to start from", flush=True)
    fuzz = Fuzz(seeds)
    if options.only:
        asyncio.run(fuzz.one(options.only))
    else:
        asyncio.run(fuzz.run(options.seed, options.streams, options.seconds))
    fuzz.report()
    return 1 if fuzz.bugs else 0


def recorded(folder: Path) -> list[Seed]:
    """The bodies of recorded chat completions and Gemini answers."""
    seeds: list[Seed] = []
    for path in sorted(folder.glob("*.json")):
        fields = json.loads(path.read_text())
        if fields.get("api") not in ("chat", "gemini") or fields.get("status") != 200:
            continue
        body = fields["text"].encode() if "text" in fields else base64.b64decode(fields["base64"])
        if len(body) <= MAX_SEED_BYTES:
            seeds.append((GOOGLE if fields["api"] == "gemini" else OPENAI, body))
    return seeds


class Fuzz:
    """Reads streams, one after the other, and counts."""

    def __init__(self, seeds: Sequence[Seed]) -> None:
        self._seeds = seeds
        self._began_at = time.monotonic()
        self._memory: list[int] = []
        self.streams = self.past_first_delta = 0
        self.ends: Counter[str] = Counter()
        self.bugs: Counter[str] = Counter()
        self.slow: list[str] = []

    async def run(self, seed: int, streams: int, seconds: float) -> None:
        """Read so many, or as many as the time allows."""
        progress_every = max(1, streams // 50)
        for number in range(streams):
            await self.one(f"{seed}/{number}")
            if number % progress_every == progress_every // 10:
                self._progress()
            if time.monotonic() - self._began_at > seconds:
                break
        self._memory.append(resident_kib())

    async def one(self, seed: str) -> None:
        """Make a stream from its seed, and read it."""
        chance = random.Random(seed)
        vendor, body = chance.choice(self._seeds)
        pieces = pieces_of(chance, mutated(chance, body))
        began_at = time.perf_counter()
        try:
            reading = await read(vendor, pieces)
        except Exception as error:
            self._note_bug(seed, error)
            self.ends["BROKE"] += 1
        else:
            self.past_first_delta += reading.past_first_delta
            self.ends[reading.code or "answer"] += 1
            if reading.unexpected is not None:
                self._note_bug(seed, reading.unexpected)
        self.streams += 1
        if (seconds := time.perf_counter() - began_at) > SLOW_SECONDS:
            self.slow.append(f"{seed}: {seconds:.1f} s for {sum(map(len, pieces))} bytes")

    def _note_bug(self, seed: str, error: BaseException) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno} in {place.name}"
        if not self.bugs[kind] and len(self.bugs) < SHOWN_BUGS:
            print(f"BUG with seed {seed}", flush=True)
            traceback.print_exception(error, limit=-6)
        self.bugs[kind] += 1

    def _progress(self) -> None:
        self._memory.append(resident_kib())
        rate = self.streams / (time.monotonic() - self._began_at)
        share = self.past_first_delta / self.streams
        print(
            f"{self.streams:>9} streams, {rate:,.0f}/s, past the first delta {share:.0%}, "
            f"{self._memory[-1] / 1024:.0f} MiB, bugs {sum(self.bugs.values())}",
            flush=True,
        )

    def report(self) -> None:
        """Print the counts."""
        print(f"\n{self.streams} streams in {time.monotonic() - self._began_at:.0f} s")
        print(f"past the first delta: {self.past_first_delta} ({self.past_first_delta / max(1, self.streams):.1%})")
        for end, count in self.ends.most_common():
            print(f"  {end}: {count}")
        if self._memory:
            start, middle, end_kib = self._memory[0], self._memory[len(self._memory) // 2], self._memory[-1]
            print(f"memory at start, middle, end: {start} {middle} {end_kib} KiB")
        print(f"slow: {self.slow or 'none'}")
        print(f"unexpected exceptions: {dict(self.bugs) or 'none'}")


def resident_kib() -> int:
    """The process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4


if __name__ == "__main__":
    sys.exit(main())
