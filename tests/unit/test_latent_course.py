"""What the live view and the report make of a session's latents, against sessions with a known course."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from agents.config import AgentConfig
from deploy import figures, report
from deploy.latent_course import (
    WINDOWS_KEPT,
    WORDS,
    Kind,
    LatentCourse,
    LatentLines,
    kind_of_sites,
    latest,
)
from deploy.latent_figures import liveliest_tracks, way_of
from deploy.latent_sections import read_outs, together
from deploy.live_view import Around, line, render
from deploy.run_session import Plan, kind_of_plan
from deploy.session import Session, gather, read_session
from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import AnyMessage, Atoms, Frame, Latents, Registration, ScanGeometry, Status

GEOMETRY = ScanGeometry(shape=(64, 64), field_of_view_nm=(100.0, 100.0))


def latents(number: int = 0, classes: Any = (0, 1, 1), k: int = 2, **changes: Any) -> Latents:
    """Make latents of windows of these classes; track by track the same unless it is said."""
    class_ = np.asarray(classes, np.int64)
    n = len(class_)
    rng = np.random.default_rng(number)
    probability = np.full((n, k), 0.02, np.float32)
    if k:
        probability[np.arange(n), class_] = 0.95
    places = np.random.default_rng(5).uniform(4, 60, (n, 2)).astype(np.float32)
    fields: dict[str, Any] = {
        "session": "s",
        "number": number,
        "acquired_at_s": 100.0 + number,
        "mean": (class_[:, None] + 0.01 * rng.normal(size=(n, 2))).astype(np.float32),
        "sd": np.full((n, 2), 0.1, np.float32),
        "angle_rad": np.full(n, 0.5, np.float32),
        "angle_sd_rad": np.full(n, 0.05, np.float32),
        "offset_nm": np.zeros((n, 2), np.float32),
        "offset_sd_nm": np.zeros((n, 2), np.float32),
        "class_probability": probability,
        "novelty": np.zeros(n, np.float32),
        "confidence": np.ones(n, np.float32),
        "track": np.arange(n),
        "positions_px": places,
        "positions_nm": places,
        "model_revision": "0123456789ab",
        "geometry": GEOMETRY,
        "registration": Registration(),
    }
    return Latents(**(fields | changes))


def course_of(*told: Latents, **options: Any) -> LatentCourse:
    course = LatentCourse(**options)
    for one in told:
        course.add(one)
    return course


# -- the course ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "configured", "kind"),
    [
        (("HAADF",), "auto", "columns"),
        (("amplitude", "phase", "height"), "auto", "walls"),
        (("height trace", "height retrace"), "auto", "particles"),
        (("amplitude", "phase"), "grid", "grid"),
        (("HAADF",), "a kind from a later version", "columns"),
        ((), "auto", "columns"),
    ],
)
def test_the_channels_tell_what_a_frame_shows_unless_it_is_configured(
    channels: tuple[str, ...], configured: str, kind: Kind
) -> None:
    assert kind_of_sites(channels, configured) == kind


def test_transitions_are_counted_from_each_frame_to_the_next() -> None:
    course = course_of(latents(0, (0, 1, 1)), latents(1, (0, 0, 1)), latents(2, (1, 0, 1)))
    assert course.transitions.tolist() == [[2, 1], [1, 2]]
    assert course.last_transitions.tolist() == [[1, 1], [0, 1]]
    assert [one.classes.tolist() for one in course.seen] == [[1, 2], [2, 1], [1, 2]]


def test_other_weights_begin_anew() -> None:
    course = course_of(latents(0), latents(1), latents(2, model_revision="ba9876543210"))
    assert [one.number for one in course.seen] == [2]
    assert course.transitions.tolist() == [[0, 0], [0, 0]]


def test_sub_scans_and_encoders_beside_the_main_one_are_left_out() -> None:
    course = course_of(latents(0), latents(1, request_id="explorer-1"), latents(1, encoder="wide"))
    assert [one.number for one in course.seen] == [0]


def test_of_a_long_session_frames_are_kept_from_its_whole_length() -> None:
    course = course_of(*(latents(number) for number in range(50)), frames_kept=8)
    numbers = [one.number for one in course.kept]
    assert len(numbers) <= 8
    assert numbers[0] == 0
    assert numbers[-1] >= 42
    assert len(set(np.diff(numbers))) == 1
    assert len(course.seen) == 50


def test_the_live_view_keeps_one_frame_and_all_transitions() -> None:
    course = course_of(latents(0, (0, 0)), latents(1, (1, 0)), latents(2, (1, 0)), frames_kept=0)
    assert (len(course.seen), len(course.kept)) == (1, 0)
    assert course.transitions.tolist() == [[2, 1], [0, 1]]


def test_of_delivered_patterns_only_the_last_are_kept_and_frames_go_on_beside_them() -> None:
    batch = np.zeros(WINDOWS_KEPT // 2, np.int64)
    patterns = [latents(n, batch, is_delivered=True, model_revision="dddddddddddd") for n in (1, 2, 3)]
    course = course_of(latents(0), *patterns, latents(4))
    assert [one.number for one in course.delivered] == [2, 3]
    assert [one.number for one in course.seen] == [0, 4]


def test_angles_are_on_the_specimen_already_however_the_scan_is_turned() -> None:
    turned = ScanGeometry(shape=(64, 64), field_of_view_nm=(100.0, 100.0), rotation_rad=0.3)
    course = course_of(latents(0), latents(1, geometry=turned))
    assert [one.order.director_rad for one in course.seen] == pytest.approx([0.5, 0.5], abs=1e-6)


def test_a_frame_without_windows_has_no_mean_and_ends_nothing() -> None:
    course = course_of(latents(0), latents(1, ()), latents(2))
    assert np.isnan(course.seen[1].mean).all()
    assert len(course.seen) == 3


# -- in words --------------------------------------------------------------------------------------------


def test_the_last_word_of_rods_has_classes_changes_order_and_novelty() -> None:
    novelty = np.array([5.0, 0, 0, 0], np.float32)
    course = course_of(latents(0, (0, 1, 1, 1)), latents(1, (0, 0, 1, 1), novelty=novelty))
    assert latest(course, "particles") == LatentLines(
        classes="classes 0: 2, 1: 2",
        changes="1 changed, most 1→0",
        order="order 1.00 at +29°",
        novel="novel 25 %",
    )
    assert latest(course, "columns").order == ""


def test_rare_classes_are_told_together() -> None:
    told = latest(course_of(latents(0, (0, 0, 1, 2, 3, 4, 5, 6), k=8)), "columns").classes
    assert told == "classes 0: 2, 1: 1, 2: 1, 3: 1, 4: 1, others 2"


def test_nothing_is_said_before_the_first_latents_or_of_an_encoder_without_classes() -> None:
    assert latest(LatentCourse(), "columns").in_one() == ""
    assert latest(course_of(latents(0, k=0), latents(1, k=0)), "columns").in_one() == "novel 0 %"


def test_of_patterns_all_that_are_kept_are_counted() -> None:
    batches = [latents(n, (0, 1), is_delivered=True) for n in (0, 1, 2)]
    assert latest(course_of(*batches), "patterns").in_one() == "classes 0: 3, 1: 3  novel 0 %"


def test_what_will_be_seen_is_known_by_the_instrument_unless_it_is_configured() -> None:
    def plan(name: str, **sites: str) -> Plan:
        tables = {"streamer": {"pipeline": {"sites": sites}}}
        return Plan(folder=Path("nowhere"), tables=tables, instrument=(name, "--seed", "1"))

    assert [kind_of_plan(plan(name)) for name in ("stem", "pfm", "afm")] == ["columns", "walls", "particles"]
    assert kind_of_plan(plan("pfm", kind="grid")) == "grid"


def status() -> Status:
    nothing = (1.0, 2.0)
    return Status(
        session="s", at_s=0.0, state="running", frames={}, stage_ms={}, frame_to_latents_ms=nothing,
        frame_to_suggestion_ms=nothing, atoms=70, requests_granted=0, requests_refused=0, outcomes_ok=0,
        max_measurements=0, dose_e=0.0, max_dose_e=1e9, drift_nm=(0.0, 0.0), best=0.0, best_position_nm=None,
        suggestions=("explorer-1",) * 8,
    )  # fmt: skip


def test_the_longest_name_of_what_is_found_leaves_room_for_the_numbers() -> None:
    console = Console(width=80, height=24, force_terminal=False)
    longest = max((words.many for words in WORDS.values()), key=len)
    with console.capture() as capture:
        console.print(render(status(), Around(many=longest)))
    assert "(+0.00, +0.00) nm" in capture.get()
    assert longest in capture.get()


@pytest.mark.parametrize("restarts", [(), ("restarted agent",)])
def test_the_screen_says_what_latents_say_and_still_fits(restarts: tuple[str, ...]) -> None:
    seen = LatentLines(
        classes="classes 0: 1,200, 1: 33, 2: 20, 3: 9, 4: 3, others 17",
        changes="1,234 changed, most 10→11",
        order="order 0.62 at +34°",
        novel="novel 12 %",
    )
    console = Console(width=80, height=24, force_terminal=False)
    with console.capture() as capture:
        console.print(render(status(), Around(many="rods", latents=seen, restarts=restarts)))
    rows = capture.get().rstrip("\n").split("\n")
    assert len(rows) <= 24
    assert max(len(row) for row in rows) <= 80
    for words in ("rods in sight", "classes 0: 1,200", "1,234 changed", "order 0.62 at +34°  novel 12 %"):
        assert any(words in row for row in rows), words
    told = line(status(), Around(many="rods", latents=seen))
    assert "rods 70" in told
    assert told.endswith("order 0.62 at +34°  novel 12 %")


# -- the report ------------------------------------------------------------------------------------------


def session(frames: int = 12, channels: tuple[str, ...] = ("HAADF",), **changes: Any) -> list[AnyMessage]:
    """Make a session in which the first atom goes from class 0 to class 1 in the middle."""
    told: list[AnyMessage] = []
    for number in range(frames):
        classes = np.r_[int(number >= frames // 2), np.zeros(30, np.int64), np.ones(8, np.int64)]
        image = np.random.default_rng(number).random((len(channels), 64, 64), dtype=np.float32)
        frame = Frame(
            session="s", number=number, acquired_at_s=100.0 + number, image=image, channels=channels,
            geometry=GEOMETRY, dwell_time_us=1.0,
        )  # fmt: skip
        one = latents(number, classes, **changes)
        told += [frame, one]
    ones = np.ones(39, np.float32)
    atoms = Atoms(
        frame=frame,
        positions_px=one.positions_px,
        confidence=ones,
        amplitude=ones,
        background=0.0,
        contrast=1.0,
    )
    return [*told, atoms]


def gathered(told: list[AnyMessage]) -> Session:
    return gather(Path("nowhere"), [(float(at), message) for at, message in enumerate(told)])


def page_of(found: Session) -> str:
    def no_weights() -> Any:
        raise FileNotFoundError("there are no weights in this test")

    return report.page(report.Material(found, AgentConfig(), no_weights))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pictures undrawn where words are judged: drawing takes seconds."""
    monkeypatch.setattr(figures, "to_data_uri", lambda figure: "")


@pytest.mark.usefixtures("undrawn")
def test_the_report_shows_fields_classes_and_time_of_atoms() -> None:
    told = read_outs(gathered(session()))
    assert re.findall("<h3>(.*?)</h3>", told) == ["Over the field", "Classes", "Through time"]
    assert "468 atoms in 12 frames" in told
    assert "429 pairs, of which 1 (0.23 %) changed class" in told
    assert "The encoder knows such frames." in told


@pytest.mark.parametrize(
    ("channels", "many"), [(("amplitude", "phase", "height"), "wall points"), (("height",), "rods")]
)
@pytest.mark.usefixtures("undrawn")
def test_a_report_of_walls_or_rods_speaks_of_no_atoms_and_shows_their_order(
    channels: tuple[str, ...], many: str
) -> None:
    page = page_of(gathered(session(channels=channels)))
    assert f"Order of the {many}" in page
    assert "atom" not in page


@pytest.mark.usefixtures("undrawn")
def test_what_encoders_beside_the_main_one_see_has_a_picture_of_its_own() -> None:
    told = [*session(frames=2), latents(0, (1, 1), encoder="wide"), latents(1, (1,), encoder="wide")]
    found = read_outs(gathered(told))
    assert "Over the field, as «wide» sees it" in found
    assert "The 1 atom of frame 1" in found


def test_every_picture_of_rods_is_drawn() -> None:
    told = read_outs(gathered(session(channels=("height",))))
    assert told.count("data:image/png") == 6


@pytest.mark.usefixtures("undrawn")
def test_the_true_order_stands_beside_the_one_that_was_found(tmp_path: Path) -> None:
    journal = Journal(tmp_path, JournalConfig())
    for at, message in enumerate(session(frames=3, channels=("height",))):
        journal.append(encode(message), float(at), kind=kind_of(message), monotonic_s=float(at))
    journal.close()
    truth = {"frame_order": np.full(3, 0.75), "frame_director_rad": np.zeros(3), "drift_nm": np.zeros((3, 2))}
    np.savez(tmp_path / "truth.npz", **truth)
    told = read_outs(read_session(tmp_path))
    assert "root mean square difference of the order parameter 0.250" in told


@pytest.mark.usefixtures("undrawn")
def test_a_report_warns_of_an_encoder_that_does_not_know_such_frames() -> None:
    strange = np.full(39, 9.0, np.float32)
    told = read_outs(gathered(session(novelty=strange)))
    assert "100 % of them with a novelty above 3" in told
    assert "do not trust" in told


@pytest.mark.usefixtures("undrawn")
def test_an_encoder_without_classes_has_no_classes_to_show() -> None:
    assert "tells no classes of atoms apart" in read_outs(gathered(session(k=0)))


@pytest.mark.usefixtures("undrawn")
def test_one_frame_has_nothing_to_show_in_time() -> None:
    assert "nothing to be seen in time" in read_outs(gathered(session(frames=1)))


@pytest.mark.usefixtures("undrawn")
def test_batches_of_patterns_are_put_together_over_the_scan() -> None:
    batches: list[AnyMessage] = [latents(n, (0, 1), is_delivered=True) for n in (0, 1, 2)]
    found = gathered(batches)
    assert found.kind == "patterns"
    assert len(together(found).mean) == 6
    assert "The last 6 patterns" in read_outs(found)


def test_the_atom_that_changed_is_the_liveliest_and_noise_is_not_life() -> None:
    kept = gathered(session()).course.kept
    assert liveliest_tracks(kept)[0] == 0
    way, frames = way_of(kept, 0)
    assert frames.tolist() == list(range(12))
    np.testing.assert_allclose(way[:, 0], np.repeat([0.0, 1.0], 6), atol=0.05)
    jumps = [latents(n, (n % 2, 0, 0)) for n in range(12)] + []
    shifted = [
        latents(n, (0, 0, 0), mean=one.mean + np.array([[0, 0], [0, 0], [0.02 * n, 0]], np.float32))
        for n, one in enumerate(jumps)
    ]
    assert liveliest_tracks(course_of(*shifted).kept)[0] == 2  # a slow way before jumps to and fro


def test_atoms_that_were_seen_too_seldom_have_no_way() -> None:
    kept = course_of(*(latents(n, track=np.array([n, 100 + n, -1])) for n in range(9))).kept
    assert liveliest_tracks(kept) == []


class HalfTurned:
    """Decodes every content as a rod along y, and is otherwise no encoder."""

    revision = "0123456789ab"

    def decode(self, mean: np.ndarray) -> np.ndarray:
        col = np.arange(24) - 11.5
        return np.tile(np.exp(-(col**2) / 8), (len(mean), 1, 24, 1)).astype(np.float32)


@pytest.mark.usefixtures("undrawn")
def test_angles_of_lines_are_counted_from_where_the_upright_content_runs() -> None:
    found = gathered(session(channels=("height",)))
    assert "counted from the encoder's own zero" in html.unescape(read_outs(found))
    told = read_outs(found, HalfTurned())  # type: ignore[arg-type]
    assert "director -61°" in told  # 0.5 rad, which is 29°, on top of 90°
