"""Sound for tests: a wavering tone in any format, and a spoken sentence that is kept beside."""

import math
import struct
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import av
from av.audio.stream import AudioStream

SPOKEN = Path(__file__).parent / "spoken.flac"
"""espeak-ng says "good morning how are you"."""

# Container and codec, by the name that a file of it would end in.
CODECS = {
    "flac": ("flac", "flac"),
    "mp3": ("mp3", "libmp3lame"),
    "mp4": ("mp4", "aac"),
    "m4a": ("ipod", "aac"),
    "mpeg": ("mpeg", "mp2"),
    "mpga": ("mp2", "mp2"),
    "oga": ("oga", "flac"),
    "ogg": ("ogg", "libopus"),
    "wav": ("wav", "pcm_s16le"),
    "webm": ("webm", "libopus"),
}
RATE = 48_000


@lru_cache(maxsize=64)
def tone(extension: str = "wav", seconds: float = 1.0, *, rate: int = RATE, **options: str) -> bytes:
    """A file of so much sound. Options are the container's."""
    container_name, codec = CODECS[extension]
    # Some containers are finished by going back to their beginning by name.
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"tone.{extension}"
        with av.open(str(file), "w", format=container_name, options=options) as container:
            stream = cast(AudioStream, container.add_stream(codec, rate=rate))
            stream.layout = "mono"
            stream.bit_rate = 32_000
            for frame in _frames(seconds, rate):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return file.read_bytes()


def _frames(seconds: float, rate: int) -> list[av.AudioFrame]:
    samples = round(seconds * rate)
    second = _second(rate)
    return [_frame(second[: 2 * min(rate, samples - start)], start, rate) for start in range(0, samples, rate)]


def _frame(data: bytes, start: int, rate: int) -> av.AudioFrame:
    frame = av.AudioFrame(format="s16", layout="mono", samples=len(data) // 2)
    frame.planes[0].update(data.ljust(frame.planes[0].buffer_size, b"\0"))
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame


@lru_cache
def _second(rate: int) -> bytes:
    waver = (math.sin(2 * math.pi * 3 * n / rate) for n in range(rate))
    pitch = (math.sin(2 * math.pi * 440 * n / rate) for n in range(rate))
    return struct.pack(f"<{rate}h", *(int(8_000 * (1 + w) / 2 * p) for w, p in zip(waver, pitch, strict=True)))


def wav_of_size(size: int) -> bytes:
    """A whole wav of exactly so many bytes, nearly all of it silence at 48 kHz."""
    data = size - 44
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", size - 8, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", data
    )
    return head + bytes(data)


def id3(size: int, *, version: int = 4, declared: int | None = None, footer: bool = False) -> bytes:
    """An ID3v2 tag with so many bytes of padding, or one that gives another size."""
    rest = bytes([version, 0, 0x10 if footer else 0, *_seven_bits(size if declared is None else declared)])
    return b"ID3" + rest + bytes(size) + (b"3DI" + rest if footer else b"")


def _seven_bits(size: int) -> list[int]:
    return [size >> shift & 0x7F for shift in (21, 14, 7, 0)]


def ape(size: int) -> bytes:
    """An APEv2 tag with one text, between a header and a footer."""
    item = struct.pack("<II", size, 0) + b"Title\0" + b"x" * size
    ends = [
        struct.pack("<8sIIII8x", b"APETAGEX", 2_000, len(item) + 32, 1, flags) for flags in (0xA0 << 24, 0x80 << 24)
    ]
    return ends[0] + item + ends[1]


def wav(
    *chunks: bytes, seconds: float = 2.0, declared: int | None = None, form: bytes = b"RIFF", fmt: bytes = b""
) -> bytes:
    """Silence, with chunks before it, or with a data size that is not its own."""
    data = bytes(round(seconds * RATE) * 2)
    fmt = fmt or struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    body = b"WAVE" + b"".join(chunks) + fmt
    body += struct.pack("<4sI", b"data", len(data) if declared is None else declared & 0xFFFF_FFFF) + data
    return form + struct.pack("<I", len(body)) + body


def boxes(mp4: bytes) -> dict[bytes, bytes]:
    """The outermost boxes by name."""
    found, offset = {}, 0
    while offset < len(mp4):
        length = int.from_bytes(mp4[offset : offset + 4], "big")
        found[mp4[offset + 4 : offset + 8]] = mp4[offset : offset + length]
        offset += length
    return found


def quicktime(*names: bytes, seconds: float = 2.0) -> bytes:
    """A file of these boxes, in this order, without a type. What the sound's box does not hold is a filler."""
    parts = boxes(tone("mp4", seconds))
    filler = struct.pack(">I4s8x", 16, b"wide")
    chosen = [parts.get(name) or filler[:4] + name + filler[8:] for name in names]
    offset = sum(len(part) for part in chosen[: names.index(b"mdat")])
    moved = offset - tone("mp4", seconds).index(parts[b"mdat"])
    return b"".join(_with_moved_chunks(part, moved) if part[4:8] == b"moov" else part for part in chosen)


def _with_moved_chunks(moov: bytes, by: int) -> bytes:
    table = moov.index(b"stco") + 8
    count = int.from_bytes(moov[table : table + 4], "big")
    offsets = struct.unpack_from(f">{count}I", moov, table + 4)
    end = table + 4 + 4 * count
    return moov[: table + 4] + struct.pack(f">{count}I", *(offset + by for offset in offsets)) + moov[end:]


def amr_in_3gp(seconds: float = 2.0) -> bytes:
    """What a phone records: 50 frames a second of 12.2 kbit/s."""
    raw = b"#!AMR\n" + (b"\x3c" + bytes(31)) * round(seconds * 50)
    file = BytesIO()
    with av.open(BytesIO(raw), "r", format="amr") as source, av.open(file, "w", format="3gp") as container:
        stream = container.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    return file.getvalue()


@lru_cache(maxsize=1)
def bomb() -> bytes:
    """A FLAC of 300 KB that says nothing for two days: each of its frames is 65,535 times the same sample."""
    rate, frames = 8_000, 21_000
    properties = (rate << 44) | (15 << 36)  # one channel, 16 bits, as many samples as there will be
    info = struct.pack(">HH6xQ16x", 65_535, 65_535, properties)
    return b"fLaC\x80" + len(info).to_bytes(3, "big") + info + b"".join(map(_silent_frame, range(frames)))


def _silent_frame(number: int) -> bytes:
    head = b"\xff\xf8\x74\x08" + _coded(number) + struct.pack(">H", 65_534)
    frame = head + bytes([_crc(head, 0x07, 8)]) + b"\x00\x00\x00"
    return frame + struct.pack(">H", _crc(frame, 0x8005, 16))


def _coded(number: int) -> bytes:
    """As UTF-8 would write it."""
    return (
        chr(number).encode()
        if not 0xD800 <= number < 0xE000
        else bytes([0xED, 0x80 | number >> 6 & 63, 0x80 | number & 63])
    )


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    crc, top = 0, 1 << (bits - 1)
    for byte in data:
        crc ^= byte << (bits - 8)
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & (1 << bits) - 1
    return crc
