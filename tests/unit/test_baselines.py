"""Raster and random: what they promise beyond what every agent does."""

import numpy as np

from agents.config import AgentConfig
from agents.random import Random
from agents.raster import Raster, reading_order
from streamer.messages import Latents, Outcome, Registration, ScanGeometry


def latents(positions_px: np.ndarray, number: int = 0) -> Latents:
    positions = np.asarray(positions_px, dtype=np.float32)
    n = len(positions)
    zeros, pairs = np.zeros(n, np.float32), np.zeros((n, 2), np.float32)
    return Latents(
        session="s", number=number, acquired_at_s=0.0, mean=pairs, sd=pairs + 1, angle_rad=zeros,
        angle_sd_rad=zeros, offset_nm=pairs, offset_sd_nm=pairs, class_probability=pairs[:, :0],
        novelty=zeros, confidence=zeros + 1, track=np.arange(n), positions_px=positions,
        positions_nm=np.ascontiguousarray(positions[:, ::-1]), model_revision="m",
        geometry=ScanGeometry(shape=(64, 64), field_of_view_nm=(64.0, 64.0)), registration=Registration(),
    )  # fmt: skip


def grid(side: int) -> np.ndarray:
    return (
        np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2) * 2.0
    )


def tracks(agent, count: int) -> list[int]:
    """Ask and measure so many times."""
    taken = []
    for _ in range(count):
        suggestion = agent.ask()
        taken.append(suggestion.track)
        position = suggestion.position_nm
        agent.tell(
            Outcome(
                session="s", id=suggestion.id, status="ok", scan_position_nm=position, position_nm=position
            )
        )
    return taken


def test_reading_order_goes_line_by_line_though_lines_are_uneven():
    rng = np.random.default_rng(0)
    positions = grid(6) + rng.uniform(-0.2, 0.2, (36, 2))
    shuffled = rng.permutation(36)
    order = shuffled[reading_order(positions[shuffled])]
    lines = (grid(6)[order][:, 0] / 2).astype(int)
    assert (np.diff(lines) >= 0).mean() > 0.9
    assert reading_order(np.array([[0.0, 9.0], [0.0, 1.0], [8.0, 0.0]])).tolist() == [1, 0, 2]
    assert reading_order(np.array([[3.0, 3.0]])).tolist() == [0]


def test_the_raster_steps_evenly_and_then_takes_those_between():
    agent = Raster(AgentConfig(raster_step=4, max_per_frame=0))
    agent.tell(latents(grid(4)))
    assert tracks(agent, 16) == [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
    assert agent.ask() is None


def test_the_raster_goes_on_where_it_was_in_the_next_frame():
    agent = Raster(AgentConfig(raster_step=4, max_per_frame=0))
    agent.tell(latents(grid(4)))
    assert tracks(agent, 2) == [0, 4]
    agent.tell(latents(grid(4), number=1))
    assert tracks(agent, 2) == [8, 12]


def test_random_takes_every_atom_as_often():
    counts = np.zeros(9)
    for seed in range(900):
        agent = Random(AgentConfig(max_per_frame=0), seed=seed)
        agent.tell(latents(grid(3)))
        counts[agent.ask().track] += 1
    assert (np.abs(counts - 100) < 40).all()  # four standard deviations


def test_random_measures_every_atom_once():
    agent = Random(AgentConfig(max_per_frame=0), seed=1)
    agent.tell(latents(grid(4)))
    taken = tracks(agent, 16)
    assert sorted(taken) == list(range(16))
    assert taken != list(range(16))
    assert agent.ask() is None
