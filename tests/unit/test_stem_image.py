"""The simulated image: columns where the beam met them, as bright as their element, with shot noise."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from simulators.counting import TABLE_MAX, poisson
from simulators.faults import FaultConfig
from simulators.scan_distortion import BeamPath, ScanDistortion, ScanDistortionConfig
from simulators.specimen import SpecimenConfig
from simulators.stem import StemConfig, StemInstrument, add_columns, add_specimen, column_heights
from simulators.stem_kernels import OpticsConfig
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


def test_counts_of_a_smooth_image_have_the_spread_of_poisson_everywhere():
    """Variance over mean is 1, and each count is as frequent as it must be (chi-square), for any mean."""
    expected = np.geomspace(0.05, 400.0, 100, dtype=np.float32)
    counts = poisson(np.tile(expected, (10_000, 1)), np.random.default_rng(11))

    ratio = counts.var(axis=0, ddof=1) / expected
    assert ratio.mean() == pytest.approx(1.0, abs=0.02)
    assert (np.abs(ratio - 1) < 5 * np.sqrt((2 + 1 / expected) / 10_000)).all()  # 5 sd of it
    for column in (10, 30, 50, 70, 90):
        mean = float(expected[column])
        edges = np.unique(stats.poisson.ppf(np.linspace(0.02, 0.98, 17), mean))
        share = np.diff(stats.poisson.cdf(edges, mean), prepend=0.0, append=1.0)
        seen = np.bincount(np.searchsorted(edges, counts[:, column]), minlength=len(share))
        assert stats.chisquare(seen, share * len(counts)).pvalue > 1e-3


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_poisson_refuses_what_is_no_expectation(bad):
    with pytest.raises(ValueError, match="it takes 0 and above"):
        poisson(np.array([3.0, bad], np.float32), np.random.default_rng(0))


PHYSICAL = msgspec.structs.replace(SMALL, probe="physical")


@pytest.mark.parametrize(("detector", "ratio"), [("HAADF", 5.03), ("MAADF", 3.44)])
def test_a_physical_probe_counts_on_carbon_what_is_set_and_on_silicon_what_the_detector_makes_of_it(
    detector, ratio
):
    config = msgspec.structs.replace(PHYSICAL, detector=detector, optics=OpticsConfig(source_sigma_nm=0.0))
    geometry = ScanGeometry(shape=(9, 9), field_of_view_nm=(0.18, 0.18))
    middle = {}
    for number in (6, 14):
        image = np.zeros(geometry.shape, np.float32)
        add_specimen(image, np.zeros((1, 2)), np.array([number]), config, still_path(geometry), longer=2.0)
        assert image.argmax() == 40
        middle[number] = float(image[4, 4])

    assert middle[6] == pytest.approx(2 * 60.0, rel=1e-4)
    assert middle[14] / middle[6] == pytest.approx(ratio, rel=0.01)


def test_the_two_probes_show_the_same_sheet():
    """The Gaussian was made for 60 kV, 30 mrad and the same source."""
    gaussian, physical = (StemInstrument(config).acquire().image[0] for config in (SMALL, PHYSICAL))

    assert likeness(gaussian, physical) > 0.9
    assert physical.mean() == pytest.approx(gaussian.mean(), rel=0.1)


def test_a_physical_probe_in_the_vacuum_counts_nothing():
    config = msgspec.structs.replace(PHYSICAL, background_counts=0.0, detector_offset_counts=0.0)
    instrument = StemInstrument(config)
    reach_nm = config.optics.reach_nm
    corner_nm = instrument.specimen.positions_nm.max(axis=0)
    at_nm = (float(corner_nm[0]), float(corner_nm[1]))
    outcome, frame = instrument.execute(
        ask(
            action="scan",
            dwell_time_us=1.0,
            scan_position_nm=at_nm,
            field_of_view_nm=(4 * reach_nm, 4 * reach_nm),
            shape=(64, 64),
        )
    )

    assert (outcome.status, frame is None) == ("ok", False)
    image = frame.image[0]
    assert image[:20, :20].max() > 20
    assert (image[48:, 48:] == 0).all()


def test_the_sheet_reaches_as_far_beyond_the_field_as_a_physical_probe_sees():
    config = msgspec.structs.replace(PHYSICAL, distortion=STILL, optics=OpticsConfig(defocus_nm=20.0))
    edge_nm = np.array([1.0, 1.0 * 64 / 96])
    positions = StemInstrument(config).specimen.positions_nm

    assert (positions.max(axis=0) > edge_nm + config.optics.reach_nm - 0.3).all()
    assert (positions.min(axis=0) < -edge_nm - config.optics.reach_nm + 0.3).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probe": "round"}, "stem.probe is 'round'; it takes gaussian or physical"),
        (
            {"probe": "physical", "detector": "MAADF", "optics": OpticsConfig(semi_angle_mrad=45.0)},
            "stem.optics.semi_angle_mrad is 45.0; with MAADF it takes less than 45",
        ),
    ],
)
def test_a_probe_that_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        StemConfig(**fields)


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


MOVABLE = StemConfig(
    rows=128,
    cols=128,
    field_of_view_nm=3.0,
    carbon_counts=1e4,
    background_counts=0.0,
    stage_reach_nm=1.3,
    stage_error_nm=0.03,
    distortion=STILL,
    specimen=SpecimenConfig(has_grain_boundary=False),
    seed=3,
)


def whole_scan(instrument: StemInstrument, **fields: Any) -> np.ndarray:
    """Image of a sub-scan of the whole field."""
    config = instrument.config
    request = ask(
        action="scan",
        dwell_time_us=config.dwell_time_us,
        field_of_view_nm=config.geometry.field_of_view_nm,
        shape=(config.rows, config.cols),
        **fields,
    )
    outcome, frame = instrument.execute(request)
    assert (outcome.status, frame is None) == ("ok", False), outcome.reason
    return frame.image[0]


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_a_turned_scan_shows_the_turned_specimen():
    instrument = StemInstrument(MOVABLE)
    frame = instrument.acquire().image[0]
    turned = whole_scan(instrument, rotation_rad=math.pi / 2)

    # The fast axis now points along y: what was below the middle is now to the right of it.
    assert likeness(turned, np.rot90(frame)) > 0.99
    assert likeness(turned, frame) < 0.5
    assert instrument.acquire().geometry.rotation_rad == 0.0


def test_the_stage_goes_there_but_for_its_error_and_stays():
    instrument = StemInstrument(MOVABLE)
    before_nm = bright_spot_nm(instrument)
    whole_scan(instrument, stage_nm=(0.1, -0.05))
    whole_scan(instrument, stage_nm=(0.1, -0.05))
    after = instrument.acquire()
    truth = instrument.truth()
    path = instrument.last_path
    assert path is not None
    silicon = instrument.specimen.positions_nm[instrument.specimen.numbers == 14]
    nearest = silicon[np.argmin(np.linalg.norm(silicon - before_nm, axis=1))]
    row, col = np.rint(path.seen_px(nearest[None])[0]).astype(int)
    part = after.image[0, row - 8 : row + 9, col - 8 : col + 9]
    spot = np.clip(part - 0.5 * part.max(), 0, None)
    seen_nm = after.geometry.to_nm(np.array([centroid(spot)]) + (row - 8, col - 8))[0]

    assert after.stage_nm == (0.1, -0.05)
    np.testing.assert_array_equal(truth["stage_nm"], [[0.0, 0.0]] + [[0.1, -0.05]] * 3)
    error = truth["stage_error_nm"]
    assert (error[1] == error[3]).all()  # where it already stands it does not stir
    assert 0 < np.abs(error[1]).max() < 0.12
    np.testing.assert_allclose(seen_nm - before_nm, (0.1, -0.05) + error[1], atol=0.004)


def test_the_stage_goes_no_further_than_the_specimen_reaches():
    instrument = StemInstrument(MOVABLE)
    for x, y in ((1.3, 1.3), (-1.3, -1.3)):
        for rotation_rad in (0.0, math.pi / 2):
            image = whole_scan(instrument, stage_nm=(x, y), rotation_rad=rotation_rad)
            blocks = image.reshape(8, 16, 8, 16).mean(axis=(1, 3))
            assert blocks.min() > 15 + 100  # nowhere vacuum
    outcome, frame = instrument.execute(ask(stage_nm=(1.31, 0.0)))

    assert (outcome.status, frame) == ("failed", None)
    assert outcome.reason == "stage_nm takes -1.3 to 1.3; stem.stage_reach_nm sets how far"
    assert instrument.acquire().stage_nm == (-1.3, -1.3)


def test_a_parked_beam_is_off_by_what_the_coils_are_and_meets_the_atom_through_their_inverse():
    distortion = ScanDistortionConfig(coil_px=15.0, drift_rate_nm_per_s=(0.0, 0.0))
    instrument = StemInstrument(StemConfig(rows=64, cols=64, seed=4, distortion=distortion))
    instrument.acquire()
    path, truth = instrument.last_path, instrument.truth()
    assert path is not None
    assert path.coil_px is not None
    # Pixels of the raster, and where a beam that was sent there and waits really is.
    pixels = np.mgrid[0:64, 0:64].reshape(2, -1).T
    sent_nm = path.geometry.to_nm(pixels)
    really_nm = path.geometry.to_nm(pixels + path.coil_px.reshape(2, -1).T)
    silicon = truth["positions_nm"][truth["numbers"] == 14]
    apart = np.linalg.norm(silicon[:, None] - really_nm, axis=2)
    best = apart.min(axis=1)
    best[np.linalg.norm(silicon - sent_nm[apart.argmin(axis=1)], axis=1) < 0.4] = np.inf
    chosen = int(best.argmin())
    site_nm, aim_nm = silicon[chosen], sent_nm[apart[chosen].argmin()]

    def counts_of_edge(position: np.ndarray) -> float:
        outcome, _ = instrument.execute(
            ask(scan_position_nm=(float(position[0]), float(position[1])), dwell_time_us=1e5)
        )
        assert outcome.spectrum is not None
        return float(outcome.spectrum[96:120].sum())

    expected = float(truth["spectra"][np.flatnonzero(truth["numbers"] == 14)[chosen]][96:120].sum())
    assert best[chosen] < 0.04
    assert counts_of_edge(aim_nm) == pytest.approx(expected, rel=0.25)
    assert counts_of_edge(site_nm) < 0.6 * expected


def test_a_spectrum_is_taken_on_the_specimen_where_the_stage_has_taken_it():
    instrument = StemInstrument(msgspec.structs.replace(MOVABLE, stage_error_nm=0.3))
    whole_scan(instrument, stage_nm=(0.5, 0.3))
    truth = instrument.truth()
    far_nm = np.linalg.norm(truth["positions_nm"], axis=1)
    silicon = np.where(truth["numbers"] == 14, far_nm, np.inf).argmin()
    x, y = truth["positions_nm"][silicon] + (0.5, 0.3) + truth["stage_error_nm"][-1]
    outcome, _ = instrument.execute(ask(scan_position_nm=(float(x), float(y)), dwell_time_us=1e5))
    assert outcome.spectrum is not None

    expected = float(truth["spectra"][silicon][96:120].sum())
    assert float(outcome.spectrum[96:120].sum()) == pytest.approx(expected, rel=0.1)
    x, y = np.array((x, y)) - (0.5, 0.3) - truth["stage_error_nm"][-1]
    outcome, _ = instrument.execute(ask(scan_position_nm=(float(x), float(y)), dwell_time_us=1e5))
    assert outcome.spectrum is not None
    assert float(outcome.spectrum[96:120].sum()) < 0.6 * expected


@pytest.mark.parametrize("kind", ["inclusion", "wall"])
def test_strain_really_moves_what_is_seen(kind):
    specimen = SpecimenConfig(has_grain_boundary=False, strain_kind=kind, strain_nm=0.06)
    plain = StemInstrument(MOVABLE)
    strained = StemInstrument(msgspec.structs.replace(MOVABLE, specimen=specimen))
    before, after = plain.truth(), strained.truth()
    moved = after["strain_nm"]

    assert np.linalg.norm(moved, axis=1).max() == pytest.approx(0.06, rel=0.05)
    assert likeness(plain.acquire().image[0], strained.acquire().image[0]) < 0.9
    np.testing.assert_allclose(moved, specimen.displacement_nm(after["positions_nm"] - moved), atol=1e-9)
    assert not before["strain_nm"].any()


def faulty(*faults: FaultConfig) -> tuple[StemInstrument, list[np.ndarray]]:
    instrument = StemInstrument(msgspec.structs.replace(MOVABLE, stage_reach_nm=0.0, faults=faults))
    return instrument, [instrument.acquire().image[0] for _ in range(5)]


def test_a_blanked_beam_gives_nothing_but_the_offset_of_the_detector():
    _, images = faulty(FaultConfig(frame=1, kind="blank", frames=2))

    assert [image.std() > 0 for image in images] == [True, False, False, True, True]
    assert images[1].max() == images[1].min() == 10.0


def test_a_slip_moves_the_specimen_once_and_the_truth_says_so():
    instrument, images = faulty(FaultConfig(frame=2, kind="jump", step_nm=(30 * 3 / 128, 10 * 3 / 128)))
    drift = instrument.truth()["drift_nm"]

    np.testing.assert_allclose(drift, [[0, 0]] * 2 + [[30 * 3 / 128, 10 * 3 / 128]] * 3, atol=1e-12)
    assert likeness(images[1][:-10, :-30], images[2][10:, 30:]) > 0.99
    assert likeness(images[2], images[4]) > 0.99


def test_a_lost_lattice_is_lost_and_comes_back():
    _, images = faulty(FaultConfig(frame=1, kind="amorphous", frames=3))

    alike = [likeness(images[0], image) for image in images]
    assert [value > 0.99 for value in alike] == [True, False, False, False, True]
    assert abs(alike[2]) < 0.2
    assert images[2].mean() == pytest.approx(images[0].mean(), rel=0.2)


def test_another_magnification_stays_and_is_told():
    instrument = StemInstrument(
        msgspec.structs.replace(
            MOVABLE, stage_reach_nm=0.0, faults=(FaultConfig(frame=1, kind="magnify", factor=2.0),)
        )
    )
    frames = [instrument.acquire() for _ in range(3)]
    widths = [frame.geometry.field_of_view_nm[0] for frame in frames]
    middle = frames[1].image[0, 32:96, 32:96]

    assert widths == pytest.approx([3.0, 6.0, 6.0])
    assert middle.mean() == pytest.approx(frames[0].image.mean(), rel=0.1)
    assert frames[2].image[0].reshape(8, 16, 8, 16).mean(axis=(1, 3)).min() > 115  # nowhere vacuum


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kind": "fire"},
            "fault.kind is 'fire'; it takes blank, amorphous, jump, magnify, torn, tip or link",
        ),
        ({"frame": -1}, "fault.frame is -1; it takes 0 and above"),
        ({"frames": 0}, "fault.frames is 0; it takes 1 and above"),
        ({"step_nm": (math.nan, 0.0)}, "fault.step_nm is"),
        ({"factor": 0.0}, "fault.factor is 0.0; it takes 0.1 to 10"),
    ],
)
def test_a_fault_out_of_range_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        FaultConfig(**({"frame": 0, "kind": "blank"} | fields))


def test_the_parts_in_the_truth_add_up_to_the_displacement():
    distortion = ScanDistortionConfig(
        flyback_px=3.0, flyback_across=0.2, settle_px=1.0, coil_px=2.0, hum_px=0.3, row_jitter_across_px=0.1
    )
    instrument = StemInstrument(
        StemConfig(rows=65, cols=81, field_of_view_nm=2.0, seed=2, distortion=distortion)
    )
    instrument.acquire()
    path, truth = instrument.last_path, instrument.truth()
    assert path is not None
    nodes = np.linspace(0, 1, 17)
    at_row, at_col = np.rint(nodes * 64).astype(int), np.rint(nodes * 80).astype(int)
    geometry = instrument.config.geometry
    drift = geometry.to_px(truth["row_drift_nm"][0].astype(float)) - geometry.to_px(np.zeros((1, 2)))
    rows = truth["row_offset_px"][0] - drift.T
    parts = truth["coil_px"][0] + rows[:, at_row, None] + truth["column_offset_px"][0][:, None, at_col]

    np.testing.assert_allclose(parts, path.displacement_px()[:, at_row[:, None], at_col], atol=1e-5)


def test_frames_of_another_scan_path_say_so():
    serpentine = ScanDistortionConfig(scan_path="serpentine")
    frame = StemInstrument(msgspec.structs.replace(SMALL, distortion=serpentine)).acquire()

    assert frame.scan_path == "serpentine"
    assert StemInstrument(SMALL).acquire().scan_path == "raster"


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
        ({"dwell_time_us": 0.0}, "dwell_time_us takes 0.01 to 6e+07"),
        ({"dwell_time_us": float("nan")}, "dwell_time_us takes 0.01 to 6e+07"),
        ({"scan_position_nm": (float("inf"), 0.0)}, "scan_position_nm is not finite"),
        ({"stage_nm": (math.nan, 0.0)}, "the stage of this instrument does not move"),
        ({"rotation_rad": math.inf}, "rotation_rad is not finite"),
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
