"""What a file is, by its content, and whether it is all there."""

import io
import os
import time

import pytest

from services.speech.formats import Format, find_format, is_cut_off
from tests.audio import CODECS, SPOKEN, tone, wav_of_size
from tests.odd_audio import NO_SOUND, WHOLE

ID3 = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
FORMATS = {
    "flac": Format.FLAC,
    "mp3": Format.MP3,
    "mpga": Format.MP3,
    "mp4": Format.MP4,
    "m4a": Format.MP4,
    "mpeg": Format.MPEG,
    "ogg": Format.OGG,
    "oga": Format.OGG,
    "wav": Format.WAV,
    "webm": Format.WEBM,
}


def found(file: bytes) -> Format | None:
    return find_format(io.BytesIO(file))


def cut_off(file: bytes) -> bool:
    format = found(file)
    assert format is not None
    return is_cut_off(io.BytesIO(file), format, len(file))


@pytest.mark.parametrize("extension", CODECS)
def test_every_type_is_told_by_its_content(extension: str) -> None:
    assert found(tone(extension)) is FORMATS[extension]


def test_a_tag_is_looked_behind() -> None:
    assert found(ID3 + tone("mp3")) is Format.MP3
    assert found(ID3 + SPOKEN.read_bytes()) is Format.FLAC


@pytest.mark.parametrize(
    "file",
    [
        b"\x7fELF\x02\x01\x01" + bytes(100),
        b"This is text, whatever its name ends in.",
        b"%PDF-1.7\n",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04",
        b"\xff\xd8\xff\xe0",
        b"\xff\xf1\x50\x80\x02\x1f\xfc",
        b"RIFF\x24\x00\x00\x00AVI LIST",
        b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska",
        b"#EXTM3U\nhttp://127.0.0.1/a.ts",
        b"\xff",
        b"\0",
        b"\xff" * 64,
        os.urandom(4).replace(b"\xff", b"\0"),
    ],
    ids=["elf", "text", "pdf", "png", "zip", "jpeg", "aac", "avi", "matroska", "playlist", "ff", "nul", "ffs", "noise"],
)
def test_anything_else_is_no_audio(file: bytes) -> None:
    assert found(file) is None


@pytest.mark.parametrize("file", NO_SOUND.values(), ids=NO_SOUND.keys())
def test_what_looks_a_little_like_audio_is_none(file: bytes) -> None:
    assert found(file) is None


@pytest.mark.parametrize(("file", "format"), WHOLE.values(), ids=WHOLE.keys())
def test_files_as_programs_write_them_are_told_and_whole(file: bytes, format: Format) -> None:
    assert found(file) is format
    assert not cut_off(file)


def test_a_file_of_what_looks_like_frames_is_given_up_on_soon() -> None:
    started = time.process_time()
    assert found(b"\0" + b"\xff\xfb\x90\0" * 100_000) is None
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("extension", CODECS)
def test_a_whole_file_is_not_cut_off(extension: str) -> None:
    assert not cut_off(tone(extension))


@pytest.mark.parametrize("extension", sorted(set(CODECS) - {"flac", "mpeg"}))
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_part_of_a_file_says_that_there_is_more(extension: str, part: float) -> None:
    file = tone(extension, 2.0)
    assert cut_off(file[: int(len(file) * part) - 7])


def test_a_recording_without_sizes_is_cut_off_in_the_middle_of_an_element_only() -> None:
    file = tone("webm", 2.0, live="1")
    assert not cut_off(file)
    assert cut_off(file[: len(file) // 2])


def test_a_wav_that_was_piped_has_no_size() -> None:
    file = wav_of_size(10_000)
    assert not cut_off(file[:40] + b"\xff\xff\xff\xff" + file[44:])


@pytest.mark.parametrize("extension", ["mp3", "wav", "ogg", "mp4", "webm"])
def test_what_is_appended_does_not_matter(extension: str) -> None:
    assert not cut_off(tone(extension) + b"TAG" + bytes(125))


def test_an_index_before_the_sound_is_no_reason_to_trust_it() -> None:
    file = tone("mp4", 2.0, movflags="faststart")
    assert not cut_off(file)
    assert cut_off(file[:-100])


@pytest.mark.parametrize("format", Format)
def test_no_bytes_make_the_checks_fail(format: Format) -> None:
    for seed in range(200):
        head = tone(next(name for name, of in FORMATS.items() if of is format))[:seed]
        file = head + os.urandom(seed)
        is_cut_off(io.BytesIO(file), format, len(file))
