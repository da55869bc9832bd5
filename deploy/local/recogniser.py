"""A small recogniser of English behind OpenAI's wire protocol, so that there is a transcript without anybody's key.

PocketSphinx with the model that its package ships: it was made for commands in clear speech, and guesses at the rest.
`python -m deploy.local.recogniser PORT` is its server: `POST /v1/audio/transcriptions`.
"""

import asyncio
import io
import json
import random
import sys
import urllib.error
import urllib.request
from array import array
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import ClassVar, cast

import av
from aiohttp import BodyPartReader, web
from pocketsphinx import Decoder

from deploy.local.server import LOOPBACK, Command, Server, bare_environment

MODEL = "pocketsphinx"
MAX_SECONDS = 60
MAX_BYTES = 25 * 1024 * 1024
MAX_FIELD_BYTES = 1024
HERTZ = 16_000
LOUDEST = 32_767
VOLUME = 0.6
# Synthetic speech has silence without any noise, which the model has never heard: it would cost half of the words.
NOISE = 15.0
PAUSE_SECONDS = 0.2


class Recogniser(Server):
    """The local recogniser's server."""

    name: ClassVar[str] = "recogniser"

    @property
    def url(self) -> str:
        """The base URL that an OpenAI client takes."""
        return f"http://{LOOPBACK}:{self.port}/v1"

    @property
    def command(self) -> Command:
        """This module as a program."""
        root = Path(__file__).parents[2]
        env = {**bare_environment(), "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
        return Command((sys.executable, "-m", __name__, str(self.port)), env=env, folder=self.folder)

    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


class Refused(Exception):
    """A recording that this server does not take."""


def hear(file: bytes, decoder: Decoder) -> tuple[str, float]:
    """The words of a recording, and its seconds. Refused when it is too long or can't be decoded."""
    sound = _sound(file)
    seconds = len(sound) / HERTZ
    decoder.start_utt()
    decoder.process_raw(_for_the_model(sound).tobytes(), full_utt=True)
    decoder.end_utt()
    heard = decoder.hyp()
    return (str(heard.hypstr) if heard is not None else ""), seconds


def _sound(file: bytes) -> "array[int]":
    """16-bit samples of one channel."""
    sound = array("h")
    try:
        with av.open(io.BytesIO(file), "r", metadata_errors="ignore") as container:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=HERTZ)
            for frame in container.decode(audio=0):
                _append(sound, resampler, frame)
            _append(sound, resampler, None)
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise Refused("The audio file can't be decoded.") from error
    return sound


def _append(sound: "array[int]", resampler: av.AudioResampler, frame: av.AudioFrame | None) -> None:
    for resampled in resampler.resample(frame):
        sound.frombytes(bytes(resampled.planes[0])[: 2 * resampled.samples])
    if len(sound) > MAX_SECONDS * HERTZ:
        raise Refused(f"The audio is longer than {MAX_SECONDS} seconds.")


def _for_the_model(sound: "array[int]") -> "array[int]":
    """As loud as what the model has learned from, with a pause around it and a little noise."""
    pause = array("h", bytes(2 * round(PAUSE_SECONDS * HERTZ)))
    factor = VOLUME * LOUDEST / max(max(sound, default=0), -min(sound, default=0), 1)
    noise = _noise()
    return array("h", (int(sample * factor + next(noise)) for sample in pause + sound + pause))


def _noise() -> Iterator[float]:
    """The same each time, so that a recording is heard alike each time."""
    source = random.Random(1)
    return cycle([source.gauss(0, NOISE) for _ in range(3 * HERTZ)])


def make_app() -> web.Application:
    """The server; it hears one recording at a time."""
    decoder, turn = Decoder(samprate=HERTZ, loglevel="FATAL"), asyncio.Lock()

    async def transcribe(request: web.Request) -> web.Response:
        fields, file = await _read(request)
        if file is None:
            return _error(400, "There is no file.")
        if fields.get("language", "en") != "en":
            return _error(400, "Only English is understood.", param="language", code="unsupported_language")
        try:
            async with turn:
                text, seconds = await asyncio.to_thread(hear, file, decoder)
        except Refused as refused:
            return _error(400, str(refused), param="file")
        answer = {"text": text}
        if fields.get("response_format") == "verbose_json":
            return web.json_response({"task": "transcribe", "language": "english", "duration": seconds, **answer})
        return web.json_response(answer)

    async def alive(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application(client_max_size=MAX_BYTES)
    app.add_routes([web.post("/v1/audio/transcriptions", transcribe), web.get("/health", alive)])
    return app


async def _read(request: web.Request) -> tuple[dict[str, str], bytes | None]:
    fields: dict[str, str] = {}
    file: bytes | None = None
    async for part in await request.multipart():
        reader = cast(BodyPartReader, part)
        data = bytes(await reader.read(decode=False))
        if reader.name == "file":
            file = data
        elif reader.name and len(data) <= MAX_FIELD_BYTES:
            fields[reader.name] = data.decode(errors="replace")
    return fields, file


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> web.Response:
    detail = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return web.Response(status=status, text=json.dumps({"error": detail}), content_type="application/json")


if __name__ == "__main__":
    web.run_app(make_app(), host=LOOPBACK, port=int(sys.argv[1]), print=None, access_log=None)
