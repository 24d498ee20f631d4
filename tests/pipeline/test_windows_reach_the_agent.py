"""Windows that the pipeline cuts come to the agent, which suggests by them, and a record decides the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deploy.decided_again import weighed_again
from simulators.specimen import SpecimenConfig
from simulators.stem import StemConfig, StemInstrument
from streamer.codec import encode
from streamer.messages import Latents
from streamer.pipeline import Pipeline, PipelineConfig
from streamer.stages.encode import EncodeConfig
from streamer.telemetry import Telemetry
from streamer.window_bytes import as_seen
from tests.edge_spectra import outcome_of
from tests.recorded_agent import RecordedAgent

SEED = 11
TURNS = 26
SPECIMEN = SpecimenConfig(has_grain_boundary=False, three_fold_si_per_nm2=0.6, vacancies_per_nm2=0.0)


@pytest.fixture(scope="module")
def instrument() -> StemInstrument:
    config = StemConfig(seed=SEED, rows=256, cols=256, field_of_view_nm=4.0, specimen=SPECIMEN)
    return StemInstrument(config, started_at_s=1000.0)


@pytest.fixture(scope="module")
def seen(instrument: StemInstrument) -> list[Latents]:
    line = Pipeline.build(PipelineConfig(encode=EncodeConfig(send_windows=True)))
    made = []
    for number in range(TURNS):
        processed = line.process(replace(instrument.acquire(), session="s", number=number), Telemetry())
        assert processed is not None
        made.append(processed.latents)
    return made


def silicon_nm(instrument: StemInstrument) -> NDArray[np.float64]:
    truth = instrument.truth()
    sites: NDArray[np.float64] = truth["positions_nm"][truth["numbers"] == 14] + truth["drift_nm"][0]
    return sites


def test_each_atom_has_its_window_beside_its_latents(seen: list[Latents]) -> None:
    first = seen[0]
    assert first.windows is not None
    assert first.window_range is not None
    assert len(first.windows) == len(first.mean) > 300
    middle = as_seen(first.windows, first.window_range)[:, 0, 11:13, 11:13].mean(axis=(1, 2))
    assert np.median(middle) == pytest.approx(1.0, abs=0.2), "1 is the top of a typical column"
    per_atom = sum(len(part) for part in encode(first)) - sum(
        len(part) for part in encode(first.without_windows())
    )
    assert per_atom / len(first.mean) < 600


def test_by_windows_alone_it_finds_silicon_and_a_record_decides_the_same(
    instrument: StemInstrument, seen: list[Latents], tmp_path: Path
) -> None:
    one, rng = RecordedAgent(tmp_path, features=["windows"]), np.random.default_rng(SEED)
    one.join()
    silicon, hits = cKDTree(silicon_nm(instrument)), []
    for frame in seen:
        one.see(frame)
        while (fit := one.agent.refit()) is not None:
            one.record(replace(fit, told=one.told), one.instance)
        suggestion = one.agent.ask()
        assert suggestion is not None
        one.suggestions.append(replace(suggestion, told=one.told))
        one.record(one.suggestions[-1], one.instance)
        hits.append(silicon.query(suggestion.position_nm)[0] < 0.06)
        came = outcome_of(suggestion, float(hits[-1]), rng)
        one.told = one.record(came)
        score = one.agent.tell(came)
        assert score is not None
        one.record(score, one.instance)
    one.journal.close()
    assert one.agent.model_revision >= 3
    then = slice(one.config.initial_points, one.config.initial_points + 6)
    assert np.mean(hits[then]) > 0.8, "after the first looks, sites of silicon, by their windows alone"
    again = list(weighed_again(tmp_path, one.config))
    assert [one.suggestion.id for one in again if one.explanation] == [s.id for s in one.suggestions]
