"""The audio files that are taken, told apart by their content, where their sound begins, and whether it is all there.

The libraries that tell files by their first bytes don't serve here: they don't look behind tags and junk, and take text
that begins with a few fitting bytes for sound.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import BinaryIO, cast

HEAD_BYTES = 64
# Sizes from here on are what programs write that could not know the size when they began.
MIN_UNKNOWN_SIZE = 0x7FFF_0000
# So much junk may stand before the first frame of an mp3: FFmpeg looks as far.
MAX_JUNK_BYTES = 64 * 1024
PIECE_BYTES = 64 * 1024
MAX_TAGS = 8
# So many frames in a row are no accident. A file may be shorter.
FRAMES_IN_A_ROW = 4
# By so much an mp4's media may seem longer than the file, for writers that count a header in. Its index is exact.
MP4_SLACK_BYTES = 64
# So many places that look like a frame are tried.
MAX_CANDIDATES = 1_000
# So many zeros may stand before an mp3.
MAX_ZERO_BYTES = 1024 * 1024
# How many boxes of an mp4, and chunks of a wav, are looked at.
MAX_BOXES = 100_000
MAX_FMT_BYTES = 4 * 1024
MAX_WAV_SLACK_BYTES = 8 * 1024
ID3_FOOTER = 0x10
APE_BYTES = 32
_MP4_BOXES = frozenset(
    b"ftyp moov mdat free skip wide uuid moof mfra sidx styp ssix prft pdin meta meco udta emsg pnot PICT".split()
)
_MP4_MEDIA = frozenset((b"moov", b"mdat", b"moof"))
# English words: what begins with them needs another box behind.
_MP4_FILLERS = frozenset((b"free", b"skip", b"wide", b"pnot"))
_WEBM_OUTERMOST = frozenset((b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\xec"))
# The elements of a segment and of a cluster.
_WEBM_INNER = frozenset(
    (
        *(b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\x1c\x53\xbb\x6b"),
        *(b"\x12\x54\xc3\x67", b"\x10\x43\xa7\x70", b"\x19\x41\xa4\x69", b"\xec", b"\xbf"),
        *(b"\xe7", b"\xa3", b"\xa0", b"\xa7", b"\xab"),
    )
)
_WEBM_DOCTYPE = re.compile(rb"\x42\x82(?:\x84|\x40\x04|\x20\x00\x04|\x10\x00{2}\x04|\x01\x00{6}\x04)webm")
_RIFF_WAVE = re.compile(rb"(?:RIFF|RF64|BW64)....WAVE", re.DOTALL)
# Of every version and layer but the reserved ones, with a bitrate.
_MP3_HEADER = re.compile(rb"\xff[\xe2-\xe7\xf2-\xff][\x10-\xef]")

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


@dataclass(frozen=True, slots=True)
class Sound:
    """Where the sound of a file begins."""

    format: Format
    start: int
    """Behind tags and junk."""
    is_excerpt: bool = False
    """Whether an mp3 begins with less than a frame, such as a recording of a stream: then it may end so."""


def find_format(file: BinaryIO) -> Format | None:
    """The format that the content tells; None for a file of any other type."""
    sound = find_sound(file)
    return sound.format if sound is not None else None


def find_sound(file: BinaryIO) -> Sound | None:
    """The format that the content tells, looking behind tags, and behind a bounded amount of junk before an mp3."""
    start = _end_of_tags(file)
    head = _at(file, start, HEAD_BYTES)
    for format, looks_so in _LOOKS.items():
        if looks_so(head):
            return Sound(format, start)
    if _is_mp4_without_type(file, start):
        return Sound(Format.MP4, start)
    return _find_mp3(file, start)


def _find_mp3(file: BinaryIO, start: int) -> Sound | None:
    """Frames in a row behind zeros, behind junk, or within a tag that gives a wrong size."""
    behind_zeros = _end_of_zeros(file, start)
    frame = next(_frames_in_a_row(file, behind_zeros), None)
    if frame is None and start:
        frame = next(_frames_in_a_row(file, 0), None)
    if frame is not None:
        is_excerpt = 0 < frame - behind_zeros < _mp3_frame_bytes(_at(file, frame, 4))
        return Sound(Format.MP3, frame, is_excerpt)
    return Sound(Format.MP3, start) if start else None  # a tag with nothing behind it that can be read


def _frames_in_a_row(file: BinaryIO, start: int) -> Iterator[int]:
    """Where frames of MPEG audio begin that others of the same kind follow."""
    piece = _at(file, start, MAX_JUNK_BYTES)
    for found in islice(_MP3_HEADER.finditer(piece), MAX_CANDIDATES):
        if _begins_a_row(file, start + found.start()):
            yield start + found.start()


def _begins_a_row(file: BinaryIO, offset: int) -> bool:
    """Whether frames follow one another, up to the end of the file if it is near."""
    first = b""
    for number in range(FRAMES_IN_A_ROW):
        head = _at(file, offset, 4)
        length = _mp3_frame_bytes(head)
        if not length or (number and not _are_alike(first, head)):
            return number > 1 and not _at(file, offset, 1)
        first = first or head
        offset += length
    return True


def _are_alike(one: bytes, other: bytes) -> bool:
    """Whether two frames have the same version, layer and sample rate."""
    return one[1] & 0xFE == other[1] & 0xFE and one[2] & 0x0C == other[2] & 0x0C


def _end_of_zeros(file: BinaryIO, start: int) -> int:
    for _ in range(MAX_ZERO_BYTES // PIECE_BYTES):
        piece = _at(file, start, PIECE_BYTES)
        zeros = len(piece) - len(piece.lstrip(b"\0"))
        start += zeros
        if zeros < PIECE_BYTES:
            break
    return start


def _end_of_tags(file: BinaryIO) -> int:
    """Where the tags at the beginning end, by the sizes that they give; 0 without one."""
    offset = 0
    for _ in range(MAX_TAGS):
        head = _at(file, offset, APE_BYTES)
        length = _id3_bytes(head) or _ape_bytes(head)
        if not length:
            break
        offset += length
    return offset


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _id3_bytes(head: bytes) -> int:
    """The length of an ID3v2 tag with its footer, 0 for none."""
    if not head.startswith(b"ID3") or len(head) < 10:
        return 0
    # Seven bits a byte; some writers use eight.
    bits = 8 if any(byte & 0x80 for byte in head[6:10]) else 7
    size = 0
    for byte in head[6:10]:
        size = size << bits | byte
    return 10 + size + (10 if head[5] & ID3_FOOTER else 0)


def _ape_bytes(head: bytes) -> int:
    """The length of an APE tag that begins with a header, 0 for none."""
    if not head.startswith(b"APETAGEX") or len(head) < APE_BYTES:
        return 0
    return APE_BYTES + int.from_bytes(head[12:16], "little")


def _is_mp3(head: bytes) -> bool:
    """A frame of layer 2 or 3. Layer 1 needs more than one: its header looks like the beginning of UTF-16."""
    return _mp3_frame_bytes(head) > 0 and head[1] & 0x06 != 0x06


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
    return head.startswith(b"\x1a\x45\xdf\xa3") and _WEBM_DOCTYPE.search(head) is not None


def _is_mp4_without_type(file: BinaryIO, start: int) -> bool:
    """QuickTime's older files begin with any box."""
    boxes = _mp4_boxes(file, start)
    name, _ = next(boxes, (b"", 0))
    if name in _MP4_FILLERS:
        name, _ = next(boxes, (b"", 0))
        return name in _MP4_BOXES
    return name in (b"moov", b"mdat")


def _mp4_boxes(file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int]]:
    """The outermost boxes by name, with where they end by their own word; up to what is none."""
    for _ in range(MAX_BOXES):
        head = _at(file, offset, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or head[4:8] not in _MP4_BOXES or 0 < length < 8:
            return
        yield head[4:8], offset + length if length else 0
        if not length:  # up to the end of the file
            return
        offset += length


_LOOKS: dict[Format, Callable[[bytes], bool]] = {
    Format.FLAC: lambda head: head.startswith(b"fLaC"),
    Format.OGG: lambda head: head.startswith(b"OggS"),
    Format.WAV: lambda head: _RIFF_WAVE.match(head) is not None,
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
    """Whether data is missing, beyond the header that some writers count in, once or twice."""
    begin, length = _wav_data(file, size)
    return 0 < length < MIN_UNKNOWN_SIZE and begin + length - size > min(2 * begin, MAX_WAV_SLACK_BYTES)


def _wav_data(file: BinaryIO, size: int) -> tuple[int, int]:
    """Where the data begins, and the size that the header gives it; zeros when there is none."""
    large = 0
    for name, body, length in _wav_chunks(file, size):
        if name == b"ds64":
            large = int.from_bytes(_at(file, body + 8, 8), "little")
        if name == b"data":
            return body, large if large and length == 0xFFFF_FFFF else length
    return 0, 0


def _wav_chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """The chunks up to the data: name, where the body begins, length. Some writers leave out the padding."""
    offset = _end_of_tags(file) + 12
    for _ in range(MAX_BOXES):
        if offset + 8 > size:
            return
        head = _at(file, offset, 8)
        name, length = head[:4], int.from_bytes(head[4:8], "little")
        yield name, offset + 8, length
        if name == b"data":
            return
        offset += 8 + length
        if length % 2 and not _is_chunk(_at(file, offset, 4)):
            offset += 1


def _is_chunk(name: bytes) -> bool:
    """Whether this may be a chunk's name: padding is a zero, and then a name looks like none."""
    return len(name) == 4 and name.isascii() and name.decode().isprintable()


def _ends_early_mp4(file: BinaryIO, size: int) -> bool:
    return any(
        name in _MP4_MEDIA and end > size + (MP4_SLACK_BYTES if name == b"mdat" else 0)
        for name, end in _mp4_boxes(file, _end_of_tags(file))
    )


def _ends_early_ogg(file: BinaryIO, size: int) -> bool:
    offset = _end_of_tags(file)
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
    offset, inside = _end_of_tags(file), False
    while offset < size:
        head = _at(file, offset, 12)
        id_length = _vint_length(head)
        size_length = _vint_length(head[id_length:])
        known = _WEBM_OUTERMOST | _WEBM_INNER if inside else _WEBM_OUTERMOST
        if not size_length or head[:id_length] not in known:
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
    sound = find_sound(file)
    if sound is None or sound.is_excerpt:
        return False
    offset = sound.start
    while offset < size:
        length = _mp3_frame_bytes(_at(file, offset, 4))
        if not length:
            return False
        offset += length
    return offset > size


def _ends_early_mpeg(file: BinaryIO, size: int) -> bool:
    """Whether the last pack or packet is not whole."""
    offset = _end_of_tags(file)
    while offset < size:
        head = _at(file, offset, 14)
        length = _mpeg_bytes(head)
        if not length:  # something appended, unless the file ends in the middle of a packet's head
            return len(head) < 6 and head.startswith(b"\0\0\1")
        offset += length
    return offset > size


def _mpeg_bytes(head: bytes) -> int:
    """The length of the pack's head or of the packet that begins here, 0 for none."""
    if len(head) < 6 or not head.startswith(b"\0\0\1"):
        return 0
    if head[3] == 0xB9:  # the end
        return 4
    if head[3] == 0xBA and head[4] >> 6 == 1:  # MPEG-2
        return 14 + (head[13] & 7 if len(head) == 14 else 0)
    if head[3] == 0xBA:
        return 12
    return 6 + int.from_bytes(head[4:6], "big") if head[3] > 0xBA else 0


_CHECKS: dict[Format, Callable[[BinaryIO, int], bool]] = {
    Format.WAV: _ends_early_wav,
    Format.MP4: _ends_early_mp4,
    Format.OGG: _ends_early_ogg,
    Format.WEBM: _ends_early_webm,
    Format.MP3: _ends_early_mp3,
    Format.MPEG: _ends_early_mpeg,
}


def declared_mp3_frames(file: BinaryIO) -> int:
    """How many frames an encoder's Xing, Info or VBRI header counts, in what `sound_of` gives; 0 when none does."""
    head = _at(file, 0, 200)
    for mark, offset in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        found = head.find(mark, 4, 50)
        if found >= 0 and (mark == b"VBRI" or (head[found + 7 : found + 8] > b"\0" and head[found + 7] & 1)):
            return int.from_bytes(head[found + offset : found + offset + 4], "big")
    return 0


def declared_flac_samples(file: BinaryIO) -> int:
    """How many samples the stream's first block counts, in what `sound_of` gives; 0 when the encoder did not know."""
    head = _at(file, 0, 26)
    return int.from_bytes(head[18:26], "big") & (1 << 36) - 1


def sound_of(file: BinaryIO, format: Format, size: int) -> BinaryIO:
    """The file as FFmpeg reads it: from where the sound begins, without what it stumbles over."""
    sound = find_sound(file)
    start = sound.start if sound is not None else 0
    head = b""
    if format is Format.WAV:
        head, start = _wav_without_misplaced_chunks(file, start, size)
    return cast(BinaryIO, _From(file, start, head))


def _wav_without_misplaced_chunks(file: BinaryIO, start: int, size: int) -> tuple[bytes, int]:
    """A new head and where it goes on, if chunks stand at odd offsets, where FFmpeg finds none; else none."""
    head, odd = b"", False
    for name, body, length in _wav_chunks(file, size):
        odd = odd or (body - start) % 2 == 1
        if name == b"fmt " and length <= MAX_FMT_BYTES:
            head = b"RIFF\xff\xff\xff\xffWAVE" + _at(file, body - 8, 8 + length) + b"\0" * (length % 2)
        if name == b"data" and odd and head:
            return head, body - 8
    return b"", start


class _From(io.RawIOBase):
    """A head, and a file from an offset on."""

    def __init__(self, file: BinaryIO, start: int, head: bytes) -> None:
        super().__init__()
        self._file, self._start, self._head = file, start, head
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = self._head[self._position :][: size if size >= 0 else None]
        if not found:
            found = _at(self._file, self._start + self._position - len(self._head), size)
        self._position += len(found)
        return found

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset += self._file.seek(0, os.SEEK_END) - self._start + len(self._head)
        elif whence == os.SEEK_CUR:
            offset += self._position
        self._position = max(0, offset)
        return self._position
