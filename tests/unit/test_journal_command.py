"""``probeloop journal``: damage is found and told, taken out and kept; the rest becomes other files."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.local import app
from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of, read_messages, read_records, segments
from streamer.messages import Event, Frame
from streamer.repair import examine, repair


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["journal", *map(str, words)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture
def session(tmp_path: Path, make_frame) -> Path:
    """Three segments with a frame and an event in each, numbered 1 to 6."""
    folder = tmp_path / "session"
    journal = Journal(folder, JournalConfig(segment_mb=1))
    image = np.random.default_rng(0).random((1, 600, 512), np.float32)
    for number in range(3):
        for message in (Event(at_s=1.0, what=f"{number}"), make_frame(image=image, number=number)):
            journal.append(encode(message), 10.0 + number, kind=kind_of(message), monotonic_s=float(number))
    journal.close()
    assert len(segments(folder)) == 3
    return folder


def flip(segment: Path, offset: int) -> None:
    content = bytearray(segment.read_bytes())
    content[offset] ^= 0x10
    segment.write_bytes(content)


def test_whole_journal_is_verified_with_exit_code_0(session: Path) -> None:
    code, text = run("verify", session)
    assert code == 0
    assert "records: 3 event, 3 frame" in text
    assert "5 to 6" in text
    code, text = run("verify", session, "--json")
    facts = json.loads(text)
    assert code == 0
    assert (facts["damaged"], facts["gaps"], facts["records"]) == (False, [], {"event": 3, "frame": 3})
    assert [segment["index"] for segment in facts["segments"]] == ["good", "good", "none"]
    assert sum(segment["bytes"] for segment in facts["segments"]) == sum(
        path.stat().st_size for path in segments(session)
    )


def test_damage_in_a_prefix_and_in_a_part_is_told_with_exit_code_1(session: Path) -> None:
    first, second, _ = segments(session)
    event, frame = read_records(second)
    flip(first, 9)
    flip(second, frame.offset + frame.length - 1)
    code, text = run("verify", session, "--json")
    facts = json.loads(text)
    assert code == 1
    assert facts["damaged_records"] == 1
    assert facts["damaged_bytes"] == event.length + frame.length
    assert facts["gaps"] == [[4, 4]]  # record 1 may never have been
    code, text = run("verify", session)
    assert code == 1
    assert f"probeloop journal repair {session}" in text.replace("\n", "")


def test_repair_keeps_the_damaged_bytes_and_leaves_a_journal_that_is_whole(session: Path) -> None:
    first, second, third = segments(session)
    before = {record.number: record.parts for record in read_records(session)}
    damaged = list(read_records(second))[1]
    flip(second, damaged.offset + damaged.length - 1)
    flip(first, 9)
    third.write_bytes(third.read_bytes()[:-5])
    raw = second.read_bytes()[damaged.offset :]
    code, text = run("repair", session)
    assert code == 0
    assert len(text.splitlines()) == 3
    assert second.with_suffix(".1.damaged").read_bytes() == raw
    assert not examine(session).is_damaged
    assert [segment.index for segment in examine(session).segments] == ["good", "good", "none"]
    after = {record.number: record.parts for record in read_records(session)}
    assert after == {number: before[number] for number in (2, 3, 5)}
    assert run("verify", session)[0] == 0
    assert run("repair", session) == (0, "nothing is damaged\n")


def test_repaired_journal_goes_on(session: Path, make_frame) -> None:
    flip(segments(session)[-1], 9)
    repair(session)
    journal = Journal(session, JournalConfig())
    assert journal.append(encode(make_frame(number=9)), 0.0, kind="frame", monotonic_s=0.0) == 7
    journal.close()
    assert [message.number for _, message in read_messages(session, ["frame"])] == [0, 1, 2, 9]


def test_many_damaged_places_are_taken_out_at_once(tmp_path: Path, make_frame) -> None:
    journal = Journal(tmp_path, JournalConfig())
    for number in range(60):
        journal.append(encode(make_frame(number=number)), 0.0, kind="frame", monotonic_s=0.0)
    journal.close()
    (segment,) = segments(tmp_path)
    records = list(read_records(segment))
    rng = np.random.default_rng(5)
    hit = sorted(rng.choice(60, 20, replace=False))
    for number in hit:
        flip(
            segment,
            int(rng.integers(records[number].offset, records[number].offset + records[number].length)),
        )
    size = segment.stat().st_size
    repair(tmp_path)
    assert [r.number - 1 for r in read_records(tmp_path)] == [n for n in range(60) if n not in hit]
    kept = sum(path.stat().st_size for path in tmp_path.glob("*.damaged"))
    assert kept + segment.stat().st_size == size


def test_wrong_and_missing_indices_are_told_and_made_anew(session: Path) -> None:
    first, second, _ = segments(session)
    first.with_suffix(".idx").unlink()
    flip(second.with_suffix(".idx"), 30)
    assert [segment.index for segment in examine(session).segments] == ["missing", "wrong", "none"]
    assert not examine(session).is_damaged
    repair(session)
    assert [segment.index for segment in examine(session).segments] == ["good", "good", "none"]


def test_journal_in_use_is_verified_and_not_repaired(session: Path) -> None:
    journal = Journal(session, JournalConfig())
    journal.append(encode(Event(at_s=0.0, what="x")), 0.0, kind="event", monotonic_s=0.0)
    assert run("verify", session)[0] == 0
    code, text = run("repair", session)
    assert code == 2
    assert "another streamer keeps its journal here" in text
    journal.close()


def test_copied_segment_is_told_as_disorder(session: Path) -> None:
    first, second, _ = segments(session)
    second.write_bytes(first.read_bytes())
    code, text = run("verify", session, "--json")
    assert code == 1
    assert json.loads(text)["disorder"] == [1, 2]
    assert json.loads(text)["gaps"] == [[3, 4]]


def test_failed_repair_leaves_the_segment_as_it_was(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = segments(session)[0]
    flip(segment, 9)
    before = segment.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("streamer.repair._copy_the_rest", full)
    code, text = run("repair", session)
    assert (code, "no space left" in text) == (2, True)
    assert segment.read_bytes() == before
    assert not list(session.glob("*.part"))


def test_export_writes_each_format(session: Path, tmp_path: Path) -> None:
    code, text = run("export", session, "--format", "hspy", "--to", tmp_path / "out")
    assert (code, text.strip()) == (0, str(tmp_path / "out" / "frames.hspy"))
    code, text = run("export", session, "--format", "nexus")
    assert (code, text.strip()) == (0, str(session / "session.nxs"))
    with h5py.File(session / "session.nxs") as file:
        assert file["entry/c0/intensity"].shape == (3, 600, 512)
    code, text = run("export", session, "--format", "jsonl", "--to", tmp_path / "all.jsonl")
    assert (code, text.strip()) == (0, str(tmp_path / "all.jsonl"))


def test_lines_tell_every_record_and_what_is_damaged(session: Path, tmp_path: Path) -> None:
    first, second, _ = segments(session)
    flip(first, 9)
    flip(second, second.stat().st_size - 1)
    run("export", session, "--format", "jsonl", "--to", tmp_path / "all.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [line.get("record") for line in lines] == [None, 2, 3, 4, 5, 6]
    assert "bytes at 0 of journal-000001.plj" in lines[0]["damaged"]
    assert "bad checksum" in lines[3]["damaged"]
    assert lines[4]["message"] == {"kind": "event", "at_s": 1.0, "what": "2"} | {"detail": "", "number": -1}
    assert (lines[5]["kind"], lines[5]["received_at_s"], lines[5]["monotonic_s"]) == ("frame", 12.0, 2.0)
    assert lines[5]["message"]["image"] == {"dtype": "<f4", "shape": [1, 600, 512]}


def test_small_arrays_are_told_in_full(tmp_path: Path, make_frame) -> None:
    journal = Journal(tmp_path, JournalConfig())
    frame: Frame = make_frame(image=np.array([[[1.0, np.nan], [3.0, 4.0]]], np.float32))
    journal.append(encode(frame), 0.0, kind="frame", monotonic_s=0.0)
    journal.close()
    assert run("export", tmp_path, "--format", "jsonl")[0] == 0
    (line,) = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert json.loads(line)["message"]["image"] == [[[1.0, None], [3.0, 4.0]]]


@pytest.mark.parametrize("words", [("verify",), ("repair",), ("export", "--format", "hspy")])
def test_folder_without_a_journal_is_named_with_exit_code_2(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, text = run(words[0], tmp_path, *words[1:])
    assert code == 2
    assert "holds no journal" in text.replace("\n", "")
