"""How long a file sounds, by a child that can do little."""

import asyncio
import json
import math
import signal
from pathlib import Path

import av
import psutil
import pytest

from services.kit.errors import DomainError, Unavailable
from services.kit.spool import Spool
from services.speech import decoder, measure
from services.speech.errors import AudioUndecodable
from services.speech.formats import find_format
from services.speech.measure import Decoders
from tests.audio import CODECS, amr_in_3gp, bomb, id3, tone
from tests.integration.waiting import until
from tests.odd_audio import CUT, SECONDS, SPOKEN_BEHIND_A_TAG, WHOLE

HOURS = 3_600.0


async def seconds_of(file: bytes, *, max_seconds: float = 4 * HOURS, timeout_seconds: float = 30.0) -> float:
    with Spool() as spool:
        await spool.write(file)
        await spool.flush()
        format = find_format(spool.reader())
        assert format is not None
        return await Decoders(1, timeout_seconds=timeout_seconds).measure(spool, format, max_seconds=max_seconds)


@pytest.mark.parametrize("extension", CODECS)
async def test_the_length_is_that_of_the_sound(extension: str) -> None:
    assert await seconds_of(tone(extension, 7.3)) == pytest.approx(7.3, abs=0.1)


@pytest.mark.parametrize("file", [file for file, _ in WHOLE.values()], ids=WHOLE.keys())
async def test_files_as_programs_write_them_have_their_length(file: bytes) -> None:
    assert await seconds_of(file) == pytest.approx(SECONDS, abs=0.12)


async def test_a_flac_behind_a_tag_has_its_length() -> None:
    assert await seconds_of(SPOKEN_BEHIND_A_TAG) == await seconds_of(SPOKEN_BEHIND_A_TAG[len(id3(300)) :])


@pytest.mark.parametrize("file", CUT.values(), ids=CUT.keys())
async def test_a_part_of_such_a_file_is_refused(file: bytes) -> None:
    with pytest.raises(AudioUndecodable):
        await seconds_of(file)


async def test_sound_that_no_provider_decodes_is_refused_with_the_codec_s_name() -> None:
    with pytest.raises(AudioUndecodable, match="amr"):
        await seconds_of(amr_in_3gp())


async def test_the_length_is_exact_where_the_format_is() -> None:
    assert await seconds_of(tone("wav", 7.3, rate=16_000)) == 7.3
    assert await seconds_of(tone("flac", 7.3, rate=16_000)) == 7.3


async def test_a_part_of_a_millisecond_counts_as_a_whole_one() -> None:
    assert await seconds_of(tone("wav", 0.1001)) == 0.101


@pytest.mark.parametrize("extension", CODECS)
async def test_a_file_that_is_cut_off_is_refused(extension: str) -> None:
    file = tone(extension, 7.3)
    with pytest.raises(AudioUndecodable):
        await seconds_of(file[: len(file) * 3 // 5 - 7])


@pytest.mark.parametrize("extension", sorted(set(CODECS) - {"wav"}))
async def test_a_file_of_noise_behind_a_good_head_is_refused(extension: str) -> None:
    file = tone(extension, 7.3)
    head = file[:60]
    with pytest.raises(AudioUndecodable):
        await seconds_of(head + bytes(range(256)) * 100)


async def test_a_picture_without_sound_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "silent.mp4"
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(AudioUndecodable):
        await seconds_of(file.read_bytes())


async def test_a_bomb_goes_off_nowhere() -> None:
    assert await seconds_of(bomb()) == math.inf


async def test_a_child_that_takes_too_long_is_ended_and_nobody_is_blamed() -> None:
    with pytest.raises(Unavailable):
        await seconds_of(bomb(), timeout_seconds=0.05)
    await no_child_is_left()


async def test_a_caller_that_leaves_takes_the_child_along() -> None:
    task = asyncio.create_task(seconds_of(bomb(), max_seconds=1e9))
    await until(children_now, saying="the child")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await no_child_is_left()


async def children_now() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if _decodes(child)]


def _decodes(child: psutil.Process) -> bool:
    try:
        return measure.PROGRAM in child.cmdline()
    except psutil.Error:  # it has ended
        return False


async def no_child_is_left() -> None:
    async def none() -> bool:
        return not await children_now()

    await until(none, saying="the child's end")


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGXCPU, AudioUndecodable),
        (signal.SIGSEGV, AudioUndecodable),
        (signal.SIGABRT, AudioUndecodable),
        (signal.SIGKILL, Unavailable),
        (signal.SIGTERM, Unavailable),
    ],
)
def test_a_child_that_ends_by_itself_is_the_file_s_fault(number: signal.Signals, error: type[DomainError]) -> None:
    with pytest.raises(error):
        measure._seconds(-number, b"")


async def test_too_much_work_is_ended_by_the_processor_s_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "endless.py"
    program.write_text(
        "from services.speech import decoder\ndecoder.CPU_SECONDS = 1\ndecoder.bound()\nwhile True: pass\n"
    )
    monkeypatch.setattr(measure, "PROGRAM", "endless")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AudioUndecodable):
        await seconds_of(tone("mp3"))


def test_a_child_that_can_not_start_is_a_defect_of_ours() -> None:
    with pytest.raises(RuntimeError):
        measure._seconds(1, b"")


async def test_the_child_is_bounded_and_knows_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-key")
    program = tmp_path / "probe.py"
    program.write_text(
        "import json, os, resource\n"
        "from services.speech import decoder\n"
        "decoder.bound()\n"
        "bounded = (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE)\n"
        "limits = [resource.getrlimit(name) for name in bounded]\n"
        "print(json.dumps({'refused': 'undecodable', 'because': [sorted(os.environ), limits]}))\n"
    )
    monkeypatch.setattr(measure, "PROGRAM", "probe")
    monkeypatch.syspath_prepend(tmp_path)
    with Spool() as spool:
        await spool.write(tone("mp3"))
        await spool.flush()
        format = find_format(spool.reader())
        assert format is not None
        _, said = await Decoders(1, timeout_seconds=30)._run(spool, format, 1.0)
    environment, limits = json.loads(said)["because"]
    assert set(environment) <= {"PYTHONPATH", "LC_CTYPE"}
    assert limits == [
        [decoder.CPU_SECONDS, decoder.CPU_SECONDS + 1],
        [decoder.MEMORY_BYTES, decoder.MEMORY_BYTES],
        [0, 0],
    ]
