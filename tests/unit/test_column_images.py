"""Images of columns: what is drawn is what the truth says."""

import numpy as np
import pytest
from scipy import ndimage

from simulators.column_images import KINDS, ColumnImageConfig, Kind, column_image, matched_snr

PLAIN = ColumnImageConfig(size_px=128, counts=(100.0, 300.0), snr=(60.0, 80.0), is_plain=True)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_image_and_another_one_another(kind: Kind) -> None:
    one, same, other = (column_image(rng(seed), kind=kind) for seed in (3, 3, 4))

    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.positions_px, same.positions_px)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_finite_and_their_columns_lie_on_them(kind: Kind) -> None:
    for seed in range(8):
        drawn = column_image(rng(seed), ColumnImageConfig(size_px=96), kind)

        assert drawn.image.shape == (96, 96)
        assert drawn.image.dtype == np.float32
        assert np.isfinite(drawn.image).all()
        assert np.all((drawn.positions_px >= -0.5) & (drawn.positions_px < 95.5))
        assert len(drawn.positions_px) == len(drawn.snr) == len(drawn.is_heavy)
        assert np.all(drawn.snr > 0)


def test_single_atoms_are_where_the_truth_says() -> None:
    errors = []
    for seed in range(6):
        drawn = column_image(rng(seed), PLAIN, "sparse")
        errors.append(_centroids(drawn.image, drawn.positions_px, drawn.sigma_px) - drawn.positions_px)

    error = np.concatenate(errors)
    assert len(error) > 20
    assert np.abs(np.median(error, axis=0)).max() < 0.05
    assert np.median(np.abs(error)) < 0.15


def test_resampling_from_coarser_pixels_leaves_columns_where_the_truth_says() -> None:
    # Lattices: all columns are bright and apart; the image is spoilt as any, but its columns can be seen.
    config = ColumnImageConfig(size_px=160, counts=(250.0, 300.0), sigma_px=(2.4, 2.4))
    errors = []
    for seed in range(40):
        drawn = column_image(rng(seed), config, "lattice")
        strong = drawn.snr > 30
        if strong.mean() > 0.8:
            place = drawn.positions_px[strong]
            errors.append(np.abs(np.median(_climbed(drawn.image, place) - place, axis=0)).max())

    # About half of them are resampled, so that half of the errors would show a mistake there.
    assert len(errors) > 8
    assert np.mean(np.array(errors) < 0.2) > 0.85


def test_an_empty_image_has_no_columns() -> None:
    assert len(column_image(rng(1), kind="empty").positions_px) == 0


def test_a_film_has_bright_grains_rather_than_dark_holes_and_is_mostly_even() -> None:
    bright_counts = ColumnImageConfig(size_px=160, sigma_px=(2.4, 2.4), counts=(250.0, 300.0))
    films = [column_image(rng(seed), bright_counts, "empty").image for seed in range(40)]
    skew, unevenness = [], []
    for film in films:
        grain = ndimage.gaussian_filter(film, 1.7) - ndimage.gaussian_filter(film, 3.0)
        grain = np.clip(grain, *np.quantile(grain, (0.005, 0.995)))
        skew.append((grain**3).mean() / (grain**2).mean() ** 1.5)
        thickness = ndimage.gaussian_filter(film, 12)
        unevenness.append(thickness.std() / thickness.mean())

    # Without the skew of the grain 0.02; 0.11 if each film had clouds and a slope.
    assert np.median(skew) > 0.05
    assert np.median(unevenness) < 0.07


def test_the_film_is_brighter_around_single_atoms() -> None:
    config = ColumnImageConfig(size_px=160, counts=(250.0, 300.0), snr=(30.0, 40.0), sigma_px=(2.0, 2.0))
    above = []
    for seed in range(40):
        drawn = column_image(rng(seed), config, "sparse")
        away = np.full(drawn.image.shape, True)
        away[tuple(np.rint(drawn.positions_px).astype(int).clip(0, 159).T)] = False
        distance = ndimage.distance_transform_edt(away)
        ring, far = drawn.image[(distance > 8) & (distance < 11)], drawn.image[distance > 40]
        if len(far) > 500:
            above.append((ring.mean() - far.mean()) / far.mean())

    assert len(above) > 15
    assert np.median(above) > 0.04


def test_single_atoms_count_as_heavy_and_the_bright_sites_of_a_lattice_too() -> None:
    atoms = column_image(rng(2), kind="sparse")
    shares = [
        column_image(rng(seed), ColumnImageConfig(size_px=96, is_plain=True), "lattice").is_heavy.mean()
        for seed in range(20)
    ]

    assert atoms.is_heavy.all()
    assert min(shares) < 0.05
    assert max(shares) > 0.3
    assert max(shares) < 0.9


def test_the_signal_to_noise_ratio_is_that_of_the_sum_over_pixels() -> None:
    place = np.arange(-20, 21)
    spot = 50 * np.exp(-(place[:, None] ** 2 + place**2) / (2 * 2.5**2))
    by_hand = np.sqrt((spot**2 / (4.0 + spot)).sum())

    ratio = matched_snr(np.array([50.0]), np.array([4.0]), 2.5)

    np.testing.assert_allclose(ratio, by_hand, rtol=1e-3)


def test_the_ratio_says_how_the_height_of_a_spot_scatters() -> None:
    # Heights fitted with the optimal weights to many draws of one spot in shot noise.
    place = np.arange(-12, 13)
    shape = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 2.0**2))
    expected = 10.0 + 20.0 * shape
    weight = shape / expected
    draws = rng(5).poisson(expected, (4000, 25, 25)) - 10.0
    heights = (draws * weight).sum((1, 2)) / (shape * weight).sum()

    ratio = float(matched_snr(np.array([20.0]), np.array([10.0]), 2.0)[0])

    assert heights.mean() / heights.std() == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size_px": 8}, "size_px is 8; it takes 32"),
        ({"sigma_px": (3.0, 2.0)}, "sigma_px is 3.0 to 2.0"),
        ({"shares": (1.0, 1.0, 0.0, 0.0)}, "four shares that add up to 1"),
    ],
)
def test_impossible_settings_are_refused_with_what_would_do(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ColumnImageConfig(**changes)  # type: ignore[arg-type]


def _centroids(image: np.ndarray, places: np.ndarray, sigma: float) -> np.ndarray:
    """Centres of mass above the surroundings in a Gaussian window, three times over."""
    ground = np.median(image)
    row, col = np.mgrid[: image.shape[0], : image.shape[1]]
    found = []
    for place in places:
        at = np.round(place)
        for _ in range(12):
            window = np.exp(-((row - at[0]) ** 2 + (col - at[1]) ** 2) / (2 * sigma**2)) * (image - ground)
            # A Gaussian spot under a window of its own width moves by half the way.
            at = at + 2 * (np.array([(window * row).sum(), (window * col).sum()]) / window.sum() - at)
        found.append(at)
    return np.array(found)


def _climbed(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Vertices of parabolas through the highest of the nine pixels around each place, after a light blur."""
    smooth = ndimage.gaussian_filter(image, 1.2)
    found = []
    for row, col in np.clip(np.round(places).astype(int), 3, image.shape[0] - 4):
        part = smooth[row - 1 : row + 2, col - 1 : col + 2]
        i, j = np.unravel_index(part.argmax(), (3, 3))
        y, x = row - 1 + i, col - 1 + j
        a, b, c = smooth[y - 1 : y + 2, x]
        d, e, f = smooth[y, x - 1 : x + 2]
        vertex = [0.5 * (a - c) / (a - 2 * b + c), 0.5 * (d - f) / (d - 2 * e + f)]
        found.append(np.array([y, x]) + np.clip(vertex, -1, 1))
    return np.array(found)
