"""Two seconds of sound each, as recorders, taggers and pipes really write them; and files that are cut or no sound."""

import os
import struct

from services.speech.formats import Format
from tests.audio import RATE, SPOKEN, ape, id3, quicktime, tone, wav

SECONDS = 2.0
MP3, M4A = tone("mp3", SECONDS), tone("m4a", SECONDS)
PLAIN_MP3 = tone("mpga", SECONDS)
"""Without a tag, and without a frame that counts the others."""
FAST = tone("mp4", SECONDS, movflags="faststart")
FRAGMENTED = tone("mp4", SECONDS, movflags="frag_keyframe+empty_moov", frag_duration="500000")
WAV_BYTES = len(wav())
LIST = b"LIST" + struct.pack("<I", 27) + b"INFOISFT" + struct.pack("<I", 15) + b"Lavf58.29.100\0\0"
"""27 bytes, without the one that makes them even."""
EXTENSIBLE = struct.pack("<4sIHHIIHHHHI", b"fmt ", 40, 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 4) + bytes.fromhex(
    "0100000000001000800000aa00389b71"
)
DS64 = struct.pack("<4sIQQQI", b"ds64", 28, WAV_BYTES + 36, WAV_BYTES - 44, 0, 0)
JUNK = bytes(range(1, 251)) * 3
TYPE = len(b"....ftypisom....isomiso2mp41")

WHOLE: dict[str, tuple[bytes, Format]] = {
    "wav with the file's size": (wav(declared=WAV_BYTES), Format.WAV),
    "wav with the file's size and a header": (wav(declared=WAV_BYTES + 44), Format.WAV),
    "wav with 8 bytes too much": (wav(declared=WAV_BYTES - 44 + 8), Format.WAV),
    "wav from a pipe": (wav(declared=-1), Format.WAV),
    "wav without a size": (wav(declared=0), Format.WAV),
    "wav with an odd LIST": (wav(LIST), Format.WAV),
    "wav with an odd LIST that is padded": (wav(LIST + b"\0"), Format.WAV),
    "wav with an odd LIST behind": (wav() + LIST, Format.WAV),
    "wav with JUNK first": (wav(struct.pack("<4sI28x", b"JUNK", 28)), Format.WAV),
    "wav with bext first": (wav(struct.pack("<4sI602x", b"bext", 602)), Format.WAV),
    "wav with an extensible format": (wav(fmt=EXTENSIBLE), Format.WAV),
    "wav of 64 bits": (wav(DS64, declared=-1, form=b"RF64"), Format.WAV),
    "wav behind a tag": (id3(200) + wav(), Format.WAV),
    "wav with a byte behind": (wav() + b"\0", Format.WAV),
    "mp3 behind junk": (JUNK + MP3[MP3.index(b"\xff\xfb") :], Format.MP3),
    "mp3 behind a reply's head": (b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n" + PLAIN_MP3, Format.MP3),
    "mp3 behind zeros": (bytes(5_000) + PLAIN_MP3, Format.MP3),
    "mp3 behind many zeros": (bytes(300_000) + PLAIN_MP3, Format.MP3),
    "mp3 that begins in mid-frame": (PLAIN_MP3[40:], Format.MP3),
    "mp3 that begins and ends in mid-frame": (PLAIN_MP3[40:-30], Format.MP3),
    **{f"mp3 behind ID3v2.{version}": (id3(3_000, version=version) + PLAIN_MP3, Format.MP3) for version in (2, 3, 4)},
    "mp3 behind a large tag with a size of eight bits": (
        b"ID3\4\0\0" + struct.pack(">I", 100_000) + bytes(range(1, 251)) * 400 + PLAIN_MP3,
        Format.MP3,
    ),
    "mp3 behind two tags": (id3(100, version=3) + id3(200) + PLAIN_MP3, Format.MP3),
    "mp3 behind a tag with a footer": (id3(100, footer=True) + PLAIN_MP3, Format.MP3),
    "mp3 behind a tag that is longer than it says": (id3(3_000, declared=100) + PLAIN_MP3, Format.MP3),
    "mp3 behind a tag that is longer than the file": (id3(100, declared=5_000_000) + PLAIN_MP3, Format.MP3),
    "mp3 behind an APE tag": (ape(300) + PLAIN_MP3, Format.MP3),
    "mp3 behind an APE tag and ID3": (ape(300) + id3(100) + PLAIN_MP3, Format.MP3),
    "mp3 before an APE tag": (PLAIN_MP3 + ape(300), Format.MP3),
    "mp3 before lyrics": (PLAIN_MP3 + b"LYRICSBEGININD0000200000021LYRICS200TAG" + bytes(125), Format.MP3),
    "mp3 before a tag that is cut": (PLAIN_MP3 + b"TAG" + bytes(60), Format.MP3),
    "m4a with bytes behind": (M4A + JUNK, Format.MP4),
    "m4a with few bytes behind": (M4A + b"\0\0\0", Format.MP4),
    "m4a with zeros behind": (M4A + bytes(100), Format.MP4),
    "m4a with a line end behind": (M4A + b"\r\n", Format.MP4),
    "m4a with a tag behind": (M4A + b"TAG" + bytes(125), Format.MP4),
    "m4a with half a filler behind": (M4A + struct.pack(">I4s10x", 500, b"free"), Format.MP4),
    "m4a behind a tag": (id3(500) + M4A, Format.MP4),
    "m4a behind a tag, its index first": (id3(500) + FAST, Format.MP4),
    "mp4 in fragments": (FRAGMENTED, Format.MP4),
    "mp4 in fragments, with bytes behind": (FRAGMENTED + JUNK, Format.MP4),
    **{
        f"quicktime that begins with {names[0].decode()}": (quicktime(*names), Format.MP4)
        for names in (
            (b"wide", b"mdat", b"moov"),
            (b"free", b"mdat", b"moov"),
            (b"skip", b"mdat", b"moov"),
            (b"mdat", b"moov"),
            (b"moov", b"mdat"),
        )
    },
    "ogg behind a tag": (id3(300) + tone("ogg", SECONDS), Format.OGG),
    "ogg in two links": (tone("ogg", 1.0) * 2, Format.OGG),
    "webm of a browser": (tone("webm", SECONDS, live="1"), Format.WEBM),
    "webm of a browser, with bytes behind": (tone("webm", SECONDS, live="1") + b"TAG" + bytes(125), Format.WEBM),
    "mpeg with bytes behind": (tone("mpeg", SECONDS) + JUNK, Format.MPEG),
}
CUT: dict[str, bytes] = {
    "wav": wav()[: WAV_BYTES // 2],
    "wav, by two milliseconds": wav()[:-200],
    "wav of 64 bits": wav(DS64, declared=-1, form=b"RF64")[: WAV_BYTES // 2],
    "wav with an odd LIST": wav(LIST)[: WAV_BYTES // 2],
    "mp3": MP3[: len(MP3) // 2],
    "mp3 behind zeros": bytes(5_000) + PLAIN_MP3[: len(PLAIN_MP3) // 2 + 7],
    "mp3 behind a tag": id3(3_000) + PLAIN_MP3[: len(PLAIN_MP3) // 2 + 7],
    "mp3 behind junk": JUNK + PLAIN_MP3[: len(PLAIN_MP3) // 2 + 7],
    "mp3 that counts its frames behind junk": JUNK + MP3[MP3.index(b"\xff\xfb") : len(MP3) // 2],
    "mp3 in its tag": id3(5_000)[:3_000],
    "m4a": M4A[: len(M4A) // 2],
    "m4a, its index first": FAST[: len(FAST) // 2],
    "m4a, its index first, by 20 bytes": FAST[:-20],
    "m4a behind a tag": id3(500) + FAST[: len(FAST) // 2],
    "mp4 in fragments": FRAGMENTED[: len(FRAGMENTED) // 2],
    "quicktime": quicktime(b"mdat", b"moov")[:3_000],
    "quicktime, its index first": quicktime(b"moov", b"mdat")[:-3_000],
    "ogg behind a tag": id3(300) + tone("ogg", SECONDS)[:-500],
    "mpeg": tone("mpeg", SECONDS)[:-700],
}
NO_SOUND: dict[str, bytes] = {
    "text that begins like quicktime": b"and free as a bird we go " * 50,
    "text in UTF-16": b"\xff\xfe" + "This is text. ".encode("utf-16le") * 50,
    "text in UTF-16, the other way": b"\xfe\xff" + "This is text. ".encode("utf-16be") * 50,
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "noise": os.urandom(100_000).replace(b"\xff", b"\xfe"),
    "aiff": b"FORM\0\0\1\0AIFFCOMM" + bytes(200),
    "amr": b"#!AMR\n" + (b"\x3c" + bytes(31)) * 50,
}
SPOKEN_BEHIND_A_TAG = id3(300) + SPOKEN.read_bytes()
