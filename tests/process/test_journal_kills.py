"""A writer is killed -9 at seeded moments: in a record, a rotation, an index, a checkpoint, a finalise.

Run as a program it is that writer. It tells each record on its standard output once ``append`` has
returned, which is when the streamer would ack it. PROBELOOP_TRIALS gives another number of trials.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rsciio.hspy import file_reader

from streamer.codec import encode
from streamer.finalise import finalise
from streamer.journal import Journal, JournalConfig, kind_of, read_records
from streamer.messages import Checkpoint, Frame, ScanGeometry
from streamer.segment import Record

TRIALS = int(os.environ.get("PROBELOOP_TRIALS", "10"))
CONFIG = JournalConfig(segment_mb=1)
# Every way by which journal and finalise change what lies on the disk.
TOUCHING = (
    "pwritev",
    "ftruncate",
    "posix_fallocate",
    "fsync",
    "fdatasync",
    "open",
    "close",
    "replace",
    "unlink",
)


def message(number: int) -> Frame | Checkpoint:
    """Make what lies under a record number: frames of three sizes, and a checkpoint now and then."""
    if number % 7 == 0:
        return Checkpoint(session="s", of="streamer", told=number, facts=b"\x80", arrays={"a": np.ones(9000)})
    edge = (16, 100, 300)[number % 3]
    return Frame(
        session="s",
        number=number,
        acquired_at_s=1000.0 + number,
        image=np.full((1, edge, edge), number, np.float32),
        channels=("HAADF",),
        geometry=ScanGeometry(shape=(edge, edge), field_of_view_nm=(1.0, 1.0)),
        dwell_time_us=1.0,
    )


def write(folder: Path, die_at: int) -> None:
    """Append and finalise until killed: by somebody, or at the so-many-th touch of the disk."""
    if die_at:
        _die_at(die_at)
    journal = Journal(folder, CONFIG)
    while True:
        made = message(journal.next_record)
        number = journal.append(encode(made), 0.0, kind=kind_of(made), monotonic_s=0.0)
        os.write(1, b"%d\n" % number)
        if number % 25 == 0:
            finalise(folder)


def _die_at(count: int) -> None:
    touched = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def touch(*args: Any, **kwargs: Any) -> Any:
            nonlocal touched
            touched += 1
            if touched == count and real is writing:  # a part of the record is on the disk, and that is all
                fd, buffers, offset = args
                whole = b"".join(buffers)
                real(fd, [whole[: len(whole) * (count % 10) // 10]], offset)
            if touched == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return touch

    writing = os.pwritev
    for name in TOUCHING:
        setattr(os, name, deadly(getattr(os, name)))


def acked_before_death(
    folder: Path, die_at: int = 0, kill_after: tuple[int, float] | None = None
) -> list[int]:
    """Run a writer until it is dead; give the numbers of the records that it was sure of."""
    command = [sys.executable, __file__, str(folder), str(die_at)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        said: list[bytes] = []
        if kill_after is not None:
            records, later_s = kill_after
            said += [writer.stdout.readline() for _ in range(records)]
            try:
                writer.wait(later_s)
            except subprocess.TimeoutExpired:
                writer.kill()
        said += writer.stdout.readlines()
        assert writer.wait(60) == -signal.SIGKILL
    return [int(line) for line in said if line.endswith(b"\n")]


def check(folder: Path, acked: list[int]) -> int:
    """See that everything acked is there, whole and once; give the number of records."""
    journal = Journal(folder, CONFIG)
    newest = journal.last_checkpoint("streamer")
    count = journal.next_record - 1
    journal.close()
    records = list(read_records(folder))
    assert all(isinstance(record, Record) and record.is_whole() for record in records)
    assert [record.number for record in records] == list(range(1, count + 1))
    assert set(acked) <= set(range(1, count + 1))
    for record in records:
        expected = encode(message(record.number))
        assert record.parts == [bytes(part) for part in expected]
    assert (0 if newest is None else newest.number) == count - count % 7
    return count


def test_writer_killed_at_any_moment_loses_nothing_that_it_was_sure_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    acked: list[int] = []
    for _ in range(TRIALS):
        kill_after = (int(rng.integers(1, 60)), float(rng.uniform(0, 0.05)))
        acked += acked_before_death(tmp_path, kill_after=kill_after)
        check(tmp_path, acked)
    assert len(acked) == len(set(acked)) >= TRIALS
    assert len(list(tmp_path.glob("*.plj"))) > 1


def test_writer_killed_at_any_touch_of_the_disk_loses_nothing_that_it_was_sure_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    in_rotation = rng.permutation(np.arange(18, 30))[: TRIALS // 2]  # all that happens around the first one
    anywhere = rng.permutation(np.arange(1, 260))[: TRIALS - len(in_rotation)]
    for trial, die_at in enumerate((*in_rotation, *anywhere)):
        folder = tmp_path / str(trial)
        acked = acked_before_death(folder, die_at=int(die_at))
        count = check(folder, acked)
        assert count - len(acked) in (0, 1)  # killed between the disk and the word of it
        files = finalise(folder)
        assert sum(len(file_reader(str(path))[0]["data"]) for path in files) == count - count // 7


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
