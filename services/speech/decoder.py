"""The program that decodes one file to tell how long it sounds: `python -m services.speech.decoder FD FORMAT SIZE MAX`.

It reads what strangers have sent, so it is a process of its own that can do little: it inherits one open file and no
secret, is bounded in time and memory, and reads with one demuxer, which opens nothing else. It prints one JSON line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import BinaryIO

import av
from av.audio.stream import AudioStream
from av.container import InputContainer

from services.speech.formats import Format, declared_flac_samples, declared_mp3_frames, is_cut_off, sound_of

CPU_SECONDS = 60
MEMORY_BYTES = 1024 * 1024 * 1024
OPEN_FILES = 32
NICENESS = 5
# A file of which more than one packet in so many can't be decoded is no recording any more.
PACKETS_A_FAULT = 10
# What phones put into mp4's relatives and providers don't decode, by FFmpeg's names.
CODECS_NOT_TAKEN = frozenset({"amrnb", "amrwb", "amr_nb", "amr_wb", "qcelp", "evrc"})


class Broken(Exception):
    """The file is cut off, or has nothing that can be decoded."""


class CodecNotTaken(Exception):
    """The sound is coded as providers don't take it."""


class TooLong(Exception):
    """There is more sound than is taken."""


def main(argv: list[str]) -> None:
    """Print {"seconds": …}, {"refused": "too_long"}, or {"refused": "undecodable" or "codec", "because": …}."""
    number, name, size, most = argv
    bound()
    try:
        with open(int(number), "rb", closefd=False) as file:  # a number, not a path
            told: dict[str, object] = {"seconds": measure(file, Format[name], int(size), float(most))}
    except TooLong:
        told = {"refused": "too_long"}
    except CodecNotTaken as error:
        told = {"refused": "codec", "because": str(error)}
    except Exception as error:  # whatever a broken file makes the library say
        told = {"refused": "undecodable", "because": type(error).__name__}
    print(json.dumps(told))  # noqa: T201  # how it answers


def bound() -> None:
    """Take from this process what it does not need."""
    os.nice(NICENESS)
    # At the first limit the process is told why it ends, SIGXCPU; at the second it would look like anybody's SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


def measure(file: BinaryIO, format: Format, size: int, most_seconds: float) -> float:
    """The seconds of the file's first sound track, by decoding all of it. Raises Broken, CodecNotTaken or TooLong."""
    if is_cut_off(file, format, size):
        raise Broken
    file = sound_of(file, format, size)
    frames = declared_mp3_frames(file) if format is Format.MP3 else 0
    samples = declared_flac_samples(file) if format is Format.FLAC else 0
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    with av.open(file, "r", format=format.value.demuxer, metadata_errors="ignore") as container:
        track, sound = _track(container), _Sound(most_seconds)
        sound.decode(container, track)
        if format is Format.MP4 and any(entry.pos + entry.size > length for entry in track.index_entries):
            raise Broken
    if sound.packets < frames - 1 or sum(sound.samples.values()) < samples:
        raise Broken
    if format is Format.MPEG and sound.is_corrupt:
        raise Broken
    if not sound.seconds or sound.faults * PACKETS_A_FAULT > sound.packets:
        raise Broken
    return sound.seconds


def _track(container: InputContainer) -> AudioStream:
    if not container.streams.audio:
        raise Broken
    track = container.streams.audio[0]
    if track.codec_context.name in CODECS_NOT_TAKEN:
        raise CodecNotTaken(track.codec_context.name)
    track.codec_context.thread_count = 1
    return track


class _Sound:
    """Counts what comes out of a decoder."""

    def __init__(self, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        self.packets = self.faults = 0
        self.is_corrupt = False
        self.samples: dict[int, int] = {}
        """By their rate, which may change on the way."""

    @property
    def seconds(self) -> float:
        """How long it sounds."""
        return sum(count / rate for rate, count in self.samples.items())

    def decode(self, container: InputContainer, track: AudioStream) -> None:
        """Everything of one track."""
        for packet in container.demux(track):
            if packet.size:
                self.packets += 1
                self.is_corrupt |= packet.is_corrupt
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                self.faults += 1
                continue
            for frame in frames:
                self.samples[frame.sample_rate] = self.samples.get(frame.sample_rate, 0) + frame.samples
            if frames and self.seconds > self._most_seconds:
                raise TooLong


if __name__ == "__main__":
    main(sys.argv[1:])
