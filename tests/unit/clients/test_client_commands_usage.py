"""Options of the command lines that need no server: limits, what excludes what, and what is told."""

from __future__ import annotations

import asyncio
import importlib
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import serialize_byte_tensor

from clients import batch, concurrent_requests
from clients.client import shared_memory as shared
from clients.client.calls import ClientError

NOWHERE = ["--url", "localhost:9"]
COMMANDS = ("caption", "ask", "match", "embed", "ground", "nlvr", "entail", "batch", "retrieve")


def usage(command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command refuses its arguments with."""
    try:
        code = importlib.import_module(f"clients.{command}").main(arguments)
    except SystemExit as left:
        code = left.code
    printed = capsys.readouterr()
    assert code == 1 and printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"clients.{command}").main(["--help"])
    printed = capsys.readouterr()
    assert left.value.code == 0 and f"python clients/{command}.py" in printed.out


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_given(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    usage(command, [], capsys)


@pytest.mark.parametrize(
    ("command", "arguments", "complaint"),
    [
        ("caption", ["a.png", "--video", "b.mp4"], "give pictures, or --video FILE, or --frames FILE"),
        ("caption", ["--frames", "a.png", "--video", "b.mp4"], "give pictures, or --video FILE"),
        ("caption", ["a.png", "--num-frames", "2"], "--num-frames is for --video and --frames"),
        ("ask", ["what"], "give pictures, or --video FILE"),
        ("ask", ["a.png", "what", "--protocol", "ftp"], "invalid choice: 'ftp'"),
        ("embed", ["--texts", "a", "--output", "a.txt"], "--output a.txt: must end in .npy or .json"),
        ("ground", ["a.png", "it", "--output", "found.txt"], "its ending names no picture format"),
        ("ground", ["a.png"], "required: EXPRESSION"),
        ("nlvr", ["a.png", "b.png"], "required: STATEMENT"),
        ("match", ["a.png"], "at least one text"),
        ("match", ["--video", "a.mp4", "--frames", "a.png", "b.png"], "required: IMAGE TEXT"),
        ("match", ["a dog", "--num-frames", "2"], "--num-frames is for --video and --frames"),
        ("batch", ["photos"], "required: --output"),
        ("batch", [".", "--output", "o", "--concurrency", "0"], "0 is not a number from 1 to 128"),
        ("batch", [".", "--output", "o", "--concurrency", "129"], "129 is not a number from 1 to 128"),
        ("batch", [".", "--output", "o", "--question", "a", "--prompt", "b"], "give one of the two"),
        ("retrieve", ["look"], "invalid choice: 'look'"),
        ("retrieve", ["index", "."], "required: --output"),
        ("retrieve", ["index", "absent", "--output", "o"], "absent is not a folder"),
        ("retrieve", ["search", "i"], "either WORDS or --image"),
        ("retrieve", ["search", "i", "w", "--image", "a.png"], "either WORDS or --image"),
        ("retrieve", ["search", "i", "w", "--texts", "t"], "--texts goes with --image"),
        ("retrieve", ["search", "i", "w", "--top", "0"], "0 is not a number from 1 to 1000"),
        ("retrieve", ["search", "i", "w", "--shortlist", "1001"], "1001 is not a number from 1 to 1000"),
        ("retrieve", ["search", "absent", "w"], "absent: no index there"),
    ],
)
def test_wrong_usage(
    command: str,
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in usage(command, arguments, capsys)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_a_picture_is_not_drawn_over_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"precious")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    line = usage("ground", [str(tmp_path / "a.png"), "it", "--output", str(tmp_path / "link.png")], capsys)
    assert "this is the image itself" in line


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has no column `image`"),
        (b"picture,question\na.png,what\n", "has no column `image`"),
        (b"image\n", "holds no images"),
        (b"image\n\xff.png\n", "cannot be read as CSV: 'utf-8' codec"),
        (b'image\n"a.png\n', "cannot be read as CSV: unexpected end of data"),
    ],
)
def test_a_csv_that_is_none(content: bytes, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    line = usage("batch", [str(table), "--output", str(tmp_path / "out"), *NOWHERE], capsys)
    assert complaint in line and str(table) in line
    assert not (tmp_path / "out").exists()


def test_a_row_with_a_comma_too_many_is_told_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_text('image,question\na.png,"what, where"\nb.png,what, where\n"c\nd.png",what\ne.png,,,\n')
    _, items = batch._inputs(table, None, None)
    advice = "the first line names 2 columns: put double quotes around a value that holds a comma"
    problems = [f"{table} line 3 has 3 fields, but {advice}", f"{table} line 6 has 4 fields, but {advice}"]
    assert items == [
        batch.Item("a.png", "what, where"),
        batch.Item("b.png", row="b.png,what, where", problem=problems[0]),
        batch.Item("c\nd.png", "what"),
        batch.Item("e.png", row="e.png,,,", problem=problems[1]),
    ]
    assert capsys.readouterr().err == "".join(f"error: {problem}\n" for problem in problems)
    assert items[1].line({}) == {"image": "b.png", "row": "b.png,what, where"}  # unlike any answer's


# ----------------------------------------------------------------------------------------- many at once


def test_no_more_at_once_than_allowed() -> None:
    now = most = 0

    async def ask(job: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001 * (job % 3))
        now -= 1
        if job == 5:
            raise ClientError("no", "INVALID_ARGUMENT")
        return job * job

    async def run() -> dict[int, object]:
        return {job: answer async for job, answer in concurrent_requests.answers(range(20), ask, 4)}

    found = asyncio.run(run())
    assert most == 4 and len(found) == 20
    assert isinstance(found.pop(5), ClientError)
    assert found == {job: job * job for job in range(20) if job != 5}


@pytest.mark.parametrize("error", [ClientError("gone", "UNREACHABLE"), RuntimeError("a fault of ours")])
def test_who_finds_no_server_stops_asking(error: Exception) -> None:
    asked, cancelled = [], []

    async def ask(job: int) -> None:
        asked.append(job)
        if job == 1:
            raise error
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(job)
            raise

    async def run() -> None:
        async for _ in concurrent_requests.answers(range(100), ask, 3):
            pass

    with pytest.raises(type(error)):
        asyncio.run(run())
    assert asked == [0, 1, 2] and cancelled == [0, 2]


# ---------------------------------------------------------------------------------------- shared memory


def test_a_region_holds_what_triton_reads() -> None:
    tensor = np.empty(3, object)
    tensor[:] = [b"first\0", b"", b"x" * 70_000]
    region = shared.Regions.create(shared.size_of(tensor))
    try:
        size = region.write(tensor)
        assert size == shared.size_of(tensor)
        other = shared_memory.SharedMemory(region.name)
        assert bytes(other.buf[:size]) == serialize_byte_tensor(tensor).item()
        region.unlink()
        with pytest.raises(FileNotFoundError):
            shared_memory.SharedMemory(region.name)
        assert bytes(other.buf[:size]) == serialize_byte_tensor(tensor).item()  # who has mapped it keeps it
        other.close()
    finally:
        region.close()
    region.close()  # twice is no harm


def test_other_tensors_are_not_shared() -> None:
    assert shared.size_of(np.zeros(100_000, np.int32)) == 0


def test_regions_are_used_again() -> None:
    regions = shared.Regions()
    assert regions.take(1) is None
    made = [regions.create(size) for size in (1, 3 << 20, 1, 1, 1, 1)]
    assert [region.size >> 20 for region in made] == [1, 4, 1, 1, 1, 1]
    for region in made:
        regions.give(region)
    assert len(regions.leaving) == len(made) - shared.MAX_REGIONS
    assert made[1].name not in regions.leaving  # the largest stays
    assert regions.take(2 << 20) is made[1]
    regions.give(made[1])
    regions.give_up_all()
    assert sorted(regions.leaving) == sorted(region.name for region in made) and regions.take(1) is None


def test_no_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to memory that is not there would end the process without a word."""
    with pytest.raises(ClientError, match="no room for 1048576 MiB of shared memory") as caught:
        shared.Regions.create(1 << 40)
    assert caught.value.status == "RESOURCE_EXHAUSTED"
