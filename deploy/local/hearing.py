"""The program of the local recogniser: `python -m deploy.local.hearing PORT [HOST]`, on loopback unless told otherwise.

It has OpenAI's `/v1/audio/transcriptions`, over PocketSphinx with the model that its package ships, which was made for
commands in clear speech and guesses at the rest.
"""

import asyncio
import io
import json
import random
import sys
from array import array
from collections.abc import Iterator
from itertools import cycle
from typing import cast

import av
from aiohttp import BodyPartReader, web
from pocketsphinx import Decoder

from deploy.local.recogniser import MAX_SECONDS, MODEL
from deploy.local.server import LOOPBACK

MAX_BYTES = 25 * 1024 * 1024
MAX_FIELD_BYTES = 1024
HERTZ = 16_000
LOUDEST = 32_767
VOLUME = 0.6
# Synthetic speech has silence without any noise, which the model has never heard: it would cost half of the words.
NOISE = 15.0
PAUSE_SECONDS = 0.2


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


class Ears:
    """One recording at a time, by a model that is loaded while the server already answers."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._loading = asyncio.create_task(asyncio.to_thread(Decoder, samprate=HERTZ, loglevel="FATAL"))

    async def hear(self, file: bytes) -> tuple[str, float]:
        """See `hear`."""
        async with self._turn:
            return await asyncio.to_thread(hear, file, await self._loading)


EARS = web.AppKey("ears", Ears)


def make_app() -> web.Application:
    """The server."""
    app = web.Application(client_max_size=MAX_BYTES)
    app.add_routes([web.post("/v1/audio/transcriptions", transcribe), web.get("/health", tell_health)])
    app.on_startup.append(_grow_ears)
    return app


async def _grow_ears(app: web.Application) -> None:
    app[EARS] = Ears()


async def tell_health(request: web.Request) -> web.Response:
    """That the server answers."""
    return web.json_response({"status": "ok", "model": MODEL})


async def transcribe(request: web.Request) -> web.Response:
    """A transcript in the form that is asked for, or OpenAI's kind of error."""
    fields, file = await _read(request)
    if file is None:
        return _error(400, "There is no file.")
    if fields.get("language", "en") != "en":
        return _error(400, "Only English is understood.", param="language", code="unsupported_language")
    try:
        text, seconds = await request.app[EARS].hear(file)
    except Refused as refused:
        return _error(400, str(refused), param="file")
    answer = {"text": text}
    if fields.get("response_format") == "verbose_json":
        return web.json_response({"task": "transcribe", "language": "english", "duration": seconds, **answer})
    return web.json_response(answer)


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


def main(port: int, host: str = LOOPBACK) -> None:
    """Answer until SIGTERM or SIGINT."""
    web.run_app(make_app(), host=host, port=port, print=None, access_log=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
