"""The parts of the harmonic rVAE against answers known by hand, and what only this family promises."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from models.mixture import Mixture, fewest
from models.pose_calibration import calibrate_pose
from models.rvae import RVAE, RVAEConfig
from models.training import TrainingConfig, train
from tests.benchmarks import labelled_windows

SIZE = 16
NARROW: dict[str, Any] = {"filters": 8, "pooled": 12, "hidden": 16, "mixture": 4, "components": 30}


def spots(count: int, seed: int, channels: int = 1, size: int = SIZE) -> Tensor:
    """Windows of a few soft spots at random places."""
    rng = np.random.default_rng(seed)
    axis = np.arange(size) - (size - 1) / 2
    x, y = rng.uniform(-size / 3, size / 3, (2, count, channels, 4))
    across = np.exp(-0.5 * ((axis - x[..., None]) / 2.0) ** 2)
    down = np.exp(-0.5 * ((axis - y[..., None]) / 2.0) ** 2)
    return torch.from_numpy(np.einsum("nckh,nckw->nchw", down, across).astype(np.float32))


def model(channels: int = 1, size: int = SIZE, **fields: Any) -> RVAE:
    """Make a model that has seen windows, with random weights that say something."""
    random = torch.Generator().manual_seed(1)
    rvae = RVAE(channels, size, RVAEConfig(**(NARROW | fields)), generator=random)
    rvae.prepare(spots(200, 2, channels, size))
    with torch.no_grad():
        rvae.draw.weight.mul_(3.0)
        rvae.louder.weight.normal_(0.0, 0.1, generator=random)
        rvae.log_noise_P.normal_(-1.0, 0.3, generator=random)
    return rvae.eval()


def content(count: int, latent_dim: int = 2) -> Tensor:
    return torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(3))


# -- the likelihood --------------------------------------------------------------------------------------


def brute_force(rvae: RVAE, coefficient_D: Tensor, mean_Z: Tensor, turn: int) -> float:
    """Say the likelihood as that of a normal: covariance of noise and tangents, upright content turned."""
    d = rvae.upright(mean_Z[None])
    _, log_noise = rvae._upright_and_noise(mean_Z[None])
    angle = torch.tensor([2 * math.pi * turn / rvae.turns])
    rows = torch.cat([d, (d @ rvae.operator_TDD)[:, 0] + rvae.constant_TD])
    turned = rvae.turned(rows, angle.expand(len(rows)))[:, rvae.alive_D > 0].double()
    loaded = turned[1:] * rvae.amplitude_sd_T[:, None]
    covariance = torch.diag(torch.exp(2 * log_noise[0, rvae.alive_D > 0].double())) + loaded.T @ loaded
    normal = torch.distributions.MultivariateNormal(turned[0], covariance)
    return float(normal.log_prob(coefficient_D[rvae.alive_D > 0].double()))


@pytest.mark.parametrize("fields", [{}, {"shift": False}, {"rotation": False}, {"nuisances": ("gain",)}])
def test_the_likelihood_is_that_of_a_normal_with_tangents_integrated_out(fields: dict[str, Any]) -> None:
    rvae = model(**fields)
    with torch.no_grad():
        seen, mean_NZ = rvae.read(spots(3, 4)), content(3)
        found = rvae.pose(seen, mean_NZ).log_likelihood_NG
        for at in range(3):
            for turn in (0, 7, 41):
                expected = brute_force(rvae, seen[at], mean_NZ[at], turn % rvae.turns)
                assert float(found[at, turn % rvae.turns]) == pytest.approx(expected, abs=0.02)


def test_without_pose_and_nuisances_the_likelihood_is_that_of_the_noise_alone() -> None:
    rvae = model(rotation=False, shift=False, nuisances=())
    with torch.no_grad():
        seen, mean_NZ = rvae.read(spots(3, 4)), content(3)
        found = rvae.pose(seen, mean_NZ).log_likelihood_NG
        drawn, log_noise = rvae._upright_and_noise(mean_NZ)
        each = torch.distributions.Normal(drawn, log_noise.exp()).log_prob(seen)
    torch.testing.assert_close(found[:, 0], (each * rvae.alive_D).sum(1), atol=0.01, rtol=1e-4)


def test_a_turned_window_is_as_likely_as_the_upright_one() -> None:
    rvae, seen = model(), spots(5, 5)
    first, second = (
        rvae.terms_of(rvae.read(windows), torch.Generator().manual_seed(0))
        for windows in (seen, torch.rot90(seen, 1, (2, 3)))
    )
    torch.testing.assert_close(first.error_N, second.error_N, atol=0.02, rtol=1e-4)


def test_a_pose_that_was_put_in_comes_out() -> None:
    rvae = model(nuisances=())
    with torch.no_grad():
        mean_NZ = content(40)
        rvae.draw.bias.add_(torch.randn(60, generator=torch.Generator().manual_seed(6)) * rvae.spread_D)
        angle_N = torch.linspace(-3.0, 3.0, 40)
        shift_px = 0.3 * torch.randn(40, 2, generator=torch.Generator().manual_seed(7))
        # Shifted as upright content is, then turned: so the tangents have it.
        upright = rvae.shifted(rvae.upright(mean_NZ), shift_px)
        seen = rvae.turned(upright, angle_N)
        rvae.log_noise_P.fill_(-3.0)
        pose = rvae.pose(seen, mean_NZ)
        share = torch.softmax(pose.log_likelihood_NG, 1)
        found, _ = rvae._angle(pose, share, torch.ones(40, dtype=torch.long))
        shift_N2, _ = rvae._shift(pose, share)
    assert torch.cos(found - angle_N).min() > math.cos(0.02)
    cos, sin = torch.cos(angle_N), torch.sin(angle_N)
    expected = torch.stack(
        [cos * shift_px[:, 0] - sin * shift_px[:, 1], sin * shift_px[:, 0] + cos * shift_px[:, 1]], 1
    )
    assert (shift_N2 * (SIZE / 2) - expected).abs().max() < 0.12


def test_the_sd_of_the_angle_is_that_among_the_turns_that_look_different() -> None:
    rvae = model(shift=False)
    with torch.no_grad():
        threefold = (rvae.order_P % 3 == 0).float().repeat(2)
        for layer in (rvae.draw,):
            layer.weight.mul_(threefold[:, None])
            layer.bias.copy_(torch.randn(60, generator=torch.Generator().manual_seed(8)) * threefold)
        rvae.log_noise_P.fill_(-2.0)
        mean_NZ = content(4)
        assert rvae._symmetry(mean_NZ).tolist() == [3, 3, 3, 3]
        pose = rvae.pose(rvae.upright(mean_NZ), mean_NZ)
        share = torch.softmax(pose.log_likelihood_NG, 1)
        _, among = rvae._angle(pose, share, torch.full((4,), 3))
        _, of_all = rvae._angle(pose, share, torch.ones(4, dtype=torch.long))
    assert among.max() < 0.1
    assert of_all.min() > 1.0


# -- encoder and decoder ---------------------------------------------------------------------------------


def test_the_content_does_not_change_under_the_turns_of_the_encoder() -> None:
    rvae = model()
    with torch.no_grad():
        seen = rvae.read(spots(20, 9))
        first = rvae.content_of(seen)[0]
        for turn in range(1, rvae.orientations):
            turned = rvae.turned(seen, torch.full((20,), 2 * math.pi * turn / rvae.orientations))
            torch.testing.assert_close(rvae.content_of(turned)[0], first, atol=2e-5, rtol=1e-4)


def test_decoding_at_an_angle_is_turning_the_decoded_window() -> None:
    rvae = model()
    with torch.no_grad():
        mean_NZ = content(3)
        upright, turned = rvae.decode(mean_NZ), rvae.decode(mean_NZ, torch.full((3,), math.pi / 2))
    # From x (columns) towards y (rows, downwards) is clockwise on the screen; rot90 is anticlockwise.
    torch.testing.assert_close(turned, torch.rot90(upright, -1, (2, 3)), atol=1e-5, rtol=0)
    assert (turned - upright).abs().max() > 0.01


@pytest.mark.parametrize(("x_px", "y_px"), [(1.0, 0.0), (0.0, 1.0), (-1.0, 1.5)])
def test_shifting_coefficients_moves_the_content_along_x_then_y(x_px: float, y_px: float) -> None:
    rvae = model(size=24, components=90)
    rvae.center_C.zero_()

    def spot(x: float, y: float) -> Tensor:
        axis = torch.arange(24) - 11.5
        return torch.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / 8.0)[None, None]

    with torch.no_grad():
        still, expected = rvae.read(spot(0.5, -1.0)), rvae.read(spot(0.5 + x_px, -1.0 + y_px))
        moved = rvae.shifted(still, torch.tensor([[x_px, y_px]]))
    assert (moved - expected).norm() < 0.2 * (still - expected).norm()


def test_nuisances_are_named_and_a_background_stands_for_each_channel() -> None:
    assert model(2).nuisances == ("gain", "background", "background1", "scale", "defocus")
    assert model(nuisances=("defocus",)).nuisances == ("defocus",)
    assert model(nuisances=()).posterior(spots(3, 1)).nuisance_NV.shape == (3, 0)


def test_a_brighter_window_has_a_gain_and_a_lifted_one_a_background() -> None:
    rvae = model(nuisances=("gain", "background"), background_prior=1.0)
    with torch.no_grad():
        mean_NZ = content(30)
        seen, scale = rvae.decode(mean_NZ), float(rvae.scale_C)
        coefficients = [rvae.read(one) for one in (seen, 1.05 * seen, seen + 0.2 * scale)]
        told = [
            rvae._nuisances(pose, torch.softmax(pose.log_likelihood_NG, 1))[0].mean(0)
            for pose in (rvae.pose(one, mean_NZ) for one in coefficients)
        ]
    assert told[1] - told[0] == pytest.approx([0.05, 0.0], abs=0.02)
    assert told[2] - told[0] == pytest.approx([0.0, 0.2], abs=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_dim": 0}, "architecture.latent_dim is 0; it takes 1 to 64"),
        ({"turns": 4}, "architecture.turns is 4; it takes 8 to 1024"),
        ({"gain_prior": math.nan}, "architecture.gain_prior is nan"),
        ({"classes": 9, "mixture": 8}, "architecture.mixture is 8; it takes one for each of 9 classes"),
        ({"class_tie": -1.0}, "architecture.class_tie is -1.0; it takes 0 to 20"),
        ({"nuisances": ("tilt",)}, r"architecture.nuisances is \('tilt',\); it takes each of"),
        ({"nuisances": ("gain", "gain")}, "once"),
    ],
)
def test_an_architecture_out_of_range_says_what_it_takes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RVAEConfig(**fields)


def test_the_middle_of_a_picture_is_as_long_as_its_image_and_turns_with_no_change() -> None:
    rvae = model(nuisances=(), metric_focus=0.3)
    with torch.no_grad():
        seen = rvae.read(spots(8, 11))
        lengths = [
            sum((part @ rvae.metric_PP).square() for part in one.chunk(2, 1)).sum(1)
            for one in (seen, rvae.turned(seen, torch.full((8,), 0.7)))
        ]
        turns = [rvae.turned(seen, torch.full((8,), math.pi * turn / 20)) for turn in range(40)]
        flat = torch.stack([(rvae.picture(one) - rvae.center_C) / rvae.scale_C / rvae.unit for one in turns])
        axis = (2 * torch.arange(SIZE) + 1) / SIZE - 1
        bell = torch.exp(-0.5 * (axis**2 + axis[:, None] ** 2) / 0.3**2)
        expected = (flat.square() * bell).sum((2, 3, 4)).mean(0)
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lengths[0], expected, rtol=1e-3, atol=1e-3)


def test_stress_draws_latents_as_far_apart_as_the_middles_differ() -> None:
    torch.set_num_threads(1)
    part, test = drawn(600, 8), drawn(300, 9)
    ratio = []
    for stress in (0.0, 100.0):
        architecture = RVAEConfig(mixture=6, stress=stress)
        config = TrainingConfig(architecture=architecture, epochs=5, batch=20, restarts=1)
        mean = train(part.windows_NCHW, config)[0].posterior(torch.from_numpy(test.windows_NCHW)).mean_NZ
        middles = torch.stack([mean[torch.from_numpy(test.kind_N == kind)].mean(0) for kind in range(5)])
        apart = torch.cdist(middles, middles)
        heavy, others = apart[1, [0, 2, 3, 4]].min(), apart[[0, 0, 0, 2, 2, 3], [2, 3, 4, 3, 4, 4]].max()
        ratio.append(float(heavy / others))
    assert ratio[1] > 1.2  # what stands in the middle is what latents tell first
    assert ratio[1] > ratio[0]


# -- classes ---------------------------------------------------------------------------------------------


def clouds(count: int, seed: int) -> Tensor:
    """Three round clouds of points."""
    random = torch.Generator().manual_seed(seed)
    middles = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]])
    which = torch.randint(3, (count,), generator=random)
    return middles[which] + 0.4 * torch.randn(count, 2, generator=random)


@pytest.mark.parametrize("began", [5, 12])
def test_of_many_components_as_many_stay_as_there_are_clouds(began: int) -> None:
    random = torch.Generator().manual_seed(began)
    start = Mixture.of(torch.zeros(began), 2 * torch.randn(began, 2, generator=random), torch.zeros(began, 2))
    chosen = fewest(start, clouds(1500, 1), clouds(400, 2))
    assert len(chosen.weight_M) == 3
    np.testing.assert_allclose(chosen.weight_M, 1 / 3, atol=0.05)
    np.testing.assert_allclose(chosen.variance_MZ.sqrt(), 0.4, atol=0.05)


def test_one_cloud_is_one_component() -> None:
    random = torch.Generator().manual_seed(3)
    points = torch.randn(1000, 2, generator=random)
    start = Mixture.of(torch.zeros(6), torch.randn(6, 2, generator=random), torch.zeros(6, 2))
    assert len(fewest(start, points[:800], points[800:]).weight_M) == 1


def test_components_of_known_classes_are_fitted_to_their_own_points() -> None:
    random = torch.Generator().manual_seed(5)
    # The first class is two clouds; the second lies between them, where no one could guess its points.
    middle = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    which = torch.arange(900) % 3
    points = middle[which] + 0.3 * torch.randn(900, 2, generator=random)
    fitted = Mixture.of_classes(points, torch.where(which == 2, 1, 0), 2, 4)
    np.testing.assert_allclose(np.sort(fitted.mean_MZ[[0, 2], 0]), [-2.0, 2.0], atol=0.1)
    np.testing.assert_allclose(fitted.mean_MZ[[1, 3], 0], 0.0, atol=0.4)
    np.testing.assert_allclose(fitted.weight_M[[1, 3]].sum(), 1 / 3, atol=0.01)


def test_points_of_unknown_class_move_the_components_of_the_few_that_are_known() -> None:
    random = torch.Generator().manual_seed(6)
    which = torch.arange(600) % 2
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[which] + 0.2 * torch.randn(600, 2, generator=random)
    known = torch.where(torch.arange(600) < 6, which, -1)
    fitted = Mixture.of_some_classes(points, torch.full((600, 2), 0.05), known, 2, 2)
    np.testing.assert_allclose(fitted.mean_MZ, [[-1.0, 0.0], [1.0, 0.0]], atol=0.04)
    np.testing.assert_allclose(fitted.variance_MZ, 0.2**2 + 0.05, rtol=0.15)
    np.testing.assert_allclose(fitted.weight_M, 0.5, atol=0.01)


def drawn(count: int, seed: int, dose: float = 400.0) -> labelled_windows.Windows:
    return labelled_windows.windows(count, seed, dose=dose)


def test_a_few_labels_name_the_classes_of_the_rest() -> None:
    torch.set_num_threads(1)
    part, test = drawn(1000, 0), drawn(400, 1)
    known = np.random.default_rng(4).random(1000) < 0.05
    architecture = RVAEConfig(classes=len(labelled_windows.KINDS), mixture=8)
    config = TrainingConfig(architecture=architecture, epochs=8, batch=20, restarts=1)
    rvae, _ = train(part.windows_NCHW, config, label_N=np.where(known, part.kind_N, -1))
    told = rvae.posterior(torch.from_numpy(test.windows_NCHW))
    assert (told.class_probability_NK.argmax(1).numpy() == test.kind_N).mean() > 0.95
    # Fifty labels do more than name groups: without them the latents tell 0.95 of the kinds apart here.
    scores = labelled_windows.scored(told.mean_NZ.numpy(), told.angle_N.numpy(), test)
    assert scores["knn"] > 0.97


def test_two_channels_are_learnt_from_together() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(5)
    part, test = drawn(400, 6), drawn(200, 7)

    # What the first channel hardly shows, the second does, in another unit and the other way round.
    def both(shown: labelled_windows.Windows) -> np.ndarray[Any, np.dtype[np.float32]]:
        faint = shown.windows_NCHW + rng.normal(0.0, 0.5, shown.windows_NCHW.shape).astype(np.float32)
        return np.concatenate([faint, 30.0 - 20.0 * shown.windows_NCHW], 1)

    config = TrainingConfig(architecture=RVAEConfig(mixture=8), epochs=12, batch=20, restarts=1)
    rvae, _ = train(both(part), config)
    told = rvae.posterior(torch.from_numpy(both(test)))
    assert labelled_windows.scored(told.mean_NZ.numpy(), told.angle_N.numpy(), test)["knn"] > 0.8
    pictures = rvae.decode(told.mean_NZ, told.angle_N, told.shift_N2)
    assert pictures.shape == (200, 2, 24, 24)
    assert rvae.nuisances == ("gain", "background", "background1", "scale", "defocus")


def test_a_content_off_the_middle_of_its_class_costs_by_how_near_the_next_class_is() -> None:
    rvae = model(classes=3, mixture=3, class_tie=4.0, class_scatter=10.0)
    seen, labels = rvae.inputs(spots(4, 5)), torch.tensor([0, 1, 2, -1])
    with torch.no_grad():
        # Classes 0 and 1 are 2 apart, class 2 is 3 from the nearer one; each content 1 beside its own.
        middle_KZ = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        rvae.mixture_mean_MZ.copy_(middle_KZ)
        rvae.say.weight.zero_()
        rvae.say.bias.copy_(torch.tensor([0.0, 1.0, -1.0, -1.0]))
        scattered = rvae.terms_of(seen, torch.Generator().manual_seed(0), labels).extra_N
        rvae.config = msgspec.structs.replace(rvae.config, class_scatter=0.0)
        plain = rvae.terms_of(seen, torch.Generator().manual_seed(0), labels).extra_N
    expected = [10 * 1 / 4, 10 * 5 / 4, 10 * 4 / 9, 0.0]
    assert (scattered - plain).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_classes_are_drawn_together_only_where_they_have_components_of_their_own() -> None:
    with pytest.raises(ValueError, match="class_scatter takes classes with components of their own"):
        RVAEConfig(classes=3, class_scatter=10.0)


def test_classes_that_are_drawn_together_are_clouds_that_a_mixture_finds() -> None:
    torch.set_num_threads(1)
    part, test = drawn(700, 2), drawn(400, 3)
    kinds = len(labelled_windows.KINDS)
    architecture = RVAEConfig(classes=kinds, mixture=kinds, class_tie=4.0, class_scatter=300.0)
    config = TrainingConfig(architecture=architecture, epochs=8, batch=20, restarts=1)
    rvae, _ = train(part.windows_NCHW, config, label_N=part.kind_N)
    told = rvae.posterior(torch.from_numpy(test.windows_NCHW))
    scores = labelled_windows.scored(told.mean_NZ.numpy(), told.angle_N.numpy(), test)
    assert scores["ari"] > 0.95
    assert float((told.class_probability_NK.argmax(1).numpy() == test.kind_N).mean()) > 0.97


# -- the pose of real windows ----------------------------------------------------------------------------


def test_after_calibration_intervals_of_the_angle_cover_what_they_say() -> None:
    torch.set_num_threads(1)
    part, held, test = drawn(700, 2), drawn(700, 4), drawn(500, 3)
    config = TrainingConfig(architecture=RVAEConfig(mixture=8), epochs=8, batch=20, restarts=1)
    rvae, _ = train(part.windows_NCHW, config)
    assert isinstance(rvae, RVAE)
    calibrate_pose(rvae, held.windows_NCHW, held.kind_N, labelled_windows.FOLDS, held.angle_N)
    told = rvae.posterior(torch.from_numpy(test.windows_NCHW))
    error = np.zeros(500)
    for kind, fold in enumerate(labelled_windows.FOLDS):
        chosen = test.kind_N == kind
        away = np.exp(1j * fold * (told.angle_N.numpy() - test.angle_N)[chosen])
        error[chosen] = np.abs(np.angle(away / away.mean())) / fold
    in_sds = error / told.angle_sd_N.numpy()
    assert 0.6 < (in_sds < 1).mean() < 0.77
    assert (in_sds < 1.96).mean() > 0.9


def test_sds_that_say_nothing_of_the_errors_are_calibrated_to_one() -> None:
    rvae, windows = model(), spots(600, 1)
    said, rng = rvae.posterior(windows), np.random.default_rng(0)
    true_angle = said.angle_N.double().numpy() + rng.normal(0, 0.1, 600)
    assert float(said.angle_sd_N.log().std()) > 0.5
    calibrate_pose(rvae, windows.numpy(), np.zeros(600, np.int64), (1,), true_angle)
    sd_N = rvae.posterior(windows).angle_sd_N
    assert -1.0 <= float(rvae.sd_course_22[0, 0]) < -0.7
    assert float(sd_N.median()) == pytest.approx(0.1, rel=0.15)
    assert float(sd_N.log().std()) < 0.4 * float(said.angle_sd_N.log().std())


def test_calibration_without_known_poses_leaves_the_pose_as_it_is() -> None:
    rvae = model()
    rvae.correction_EH.fill_(3.0)
    rvae.sd_course_22.fill_(0.5)
    none = np.full(60, np.nan)
    calibrate_pose(rvae, spots(60, 1).numpy(), np.zeros(60, np.int64), (1,), none, np.stack([none, none], 1))
    assert not rvae.correction_EH.any()
    assert not rvae.sd_course_22.any()


def test_calibration_finds_where_contents_are_drawn_and_which_way_they_look() -> None:
    rvae, windows = model(), spots(600, 1)
    said = rvae.posterior(windows)
    angle, shift = said.angle_N.double().numpy(), said.shift_N2.double().numpy()
    half_px, away_px = rvae.window_px / 2, np.array([0.4, -0.1])
    # The truth of a model that draws its contents beside the middle, each turned by something else.
    cos, sin = np.cos(angle), np.sin(angle)
    away = np.stack([away_px[0] * cos - away_px[1] * sin, away_px[0] * sin + away_px[1] * cos], 1)
    with torch.no_grad():
        askew = 0.8 * rvae.hidden_of(said.mean_NZ)[:, 3].double().numpy()
    true_angle, true_shift = angle + askew, shift + away / half_px
    calibrate_pose(rvae, windows.numpy(), np.zeros(600, np.int64), (1,), true_angle, true_shift)
    told = rvae.posterior(windows)
    np.testing.assert_allclose(told.shift_N2, true_shift, atol=0.03 / half_px)
    turn = np.angle(np.exp(1j * (told.angle_N.numpy() - true_angle)))
    assert turn.std() < 0.3 * askew.std()
    assert float((told.shift_sd_N2 / said.shift_sd_N2).max()) < 0.5  # what was wrong is known, and gone


def test_what_is_decoded_in_its_own_pose_does_not_change_with_the_calibration() -> None:
    rvae, windows = model(), spots(40, 1)
    before = rvae.posterior(windows)
    with torch.no_grad():
        drawn = rvae.decode(before.mean_NZ, before.angle_N, before.shift_N2)
        upright = rvae.decode(before.mean_NZ)
        rvae.correction_EH[:3, -1] = torch.tensor([0.5, -0.3, 0.4])
        after = rvae.posterior(windows)
        again = rvae.decode(after.mean_NZ, after.angle_N, after.shift_N2)
        middled = rvae.decode(before.mean_NZ)  # now drawn in the middle, as that is said to be
    turned = torch.remainder(after.angle_N - before.angle_N, 2 * math.pi)
    torch.testing.assert_close(turned, torch.full((40,), 0.4), rtol=0, atol=1e-5)
    assert float((again - drawn).std()) < 0.02 * float(drawn.std())
    assert float((middled - upright).std()) > 0.1 * float(upright.std())
