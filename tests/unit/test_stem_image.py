"""The simulated image: columns where the beam met them, as bright as their element, with shot noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from simulators.counting import TABLE_MAX, poisson
from simulators.scan_distortion import BeamPath, ScanDistortion, ScanDistortionConfig
from simulators.specimen import SpecimenConfig
from simulators.stem import StemConfig, StemInstrument, add_columns, column_heights
from streamer.messages import Request, ScanGeometry

STILL = ScanDistortionConfig(
    drift_rate_nm_per_s=(0.0, 0.0), drift_wander_nm_per_sqrt_s=0.0, row_jitter_px=0.0, flyback_px=0.0
)
SMALL = StemConfig(rows=64, cols=96, field_of_view_nm=2.0, seed=1)


def still_path(geometry: ScanGeometry) -> BeamPath:
    return ScanDistortion(STILL, np.random.default_rng(0)).scan(geometry, 1.0)


def ask(**fields: Any) -> Request:
    """A spectrum of 1 ms in the middle, unless told otherwise."""
    usual: dict[str, Any] = {
        "session": "s",
        "id": "r",
        "action": "spectrum",
        "scan_position_nm": (0.0, 0.0),
        "position_nm": (0.0, 0.0),
        "dwell_time_us": 1000.0,
    }
    return Request(**(usual | fields))


def centroid(image: np.ndarray) -> tuple[float, float]:
    row, col = np.indices(image.shape)
    return float((row * image).sum() / image.sum()), float((col * image).sum() / image.sum())


def bright_spot_nm(instrument: StemInstrument) -> np.ndarray:
    """Scan position of the silicon nearest the middle, by its centroid in a new frame."""
    frame = instrument.acquire()
    image = frame.image[0]
    drift = instrument.truth()["drift_nm"][-1]
    silicon = instrument.specimen.positions_nm[instrument.specimen.numbers == 14]
    seen = frame.geometry.to_px(silicon + drift)
    nearest = np.rint(seen[np.argmin(np.linalg.norm(seen - np.array(image.shape) / 2, axis=1))]).astype(int)
    reach = 8
    row, col = nearest - reach
    spot = image[row : row + 2 * reach + 1, col : col + 2 * reach + 1]
    spot = np.clip(spot - 0.5 * spot.max(), 0, None)
    return frame.geometry.to_nm(np.array([centroid(spot)]) + (row, col))[0]


def test_each_pixel_is_the_sum_of_the_columns_at_its_true_beam_position():
    rng = np.random.default_rng(3)
    geometry = ScanGeometry(
        shape=(48, 40), field_of_view_nm=(1.0, 1.5), center_nm=(0.3, -0.2), rotation_rad=0.5
    )
    strong = ScanDistortionConfig(drift_rate_nm_per_s=(0.1, -0.05), row_jitter_px=0.7, flyback_px=4.0)
    path = ScanDistortion(strong, rng).scan(geometry, 500.0)
    atoms_nm = rng.uniform(-1.2, 1.2, (60, 2))
    heights = rng.uniform(10, 300, 60)
    image = np.full(geometry.shape, 2.0, np.float32)
    add_columns(image, atoms_nm, heights, 0.06, path)

    apart = path.specimen_positions_nm()[:, :, None] - atoms_nm
    naive = 2.0 + (heights * np.exp(-(apart**2).sum(axis=-1) / (2 * 0.06**2))).sum(axis=-1)
    np.testing.assert_allclose(image, naive, atol=300 * 2e-4)


@pytest.mark.parametrize("rotation_rad", [0.0, 0.3, -2.0])
def test_an_isolated_column_is_imaged_where_it_is(rotation_rad):
    geometry = ScanGeometry(
        shape=(60, 80), field_of_view_nm=(1.6, 1.2), center_nm=(5.0, -3.0), rotation_rad=rotation_rad
    )
    atom_nm = np.array([[5.21, -3.117]])
    image = np.zeros(geometry.shape, np.float32)
    add_columns(image, atom_nm, np.array([1000.0]), 0.05, still_path(geometry))

    np.testing.assert_allclose(centroid(image), geometry.to_px(atom_nm)[0], atol=0.01)


@pytest.mark.parametrize(("detector", "ratio"), [("HAADF", 5.03), ("MAADF", 3.44)])
def test_silicon_is_brighter_than_carbon_as_on_that_detector(detector, ratio):
    config = StemConfig(detector=detector, carbon_counts=60.0)
    carbon, silicon = column_heights(config, np.array([6, 14]))

    assert carbon == 60.0
    assert silicon / carbon == pytest.approx(ratio, rel=0.01)


def test_a_frame_has_about_1500_atoms_of_which_some_are_silicon():
    config = StemConfig()
    instrument = StemInstrument(config)
    seen = config.geometry.to_px(instrument.specimen.positions_nm)
    in_frame = np.all((seen >= 0) & (seen < 512), axis=1)

    assert 1450 < np.count_nonzero(in_frame) < 1560
    assert 8 <= np.count_nonzero(instrument.specimen.numbers[in_frame] == 14) <= 26


def test_the_sheet_fills_the_field_wherever_the_drift_takes_it():
    instrument = StemInstrument(StemConfig(rows=64, cols=64, rotation_deg=30.0, seed=2))
    frames = []
    for _ in range(2):
        frames.append(instrument.acquire())
        spectrum = ask(dwell_time_us=6e7)
        for _ in range(20):
            instrument.execute(spectrum)
    drift = instrument.truth()["drift_nm"]

    assert np.linalg.norm(drift[1] - drift[0]) > 2.0
    for frame in frames:  # vacuum would be 13 counts throughout a block; a ring's hole is smaller
        blocks = frame.image[0].reshape(8, 8, 8, 8).mean(axis=(1, 3))
        assert blocks.min() > 25


def test_counts_have_the_mean_and_the_variance_of_shot_noise():
    flat = StemConfig(
        rows=256,
        cols=256,
        carbon_counts=0.01,
        background_counts=40.0,
        detector_offset_counts=7.0,
        distortion=STILL,
    )
    image = StemInstrument(flat).acquire().image[0]

    assert image.mean() == pytest.approx(47.0, abs=5 * math.sqrt(40 / 65536))
    assert image.var() == pytest.approx(40.0, rel=5 * math.sqrt(2 / 65536))


@pytest.mark.parametrize("mean", [0.4, 5.5, 60.0, TABLE_MAX + 0.0, 1000.0])
def test_poisson_draws_the_distribution_of_poisson(mean):
    counts = poisson(np.full(200_000, mean, np.float32), np.random.default_rng(1))
    low, high = (int(x) for x in stats.poisson.ppf([1e-3, 1 - 1e-3], mean))
    edges = np.arange(low, high + 1)
    cumulative = np.searchsorted(np.sort(counts), edges, side="right") / counts.size

    # Kolmogorov–Smirnov at 1e-6 or less of false alarm.
    assert np.abs(cumulative - stats.poisson.cdf(edges, mean)).max() < 2.7 / math.sqrt(counts.size)


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_poisson_refuses_what_is_no_expectation(bad):
    with pytest.raises(ValueError, match="it takes 0 and above"):
        poisson(np.array([3.0, bad], np.float32), np.random.default_rng(0))


def test_a_drifted_atom_is_seen_at_its_position_plus_drift():
    distortion = ScanDistortionConfig(
        drift_rate_nm_per_s=(0.02, -0.01), drift_settling_s=100.0, row_jitter_px=0, flyback_px=0
    )
    instrument = StemInstrument(
        StemConfig(
            rows=128,
            cols=128,
            field_of_view_nm=3.0,
            carbon_counts=2000.0,
            distortion=distortion,
            specimen=SpecimenConfig(three_fold_si_per_nm2=0.4, has_grain_boundary=False),
            seed=3,
        )
    )
    before_nm = bright_spot_nm(instrument)
    instrument.execute(ask(dwell_time_us=1e7))
    after_nm = bright_spot_nm(instrument)
    drift = instrument.truth()["drift_nm"]

    np.testing.assert_allclose(after_nm - before_nm, drift[1] - drift[0], atol=0.003)
    assert drift[1][0] - drift[0][0] == pytest.approx(0.02 * 100 * (1 - math.exp(-0.1)), abs=0.03)


def test_a_sub_scan_shows_its_part_of_the_full_frame():
    config = StemConfig(
        rows=128, cols=128, field_of_view_nm=3.0, rotation_deg=20.0, carbon_counts=1e4, distortion=STILL
    )
    instrument = StemInstrument(config)
    frame = instrument.acquire()
    center = frame.geometry.to_nm(np.array([[(20 + 51) / 2, (70 + 109) / 2]]))[0]
    request = ask(
        id="r-1",
        action="scan",
        scan_position_nm=(float(center[0]), float(center[1])),
        dwell_time_us=1.0,
        field_of_view_nm=(40 * 3.0 / 128, 32 * 3.0 / 128),
        shape=(32, 40),
    )
    outcome, part = instrument.execute(request)
    assert part is not None
    crop = frame.image[0, 20:52, 70:110]

    assert outcome.status == "ok"
    assert part.request_id == "r-1"
    assert part.image.shape == (1, 32, 40)
    np.testing.assert_allclose((part.image[0] - crop).std() / np.sqrt(2 * crop).mean(), 1.0, atol=0.1)


def test_a_spectrum_is_taken_on_the_specimen_below_the_drifted_beam():
    distortion = ScanDistortionConfig(drift_rate_nm_per_s=(0.02, 0.01))
    instrument = StemInstrument(StemConfig(rows=32, cols=32, seed=4, distortion=distortion))
    for _ in range(3):
        instrument.execute(ask(dwell_time_us=1e7))
    frame = instrument.acquire()
    truth = instrument.truth()
    drift = truth["drift_nm"][-1]
    silicon = np.flatnonzero(truth["numbers"] == 14)[0]
    site_nm = truth["positions_nm"][silicon]

    def counts_of_edge(scan_position: np.ndarray) -> float:
        outcome, _ = instrument.execute(
            ask(scan_position_nm=(float(scan_position[0]), float(scan_position[1])), dwell_time_us=1e5)
        )
        assert outcome.spectrum is not None
        return float(outcome.spectrum[96:120].sum())

    expected = float(truth["spectra"][silicon][96:120].sum())
    assert np.linalg.norm(drift) > 0.4
    assert frame.geometry.center_nm == (0.0, 0.0)
    assert counts_of_edge(site_nm + drift) == pytest.approx(expected, rel=0.15)
    assert counts_of_edge(site_nm) < 0.6 * expected


def test_time_and_dose_advance_with_what_the_beam_does():
    instrument = StemInstrument(SMALL, started_at_s=1000.0)
    frame = instrument.acquire()
    outcome, _ = instrument.execute(ask(dwell_time_us=2e5))
    electrons_per_us = 60e-12 / 1.602176634e-19 * 1e-6

    assert frame.acquired_at_s == pytest.approx(1000.0 + 64 * 96 * 1e-6)
    assert frame.dose_e_per_nm2 == pytest.approx(64 * 96 * electrons_per_us / (2.0 * 2.0 * 64 / 96))
    assert outcome.started_at_s == frame.acquired_at_s
    assert outcome.ended_at_s - outcome.started_at_s == pytest.approx(0.2)
    assert outcome.dose_e == pytest.approx(2e5 * electrons_per_us)
    assert instrument.acquire().acquired_at_s == pytest.approx(outcome.ended_at_s + 64 * 96 * 1e-6)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    def three_frames(seed: int) -> bytes:
        instrument = StemInstrument(StemConfig(rows=32, cols=32, seed=seed), started_at_s=0.0)
        return b"".join(instrument.acquire().image.tobytes() for _ in range(3))

    assert three_frames(7) == three_frames(7)
    assert three_frames(7) != three_frames(8)


def test_the_truth_has_a_row_for_each_frame_and_a_spectrum_for_each_site():
    instrument = StemInstrument(SMALL)
    instrument.acquire()
    instrument.execute(ask(action="scan", dwell_time_us=1.0, field_of_view_nm=(0.5, 0.5), shape=(16, 16)))
    instrument.acquire()
    truth = instrument.truth()

    assert truth["drift_nm"].shape == (3, 2)
    for part in ("row_offset_px", "column_offset_px", "row_drift_nm", "coil_px"):
        known = np.isfinite(truth[part].reshape(3, -1))
        assert known.all(axis=1).tolist() == known.any(axis=1).tolist() == [True, False, True]
    assert truth["row_offset_px"][0, 1].std() == pytest.approx(0.15, rel=0.4)
    assert truth["spectra"].shape == (len(truth["positions_nm"]), 256)
    assert truth["spectra"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"action": "laser"}, "unknown action"),
        ({"dwell_time_us": 0.0}, "dwell_time_us takes above 0"),
        ({"dwell_time_us": float("nan")}, "dwell_time_us takes above 0"),
        ({"scan_position_nm": (float("inf"), 0.0)}, "scan_position_nm is not finite"),
        ({"action": "scan"}, "a scan takes field_of_view_nm and shape"),
        (
            {"action": "scan", "field_of_view_nm": (-1.0, 1.0), "shape": (4, 4)},
            "field_of_view_nm takes above 0",
        ),
        ({"action": "scan", "field_of_view_nm": (1.0, 1.0), "shape": (16384, 16384)}, "shape takes"),
    ],
)
def test_what_cannot_be_done_fails_with_its_reason(change, reason):
    outcome, frame = StemInstrument(SMALL).execute(ask(**change))

    assert (outcome.status, outcome.id, frame) == ("failed", "r", None)
    assert reason in outcome.reason


@pytest.mark.parametrize(
    ("field", "value", "takes"),
    [
        ("rows", 0, "8 to 4096"),
        ("field_of_view_nm", 0.1, "1 to 50"),
        ("carbon_counts", float("nan"), "0.01 to 100000"),
        ("seed", -1, "0 and above"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field, value, takes):
    with pytest.raises(ValueError, match=f"stem.{field} is {value}; it takes {takes}"):
        StemConfig(**{field: value})
