"""Another agent decides on a recorded session, and only on what was recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from agents.config import AgentConfig
from agents.objective import Objective, ObjectiveConfig
from deploy.counterfactual import Pool, app, compare, near_best, read_pool, read_turns
from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of, read_records
from streamer.messages import Latents, Message, Outcome, Registration, ScanGeometry, StrainMap, Suggestion
from streamer.segment import Record

Make = Callable[..., Latents]
# The objective is the counts of channel 1: a value known by hand.
COUNTS = ObjectiveConfig(
    label="counts", window_ev=(0.5, 1.5), background_model="none", normalise="none", reference_ev=(0.0, 1.0)
)
CONFIG = AgentConfig(policy="raster", raster_step=1, objective=COUNTS)
VALUES = (3.0, 9.0, 1.0, 10.0, 2.0)


@pytest.fixture
def session(tmp_path: Path, make_latents: Make) -> Path:
    """Five of twenty atoms in a row were measured from right to left, two after each frame."""
    places = np.stack([np.linspace(-1, 1, 20), np.zeros(20)], axis=1).astype(np.float32)
    messages: list[Message] = []
    for number in range(3):
        messages.append(
            make_latents(20, number=number, positions_nm=places, positions_px=10 * places[:, ::-1])
        )
        for index in range(2 * number, min(2 * number + 2, 5)):
            x, y = places[16 - 3 * index].tolist()
            messages += [suggestion(f"r-{index}", (x, y)), outcome(f"r-{index}", (x, y), VALUES[index])]
    return written(tmp_path / "session", messages)


def suggestion(identifier: str, position_nm: tuple[float, float], revision: int = 0) -> Suggestion:
    return Suggestion(
        session="s",
        number=0,
        acquired_at_s=1.0,
        id=identifier,
        position_nm=position_nm,
        registration_revision=revision,
        dwell_time_us=10.0,
        reason="test",
        policy="test",
    )


def outcome(identifier: str, position_nm: tuple[float, float], value: float) -> Outcome:
    return Outcome(
        session="s",
        id=identifier,
        status="ok",
        scan_position_nm=position_nm,
        position_nm=position_nm,
        spectrum=np.array([0, value, 0], dtype=np.float32),
    )


def written(folder: Path, messages: list[Message]) -> Path:
    journal = Journal(folder, JournalConfig())
    for message in messages:
        journal.append(encode(message), 1e9, kind=kind_of(message), monotonic_s=0.0)
    journal.close()
    return folder


def pool_of(session: Path) -> Pool:
    return read_pool(session, Objective(COUNTS))


def test_the_pool_is_what_was_measured_in_its_order(session: Path) -> None:
    assert [measured.value for measured in pool_of(session).all] == list(VALUES)


def test_a_turn_is_due_where_the_session_measured(session: Path) -> None:
    turns = list(read_turns(session, pool_of(session)))
    assert [None if turn is None else turn.number for turn in turns] == [
        0,
        None,
        None,
        1,
        None,
        None,
        2,
        None,
    ]


def test_only_measured_atoms_are_offered_with_all_that_is_known_of_them(
    session: Path, make_latents: Make
) -> None:
    pool = pool_of(session)
    frame = next(turn for turn in read_turns(session, pool) if turn is not None)
    offered, measured = pool.in_sight(frame, 0.02)
    assert offered.track.tolist() == [4, 7, 10, 13, 16]  # from left to right, as the frame has them
    assert measured == [4, 3, 2, 1, 0]
    np.testing.assert_array_equal(offered.mean, frame.mean[[4, 7, 10, 13, 16]])
    np.testing.assert_array_equal(offered.positions_nm, frame.positions_nm[[4, 7, 10, 13, 16]])
    pool.take(3)
    assert pool.in_sight(frame, 0.02)[1] == [4, 2, 1, 0]
    assert pool.left == 4


def test_an_offered_atom_keeps_all_that_is_said_of_it(session: Path) -> None:
    pool = pool_of(session)
    frame = next(turn for turn in read_turns(session, pool) if turn is not None)
    n, rows = len(frame.track), [4, 7, 10, 13, 16]
    said = {name: np.arange(n, dtype=np.float32) for name in ("gain", "defocus", "novelty", "confidence")}
    said["position_covariance_nm2"] = np.arange(4.0 * n, dtype=np.float32).reshape(-1, 2, 2)
    offered, _ = pool.in_sight(replace(frame, **said), 0.02)
    for name, values in said.items():
        np.testing.assert_array_equal(getattr(offered, name), values[rows])


def test_a_measurement_of_another_registration_or_far_from_every_atom_is_out_of_sight(session: Path) -> None:
    pool = pool_of(session)
    frame = next(turn for turn in read_turns(session, pool) if turn is not None)
    pool.add(outcome("far", (0.0, 0.5), 99.0), 0)
    assert 5 not in pool.in_sight(frame, 0.02)[1]
    moved = replace(frame, registration=Registration(revision=1))
    offered, measured = pool.in_sight(moved, 0.02)
    assert measured == []
    assert offered.mean.shape == (0, 2)


def test_both_learning_curves_are_those_known_by_hand(session: Path) -> None:
    found = compare(session, CONFIG)
    assert found.recorded.values == list(VALUES)
    assert found.recorded.best == [3.0, 9.0, 9.0, 10.0, 10.0]
    assert (found.recorded.to_best, found.recorded.to_near_best) == (4, 4)
    # One frame, one choice; of those left it takes the one whose turn it is in the row (raster).
    assert found.other.values == [2.0, 1.0, 3.0, 10.0, 9.0]
    assert found.never_taken == 0
    assert found.chance_to_best == 3.0  # (5 + 1) / (1 + 1)


def test_the_smallest_is_the_best_where_the_goal_is_so(session: Path) -> None:
    found = compare(session, replace(CONFIG, goal="minimise"))
    assert found.recorded.best == [3.0, 3.0, 1.0, 1.0, 1.0]
    assert found.recorded.to_best == 3
    assert found.other.best[-1] == 1.0


@pytest.mark.parametrize("policy", ["explorer", "raster", "random", "strain"])
def test_every_agent_takes_each_measurement_once_and_the_same_way_again(session: Path, policy: str) -> None:
    config = msgspec.convert(msgspec.to_builtins(CONFIG) | {"policy": policy}, AgentConfig)
    first = compare(session, config)
    assert sorted(first.other.values) == sorted(VALUES)
    assert compare(session, config) == first


def test_an_agent_that_looks_for_strain_is_told_the_recorded_map(
    session: Path, tmp_path: Path, make_latents: Make
) -> None:
    messages = [record.message() for record in read_records(session) if isinstance(record, Record)]
    strain = np.zeros((3, 3, 5), np.float32)
    strain[2] = np.linspace(0.0, 0.02, 5)  # grows to the right, where the session began
    told = StrainMap(
        session="s",
        number=0,
        acquired_at_s=1.0,
        geometry=ScanGeometry(shape=(3, 5), field_of_view_nm=(2.5, 1.5)),
        displacement_nm=np.zeros((2, 3, 5), np.float32),
        strain=strain,
        rotation_rad=np.zeros((3, 5), np.float32),
        strain_sd=np.full((3, 3, 5), 1e-4, np.float32),
        rotation_sd_rad=np.zeros((3, 5), np.float32),
        frames=4,
    )
    config = msgspec.convert(msgspec.to_builtins(CONFIG) | {"policy": "strain"}, AgentConfig)
    found = compare(written(tmp_path / "strained", [told, *messages]), config)
    assert found.other.values == list(VALUES)  # the session went from right to left, as the strain falls
    assert compare(session, config).other.values != list(VALUES)


def test_no_more_is_measured_after_a_frame_than_was_recorded_there(
    session: Path, tmp_path: Path, make_latents: Make
) -> None:
    """After the first frame the stage is moved: what was not taken by then is never seen again."""
    messages = [record.message() for record in read_records(session) if isinstance(record, Record)]
    elsewhere = make_latents(3, positions_nm=np.full((3, 2), 7.0, dtype=np.float32))
    moved = [elsewhere if isinstance(m, Latents) and m.number > 0 else m for m in messages]
    found = compare(written(tmp_path / "moved", moved), replace(CONFIG, max_per_frame=0))
    assert found.other.values == [2.0, 10.0]  # the first two from the left; the session took 3 and 9
    assert found.never_taken == 3


def test_a_spectrum_that_cannot_be_read_is_counted_and_left_out(session: Path) -> None:
    far = replace(COUNTS, window_ev=(100.0, 120.0))
    with pytest.raises(ValueError, match="none of the 5 recorded spectra can be read as counts"):
        compare(session, replace(CONFIG, objective=far))


@pytest.mark.parametrize(("values", "level"), [((1.0, 10.0), 9.5), ((-4.0, -2.0), -2.1), ((0.0, 0.0), 0.0)])
def test_near_the_best_is_within_a_twentieth(values: tuple[float, float], level: float) -> None:
    assert near_best(np.array(values)) == pytest.approx(level)


def test_the_command_draws_a_picture_and_says_all_in_json(session: Path, tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text(
        '[agent]\npolicy = "random"\n[agent.objective]\nwindow_ev = [0.5, 1.5]\nlabel = "counts"\n'
        'background_model = "none"\nnormalise = "none"\nreference_ev = [0.0, 1.0]\n'
    )
    result = CliRunner().invoke(app, [str(session), str(config), "--to", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0
    found = msgspec.json.decode(result.stdout)
    assert found["pool"] == 5
    assert found["recorded"]["to_best"] == 4
    assert (tmp_path / "out" / "counterfactual.png").read_bytes().startswith(b"\x89PNG")
    table = CliRunner().invoke(app, [str(session), str(config), "--to", str(tmp_path / "out")])
    assert "random on the record" in table.stdout
    nowhere = CliRunner().invoke(app, [str(tmp_path / "nothing"), str(config)])
    assert nowhere.exit_code == 2
    assert "holds no journal" in nowhere.stderr
