"""The audio files that are taken, told apart by their content, and whether one is all there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO

HEAD_BYTES = 64
# Sizes from here on are what programs write that could not know the size when they began.
LEAST_UNKNOWN_SIZE = 0x7FFF_0000
_MP4_BOXES = frozenset(
    b"ftyp moov mdat free skip wide uuid moof mfra sidx styp ssix prft pdin meta meco udta emsg".split()
)
_WEBM_OUTERMOST = frozenset((b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\xec"))

# Of MPEG audio: kilobits a second by version (1; 2 and 2.5) and layer, samples a second by version.
_MP3_KILOBITS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


@dataclass(frozen=True, slots=True)
class Type:
    """How a kind of file is named to a provider, and which of FFmpeg's demuxers reads it: that one and no other."""

    extension: str
    media_type: str
    demuxer: str


class Format(Enum):
    """What a file is."""

    FLAC = Type("flac", "audio/flac", "flac")
    MP3 = Type("mp3", "audio/mpeg", "mp3")
    MP4 = Type("mp4", "audio/mp4", "mov")
    MPEG = Type("mpeg", "video/mpeg", "mpeg")
    OGG = Type("ogg", "audio/ogg", "ogg")
    WAV = Type("wav", "audio/wav", "wav")
    WEBM = Type("webm", "audio/webm", "matroska")


def find_format(file: BinaryIO) -> Format | None:
    """The format that the first bytes tell; None for a file of any other type. A tag of ID3 is looked behind."""
    head = _at(file, 0, HEAD_BYTES)
    after_tag = _end_of_id3(head)
    if after_tag:
        behind = _at(file, after_tag, HEAD_BYTES)
        return Format.FLAC if behind.startswith(b"fLaC") else Format.MP3
    return next((format for format, looks_so in _LOOKS.items() if looks_so(head)), None)


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _end_of_id3(head: bytes) -> int:
    """Where an ID3v2 tag ends; 0 without one. Its size has seven bits a byte."""
    if not head.startswith(b"ID3") or len(head) < 10 or any(byte & 0x80 for byte in head[6:10]):
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte
    return 10 + size


def _is_mp3(head: bytes) -> bool:
    return _mp3_frame_bytes(head) > 0


def _mp3_frame_bytes(head: bytes) -> int:
    """The length of the frame of MPEG audio that begins here, 0 for none. AAC's frames look alike but for the layer."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    bits = 1_000 * _MP3_KILOBITS[1 if version == 3 else 2, layer][bitrate]
    hertz = _MP3_RATES[version][rate]
    if layer == 1:
        return (12 * bits // hertz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits // hertz + padding


def _is_webm(head: bytes) -> bool:
    """EBML whose document type is webm; Matroska's other files have another one."""
    return head.startswith(b"\x1a\x45\xdf\xa3") and b"\x42\x82\x84webm" in head


_LOOKS: dict[Format, Callable[[bytes], bool]] = {
    Format.FLAC: lambda head: head.startswith(b"fLaC"),
    Format.OGG: lambda head: head.startswith(b"OggS"),
    Format.WAV: lambda head: head.startswith(b"RIFF") and head[8:12] == b"WAVE",
    Format.WEBM: _is_webm,
    Format.MP4: lambda head: head[4:8] == b"ftyp",
    Format.MPEG: lambda head: head.startswith(b"\x00\x00\x01\xba"),
    Format.MP3: _is_mp3,
}


# --- whether a file is all there: by what it says of its own size, since decoders play what there is ---


def is_cut_off(file: BinaryIO, format: Format, size: int) -> bool:
    """Whether the file says that there is more of it than `size` bytes. False for one that does not tell."""
    check = _CHECKS.get(format)
    return check is not None and check(file, size)


def _ends_early_wav(file: BinaryIO, size: int) -> bool:
    offset = 12
    while offset + 8 <= size:
        head = _at(file, offset, 8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] == b"data":
            return 0 < length < LEAST_UNKNOWN_SIZE and offset + 8 + length > size
        offset += 8 + length + length % 2
    return True


def _ends_early_mp4(file: BinaryIO, size: int) -> bool:
    offset = 0
    while offset < size:
        head = _at(file, offset, 16)
        if len(head) >= 8 and head[4:8] not in _MP4_BOXES:  # something appended
            return False
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0 and len(head) >= 8:  # to the end of the file
            return False
        if length < 8:
            return True
        offset += length
    return offset > size


def _ends_early_ogg(file: BinaryIO, size: int) -> bool:
    offset = 0
    while offset < size:
        head = _at(file, offset, 27 + 255)
        if len(head) < 27 or not head.startswith(b"OggS"):
            # Not a page: something appended, unless the file ends in the middle of a page's head.
            return offset + 27 > size and b"OggS".startswith(head[:4])
        segments = head[26]
        offset += 27 + segments + sum(head[27 : 27 + segments])
    return offset > size


def _ends_early_webm(file: BinaryIO, size: int) -> bool:
    """What was written as a stream has no size of its own: then by the sizes of its elements."""
    offset, inside = 0, False
    while offset < size:
        head = _at(file, offset, 12)
        id_length = _vint_length(head)
        size_length = _vint_length(head[id_length:])
        if not id_length or not size_length or (not inside and head[:id_length] not in _WEBM_OUTERMOST):
            return False  # something appended
        length = int.from_bytes(head[id_length : id_length + size_length], "big") & (1 << 7 * size_length) - 1
        offset += id_length + size_length
        if length == (1 << 7 * size_length) - 1:
            inside = True  # of unknown size: its elements follow
        else:
            offset += length
    return offset > size


def _vint_length(coded: bytes) -> int:
    """How many bytes a number of EBML's takes, by its first byte; 0 for none."""
    return 9 - coded[0].bit_length() if coded and coded[0] else 0


def _ends_early_mp3(file: BinaryIO, size: int) -> bool:
    """Whether the last frame is not whole. What is no frame, such as a tag, ends the search."""
    offset = _end_of_id3(_at(file, 0, HEAD_BYTES))
    while offset < size:
        length = _mp3_frame_bytes(_at(file, offset, 4))
        if not length:
            return False
        offset += length
    return offset > size


_CHECKS: dict[Format, Callable[[BinaryIO, int], bool]] = {
    Format.WAV: _ends_early_wav,
    Format.MP4: _ends_early_mp4,
    Format.OGG: _ends_early_ogg,
    Format.WEBM: _ends_early_webm,
    Format.MP3: _ends_early_mp3,
}


def declared_mp3_frames(file: BinaryIO) -> int:
    """How many frames an encoder's Xing, Info or VBRI header counts; 0 when none does."""
    head = _at(file, _end_of_id3(_at(file, 0, HEAD_BYTES)), 200)
    for mark, offset in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        found = head.find(mark, 4, 50)
        if found >= 0 and (mark == b"VBRI" or (head[found + 7 : found + 8] > b"\0" and head[found + 7] & 1)):
            return int.from_bytes(head[found + offset : found + offset + 4], "big")
    return 0


def declared_flac_samples(file: BinaryIO) -> int:
    """How many samples the stream's first block counts; 0 when the encoder did not know."""
    head = _at(file, _end_of_id3(_at(file, 0, HEAD_BYTES)), 26)
    return int.from_bytes(head[18:26], "big") & (1 << 36) - 1
