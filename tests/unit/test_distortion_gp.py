import math

import numpy as np
import pytest
import torch

from models.distortion_gp import DistortionGP, Hyperparameters, Observations, ScanModel, _lasting
from models.distortion_learning import learn_hyperparameters
from models.scan_basis import ScanBasis
from tests.exact_distortion import exact_mean

SIZE = 256
SCAN = ScanModel(shape=(SIZE, SIZE), hum_period_rows=15.2)
# what a STEM's distortion is like, as learn_hyperparameters finds it
LEARNT = Hyperparameters(
    amplitude_px={
        **Hyperparameters().amplitude_px,
        "coil": (2.0, 2.0),
        "flyback": (0.1, 0.1),
        "settle": (0.1, 0.1),
        "flyback_relax": (0.3, 1.5),
        "settle_relax": (1.0, 0.3),
    },
    coil_length=1.5,
    warp_length=1.0,
)


def smooth_truth(places, *, frame=0, hum_px=0.3, period=15.2, drift_px=(0.05, -0.08)):
    """A distortion ``(n, 2)`` of other forms than the model's features: two decays, cubics, a wave."""
    row, col = places.T
    u_row, u_col = 2 * row / SIZE - 1, 2 * col / SIZE - 1
    square = u_row**2 + u_col**2
    flyback = 3 * (np.exp(-col / 22) + 0.25 * np.exp(-col / 90))
    settle = 1.2 * np.exp(-row / 28)
    hum = hum_px * np.sin(2 * np.pi * (frame * SIZE + row) / period + 1)
    time = frame + (row - SIZE / 2) / SIZE
    along_rows = 0.2 * flyback - settle + 0.3 * np.cos(3 * u_col) + 0.25 * u_row * square
    along_cols = -flyback + 0.35 * u_col * square + 0.5 * np.sin(2.1 * u_col + 1.3 * u_row)
    return np.stack(
        [along_rows + 0.4 * hum + drift_px[0] * time, along_cols + hum + drift_px[1] * time], axis=-1
    )


def places(rng, count, edge=3.0):
    return rng.uniform(edge, SIZE - 1 - edge, (count, 2))


def observations(rng, truth, count=600, noise_px=0.05, jitter_px=(0.0, 0.0), more=0.0):
    """Points of a displacement field with noise; rows share a jitter that is smooth over three rows."""
    seen = places(rng, count)
    displacement = truth(seen) + rng.normal(0, noise_px, (count, 2)) + more
    for axis, sd in enumerate(jitter_px):
        row = seen[:, 0]
        near = np.exp(-((row[:, None] - np.arange(SIZE)) ** 2) / 1.9**2)
        near /= near.sum(axis=1, keepdims=True)
        displacement[:, axis] += near @ rng.normal(0, sd, SIZE)
    return Observations(
        positions_px=seen, displacement_px=displacement, variance_px2=np.full((count, 2), noise_px**2)
    )


def raster(step=8):
    line = np.arange(0, SIZE, step, dtype=float)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def rms(error):
    return float(np.sqrt((error**2).sum(axis=-1).mean()))


def after(gp, rng, frames, **kwargs):
    """Let the GP see some frames of the truth; return what it is off by in the last one, and its sd."""
    for frame in range(gp.frames, gp.frames + frames):
        gp.predict()
        gp.observe(observations(rng, lambda seen, frame=frame: smooth_truth(seen, frame=frame), **kwargs))
    found, sd = gp.displacement_px(raster(), with_sd=True)
    return found - smooth_truth(raster(), frame=gp.frames - 1), sd


def test_one_frame_shows_the_distortion_to_a_fraction_of_the_noise():
    error, _ = after(DistortionGP(SCAN, LEARNT), np.random.default_rng(1), 1)

    assert rms(smooth_truth(raster())) > 1
    assert rms(error) < 0.05


def test_more_frames_show_it_better():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(3)
    first, _ = after(gp, rng, 1)

    last, _ = after(gp, rng, 9)

    assert rms(last) < 0.8 * rms(first)


@pytest.mark.parametrize("noise_px", [0.02, 0.06, 0.2])
@pytest.mark.parametrize("jitter_px", [(0.0, 0.0), (0.1, 0.25)])
def test_the_sd_covers_what_the_field_is_off_by(noise_px, jitter_px):
    covered = []
    for seed in (1, 3, 5):
        gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(seed)
        error, sd = after(gp, rng, 3, noise_px=noise_px, jitter_px=jitter_px)
        covered.append(np.mean(np.abs(error) < 1.96 * sd))

    assert 0.88 < np.mean(covered) < 0.998  # at 0.02 px the floor of what a column's fit knows is felt


def test_a_perfect_scan_is_left_as_it_is():
    gp, rng = DistortionGP(SCAN), np.random.default_rng(5)
    learnt = learn_hyperparameters(SCAN, [observations(rng, np.zeros_like, count=1000, noise_px=0.06)])
    gp = DistortionGP(SCAN, learnt)

    for _ in range(5):
        gp.predict()
        gp.observe(observations(rng, np.zeros_like, count=1000, noise_px=0.06))

    assert rms(gp.displacement_px(raster())) < 0.01


def test_the_mean_is_that_of_the_exact_gp():
    scan = ScanModel(shape=(SIZE, SIZE))
    hyper = Hyperparameters(timescale_frames=1e9, drift_change_px=1e-6, jitter_px=(0.0, 0.0))
    rng = np.random.default_rng(7)
    frames = [observations(rng, lambda seen: smooth_truth(seen, hum_px=0)) for _ in range(2)]
    gp = DistortionGP(scan, hyper)
    for index in range(len(frames)):
        gp.condition(frames[index])
    inside = places(rng, 500)

    exact = exact_mean(scan, hyper, frames, inside)

    assert rms(gp.displacement_px(inside) - exact) < 0.01
    assert rms(gp.displacement_px(inside)) > 1


def test_the_jitter_of_the_rows_is_estimated():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(9)

    after(gp, rng, 4, jitter_px=(0.0, 0.25), count=1000)

    seen_by_a_column = 0.25 / math.sqrt(math.sqrt(2 * math.pi) * 1.9)
    assert gp.jitter_px[0] < 0.02
    assert gp.jitter_px[1] == pytest.approx(seen_by_a_column, rel=0.2)


def test_the_jitter_of_rows_that_were_each_seen_once_is_not_taken_for_noise():
    gp = DistortionGP(ScanModel(shape=(256, 256), blocks=("drift",)))
    rng = np.random.default_rng(20)
    rows = np.stack([np.arange(256.0), np.full(256, 127.5)], axis=1)
    noise_px = np.where(np.arange(256) % 4 == 0, 0.5, 0.02)  # some rows hardly tell anything
    for _ in range(6):
        jitter = rng.normal(0, (0.1, 0.25), (256, 2))
        seen = jitter + noise_px[:, None] * rng.normal(size=(256, 2))
        variance = np.repeat(noise_px[:, None] ** 2, 2, axis=1)
        gp.predict()
        gp.observe(Observations(positions_px=rows, displacement_px=seen, variance_px2=variance))

    assert gp.jitter_px == pytest.approx((0.1, 0.25), rel=0.15)


def test_columns_that_lie_far_off_teach_nothing():
    rng = np.random.default_rng(11)
    seen = observations(rng, smooth_truth)
    off = seen.displacement_px.copy()
    off[::40] += 3.0
    wrong = Observations(positions_px=seen.positions_px, displacement_px=off, variance_px2=seen.variance_px2)
    gp = DistortionGP(SCAN, LEARNT)
    gp.predict()

    update = gp.observe(wrong)

    assert update.gated >= 15
    assert update.used + update.held_out + update.gated == 600
    assert rms(gp.displacement_px(raster()) - smooth_truth(raster())) < 0.06


def test_the_hum_is_followed_though_its_period_is_off_by_a_thousandth():
    scan = ScanModel(shape=(SIZE, SIZE), hum_period_rows=15.2 * 1.001)
    gp = DistortionGP(scan, LEARNT)

    error, _ = after(gp, np.random.default_rng(13), 12)

    assert gp.hum_period_rows == pytest.approx(15.2, rel=2e-4)
    assert rms(error) < 0.03


def test_the_hum_is_foreseen_though_time_passes_between_frames():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(15)

    def truth(seen, frame):
        return smooth_truth(seen, frame=frame * 1.037, drift_px=(0, 0))

    for frame in range(10):
        gp.predict()
        gp.observe(observations(rng, lambda seen, frame=frame: truth(seen, frame)))
    gp.predict()

    assert rms(gp.displacement_px(raster()) - truth(raster(), 10)) < 0.06


def test_drift_is_foreseen():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(17)
    after(gp, rng, 10)
    last = gp.translation_px

    gp.predict()

    assert np.subtract(gp.translation_px, last) == pytest.approx([0.05, -0.08], abs=0.02)
    error = gp.displacement_px(raster()) - smooth_truth(raster(), frame=10)
    assert rms(error) < 0.06


def inclusion(seen):
    """A misfit of 0.5 px, which is the specimen's own."""
    away = seen - np.array([0.45, 0.58]) * SIZE
    width = 0.11 * SIZE
    return 0.5 * math.exp(0.5) * away / width * np.exp(-(away**2).sum(-1, keepdims=True) / (2 * width**2))


def wall(seen):
    """A domain wall through the whole frame, sheared by 0.5 px."""
    normal = np.array([math.sin(0.6), math.cos(0.6)])
    along = (seen - SIZE / 2) @ normal / (0.05 * SIZE)
    return 0.5 * np.tanh(along)[:, None] * np.array([normal[1], -normal[0]])


def kept(strain, gp, rng, frames, truth):
    """Show a strained specimen; say what part of the strain is still in the corrected positions."""
    start = gp.frames
    for frame in range(start, start + frames):
        gp.predict()
        gp.observe(observations(rng, lambda seen, frame=frame: truth(seen, frame) - strain(seen)))
    left = truth(raster(), start + frames - 1) - gp.displacement_px(raster())
    # what a column seems to be displaced by, its mean left out
    seen = strain(raster()) - left
    seen, real = seen - seen.mean(axis=0), strain(raster()) - strain(raster()).mean(axis=0)
    return float((seen * real).sum() / (real**2).sum())


@pytest.mark.parametrize("strain", [inclusion, wall])
def test_a_frozen_gp_keeps_the_specimens_strain(strain):
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(19)
    after(gp, rng, 10)
    gp.freeze()

    part = kept(strain, gp, rng, 8, lambda seen, frame: smooth_truth(seen, frame=frame))

    assert 0.95 < part < 1.05


@pytest.mark.parametrize("strain", [inclusion, wall])
def test_a_free_gp_erases_it(strain):
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(19)
    after(gp, rng, 10)

    part = kept(strain, gp, rng, 8, lambda seen, frame: smooth_truth(seen, frame=frame))

    assert part < 0.6


@pytest.mark.parametrize("strain", [inclusion, wall])
def test_a_gp_of_drift_and_hum_alone_keeps_it(strain):
    scan = ScanModel(shape=(SIZE, SIZE), hum_period_rows=15.2, blocks=("hum", "drift"))
    gp, rng = DistortionGP(scan), np.random.default_rng(21)

    def truth(seen, frame):
        return smooth_truth(seen, frame=frame) - smooth_truth(seen, hum_px=0, drift_px=(0, 0))

    assert 0.95 < kept(strain, gp, rng, 10, truth) < 1.05


def test_the_shear_of_a_drift_is_told_from_that_of_the_specimen_by_its_motion():
    gp, rng = DistortionGP(ScanModel(shape=(SIZE, SIZE), blocks=("drift",))), np.random.default_rng(20)
    rate = np.array([0.2, -0.3])

    def drift(seen, frame):
        return rate * (frame + (seen[:, :1] - SIZE / 2) / SIZE)

    for frame in range(10):
        gp.predict()
        gp.observe(
            observations(rng, lambda at, frame=frame: drift(at, frame) + 0.4 * (at[:, :1] / SIZE - 0.5))
        )

    error = gp.displacement_px(raster()) - drift(raster(), 9)
    assert rms(error - error.mean(axis=0)) < 0.03


def test_freezing_leaves_the_static_part_alone():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(23)
    after(gp, rng, 3)
    gp.freeze()
    before = gp.static()

    after(gp, rng, 3, more=0.7)

    for old, new in zip(before, gp.static(), strict=True):
        assert np.array_equal(old, new)
    assert gp.displacement_px(raster(), with_sd=True)[1].min() > 0


def test_a_calibrated_gp_is_the_frozen_one():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(25)
    after(gp, rng, 6)

    again = DistortionGP.frozen(SCAN, LEARNT, *gp.static())
    error, _ = after(again, rng, 2)

    assert again.is_frozen
    # the drift of the six frames is no part of what is kept
    assert rms(error - error.mean(axis=0)) < 0.05


def test_restoring_goes_on_bit_for_bit():
    for frozen in (False, True):
        rng = np.random.default_rng(27)
        gp = DistortionGP(SCAN, LEARNT)
        after(gp, rng, 4)
        if frozen:
            gp.freeze()
        other = DistortionGP(SCAN, LEARNT)
        other.restore(*gp.state())
        for index in range(3):
            seen = observations(rng, lambda seen, index=index: smooth_truth(seen, frame=4 + index))
            for each in (gp, other):
                each.predict()
            assert gp.observe(seen) == other.observe(seen)

        (facts, arrays), (other_facts, other_arrays) = gp.state(), other.state()

        assert facts == other_facts
        assert all(np.array_equal(arrays[name], other_arrays[name]) for name in arrays)
        assert np.array_equal(gp.field(), other.field())


def test_the_state_does_not_grow():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(29)
    after(gp, rng, 1)
    sizes = {name: array.nbytes for name, array in gp.state()[1].items()}

    after(gp, rng, 20, count=200)

    assert {name: array.nbytes for name, array in gp.state()[1].items()} == sizes


def test_a_state_of_another_model_is_refused():
    gp, other = DistortionGP(SCAN), DistortionGP(ScanModel(shape=(SIZE, SIZE)))

    with pytest.raises(ValueError, match="another scan model"):
        other.restore(*gp.state())


def test_float32_agrees_with_float64():
    fields = []
    for dtype in (torch.float64, torch.float32):
        gp = DistortionGP(SCAN, LEARNT, dtype=dtype)
        after(gp, np.random.default_rng(31), 5, jitter_px=(0.1, 0.25))
        fields.append(gp.field())

    assert np.abs(fields[0] - fields[1]).max() < 0.005


def test_the_parts_add_up_to_the_field():
    gp = DistortionGP(SCAN, LEARNT)
    after(gp, np.random.default_rng(33), 2)
    parts = gp.parts(step_px=1)
    whole = parts.grid_px + parts.rows_px[:, :, None] + parts.cols_px[:, None]
    whole += np.array(parts.translation_px)[:, None, None]

    assert np.abs(whole - gp.field()).max() < 1e-4
    at = raster()
    row, col = at.astype(int).T
    assert np.abs(gp.field()[:, row, col].T - gp.displacement_px(at)).max() < 1e-5
    assert gp.parts().grid_px.shape == (2, 17, 17)
    assert gp.sd_grid(16).shape == (2, 17, 17)


def test_the_inverse_finds_the_pixel_that_was_recorded_at_a_place():
    gp = DistortionGP(SCAN, LEARNT)
    after(gp, np.random.default_rng(35), 2)
    true = raster() + gp.displacement_px(raster())

    assert np.abs(gp.to_raw_px(true) - raster()).max() < 2e-3


def test_what_the_data_said_is_kept_under_other_hyperparameters():
    still = Hyperparameters(amplitude_px=LEARNT.amplitude_px, timescale_frames=1e9, drift_change_px=1e-6)
    other = Hyperparameters(timescale_frames=1e9, drift_change_px=1e-6)
    scan = ScanModel(shape=(SIZE, SIZE))
    gp, fresh = DistortionGP(scan, still), DistortionGP(scan, other)
    rng = np.random.default_rng(37)
    seen = [observations(rng, lambda at: smooth_truth(at, hum_px=0)) for _ in range(2)]
    for frame in seen:
        gp.condition(frame)
        fresh.condition(frame)

    swapped = gp.with_hyperparameters(other)

    inside = places(rng, 300)
    assert rms(swapped.displacement_px(inside) - fresh.displacement_px(inside)) < 0.003
    assert rms(gp.displacement_px(inside) - fresh.displacement_px(inside)) > 0.003
    assert gp.hyperparameters is still


def test_the_evidence_falls_when_the_distortion_is_another():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(39)
    after(gp, rng, 5)
    gp.predict()
    usual = gp.observe(observations(rng, lambda seen: smooth_truth(seen, frame=5))).log_evidence
    gp.predict()

    other = gp.observe(observations(rng, lambda seen: smooth_truth(seen, frame=6) + inclusion(seen)))

    assert other.gated > 20
    assert other.log_evidence < usual - 0.2


def test_learning_raises_the_evidence():
    rng = np.random.default_rng(41)
    seen = observations(rng, smooth_truth)
    learnt = learn_hyperparameters(SCAN, [seen])
    evidence = []
    for hyper in (Hyperparameters(), learnt):
        gp = DistortionGP(SCAN, hyper)
        gp.predict()
        evidence.append(gp.observe(observations(rng, smooth_truth)).log_evidence)

    assert evidence[1] > evidence[0] + 0.05
    assert learnt.amplitude_px["hum"] == pytest.approx((0.085, 0.21), rel=0.3)


def test_several_frames_say_how_lasting_the_distortion_is():
    found = []
    for period in (4, 4000):
        rng = np.random.default_rng(57)
        frames = [
            observations(
                rng,
                lambda at, frame=frame, period=period: (
                    smooth_truth(at, frame=frame, drift_px=(0, 0)) * np.cos(2 * np.pi * frame / period)
                ),
                count=400,
            )
            for frame in range(8)
        ]
        found.append(learn_hyperparameters(SCAN, frames, LEARNT).timescale_frames)

    assert found[1] >= 3 * found[0]


def test_a_slow_and_large_settling_is_within_reach():
    rng = np.random.default_rng(43)

    def truth(seen):
        row, col = seen.T
        return np.stack([-6 * np.exp(-row / 120), 5 * np.exp(-col / 60) + 0 * row], axis=-1)

    seen = [observations(rng, truth, noise_px=0.08) for _ in range(2)]
    gp = DistortionGP(SCAN, learn_hyperparameters(SCAN, seen))
    for frame in seen:
        gp.predict()
        gp.observe(frame)

    assert rms(gp.displacement_px(raster()) - truth(raster())) < 0.08


def test_a_serpentine_scan_has_its_backlash_on_odd_lines():
    scan = ScanModel(shape=(SIZE, SIZE), path="serpentine")
    rng = np.random.default_rng(45)

    def truth(seen):
        row, col = seen.T
        odd = np.rint(row) % 2 == 1
        since = np.where(odd, SIZE - 1 - col, col)
        sign = np.where(odd, -1, 1)
        return np.stack([0.3 * np.exp(-since / 30), sign * (0.6 + 0.8 * np.exp(-since / 15))], axis=-1)

    gp = DistortionGP(scan)
    for _ in range(3):
        gp.predict()
        gp.observe(observations(rng, truth))

    at = np.rint(places(rng, 500))
    assert rms(gp.displacement_px(at) - truth(at)) < 0.06
    parts = gp.parts()
    assert parts.odd_cols_px is not None
    assert (parts.cols_px - parts.odd_cols_px)[1].mean() == pytest.approx(1.2, abs=0.25)
    row, col = at.astype(int).T
    assert np.abs(gp.field()[:, row, col].T - gp.displacement_px(at)).max() < 1e-5


def test_a_resonant_axis_has_a_lag_and_no_fly_back():
    scan = ScanModel(shape=(SIZE, SIZE), path="sinusoidal")
    rng = np.random.default_rng(47)

    def truth(seen):
        row, col = seen.T
        u = (2 * col + 1) / SIZE - 1
        return np.stack([0 * row, 1.5 * np.sqrt(1 - u**2)], axis=-1)

    gp = DistortionGP(scan)
    gp.predict()
    gp.observe(observations(rng, truth))

    assert "flyback" not in gp.basis.blocks
    assert rms(gp.displacement_px(raster()) - truth(raster())) < 0.06


def test_a_jump_of_the_stage_costs_one_frame():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(49)
    after(gp, rng, 6)
    gp.freeze()
    after(gp, rng, 2)
    gp.jumped()
    gp.predict()

    update = gp.observe(observations(rng, lambda seen: smooth_truth(seen, frame=8), more=1.5))

    assert update.gated < 20
    error = gp.displacement_px(raster()) - smooth_truth(raster(), frame=8) - 1.5
    assert rms(error) < 0.06


def test_a_frame_without_observations_changes_nothing():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(51)
    after(gp, rng, 2)
    gp.predict()
    before = gp.field()
    nothing = np.empty((0, 2))

    update = gp.observe(Observations(positions_px=nothing, displacement_px=nothing, variance_px2=nothing))

    assert (update.used, update.held_out, update.gated) == (0, 0, 0)
    assert math.isnan(update.held_out_rms_px)
    assert np.allclose(gp.field(), before, atol=1e-6)


def test_a_noise_that_is_said_too_small_is_found_out():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(53)
    for frame in range(30):
        seen = observations(rng, lambda at, frame=frame: smooth_truth(at, frame=frame), noise_px=0.1)
        gp.predict()
        update = gp.observe(
            Observations(
                positions_px=seen.positions_px,
                displacement_px=seen.displacement_px,
                variance_px2=seen.variance_px2 / 2,
            )
        )

    assert update.noise_factor == pytest.approx((2, 2), rel=0.2)
    assert update.held_out_rms_px < 0.05


def test_a_field_that_the_model_cannot_hold_shows_in_what_is_left():
    gp, rng = DistortionGP(SCAN, LEARNT), np.random.default_rng(54)

    def rippled(seen, frame):
        return smooth_truth(seen, frame=frame) + 0.3 * np.sin(2 * np.pi * seen[:, 1:] / 40)

    for frame in range(20):
        gp.predict()
        update = gp.observe(observations(rng, lambda seen, frame=frame: rippled(seen, frame), noise_px=0.1))

    off = gp.displacement_px(raster()) - rippled(raster(), 19)
    assert rms(off) > 0.25
    assert update.held_out_rms_px == pytest.approx(rms(off) / math.sqrt(2), rel=0.2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": (8, 8)}, "scan.shape"),
        ({"path": "spiral"}, "scan.path"),
        ({"hum_period_rows": 1.0}, "scan.hum_period_rows"),
        ({"blocks": ("affine",)}, "leaves drift out"),
        ({"blocks": ("drift", "tilt")}, "scan.blocks"),
    ],
)
def test_a_wrong_scan_model_is_refused_by_name(change, says):
    with pytest.raises(ValueError, match=says):
        ScanModel(**{"shape": (64, 64), **change})


def test_wrong_observations_are_refused_by_name():
    good = np.zeros((5, 2))
    with pytest.raises(ValueError, match="displacement_px has shape"):
        Observations(positions_px=good, displacement_px=good[:3], variance_px2=good)
    with pytest.raises(ValueError, match="variance_px2 holds numbers below 0"):
        Observations(positions_px=good, displacement_px=good, variance_px2=good - 1)
    with pytest.raises(ValueError, match="positions_px holds NaN"):
        Observations(positions_px=good * np.nan, displacement_px=good, variance_px2=good)


def test_predict_goes_forward_only():
    with pytest.raises(ValueError, match="above 0"):
        DistortionGP(SCAN).predict(0)


def test_learning_needs_a_frame():
    with pytest.raises(ValueError, match="no frame"):
        learn_hyperparameters(SCAN, [])


def test_the_field_is_the_features_times_the_weights():
    for path in ("raster", "serpentine", "sinusoidal"):
        basis = ScanBasis(ScanModel(shape=(64, 96), path=path, hum_period_rows=7.0))
        rng = np.random.default_rng(55)
        at = torch.from_numpy(rng.uniform(0, 60, (50, 2)))
        weights = torch.from_numpy(rng.normal(size=(2, basis.size)))

        assert torch.allclose(basis.field(at, weights), basis.features(at) @ weights.T)


def test_what_lasts_has_the_same_digits_wherever_its_arrays_lie_in_memory():
    line = torch.exp(-torch.arange(512, dtype=torch.float64) / 12) * torch.tensor([[0.3], [0.9]])
    nodes = torch.linspace(0, 511, 33, dtype=torch.float64)
    said = set()
    for start in range(64):
        room = torch.zeros(1024 + 64, dtype=torch.float64)
        elsewhere = room[start : start + 1024].view(2, 512)
        elsewhere[:] = line
        in_the_way = torch.zeros(1000 + 8 * start, dtype=torch.uint8)
        said.add(b"".join(part.numpy().tobytes() for part in _lasting(elsewhere, nodes)))
        del in_the_way
    assert len(said) == 1
