"""The policy that goes where the specimen is strained, on maps whose strain is known."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from agents.config import AgentConfig, StrainConfig
from agents.policies import make_agent
from agents.site_agent import SiteAgent
from agents.strain import KnownStrain, amount_of
from streamer.messages import Latents, Outcome, Registration, ScanGeometry, StrainMap

NODES = ScanGeometry(shape=(5, 7), field_of_view_nm=(1.4, 1.0), center_nm=(0.1, -0.05), rotation_rad=0.3)


def strain_map(strain: np.ndarray, sd: np.ndarray | float = 1e-3, revision: int = 0) -> StrainMap:
    shape = strain.shape[1:]
    return StrainMap(
        session="s",
        number=0,
        acquired_at_s=0.0,
        geometry=msgspec.structs.replace(NODES, shape=shape),
        displacement_nm=np.zeros((2, *shape), np.float32),
        strain=strain.astype(np.float32),
        rotation_rad=np.zeros(shape, np.float32),
        strain_sd=np.broadcast_to(np.float32(sd), strain.shape).astype(np.float32),
        rotation_sd_rad=np.zeros(shape, np.float32),
        frames=4,
        registration_revision=revision,
    )


def at_nodes(make_latents: Callable[..., Latents], **fields: Any) -> Latents:
    """An atom at each node; its track is the node's place in reading order."""
    rows, cols = NODES.shape
    nodes = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), -1).reshape(-1, 2)
    places = NODES.to_nm(nodes).astype(np.float32)
    return make_latents(n=len(nodes), positions_nm=places, positions_px=nodes.astype(np.float32), **fields)


def agent(policy: str = "strain", **strain: Any) -> SiteAgent:
    config = AgentConfig(policy=policy, max_pending=64, max_per_frame=0, strain=StrainConfig(**strain))
    return make_agent(config)


def random_strain(seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.01, (3, *NODES.shape))


def test_the_amount_of_a_tensor_is_that_of_its_eigenvalues():
    strain = np.random.default_rng(1).normal(0, 0.02, (3, 40))
    shear, _ = amount_of(strain, np.zeros((3, 40)), "shear")
    principal, _ = amount_of(strain, np.zeros((3, 40)), "principal")
    for index, (xx, yy, xy) in enumerate(strain.T):
        low, high = np.linalg.eigvalsh([[xx, xy], [xy, yy]])
        assert shear[index] == pytest.approx((high - low) / 2)
        assert principal[index] == pytest.approx(max(abs(low), abs(high)))


@pytest.mark.parametrize("measure", ["shear", "principal"])
def test_the_sd_of_the_amount_is_that_of_tensors_drawn_around_the_map(measure):
    strain, sd = np.array([0.03, -0.01, 0.008]), np.array([4e-4, 1e-3, 7e-4])
    drawn = strain[:, None] + sd[:, None] * np.random.default_rng(2).normal(size=(3, 40_000))
    spread = amount_of(drawn, np.zeros_like(drawn), measure)[0].std()
    assert amount_of(strain[:, None], sd[:, None], measure)[1][0] == pytest.approx(spread, rel=0.02)


def test_where_there_is_no_shear_its_sd_is_still_a_number():
    amount, sd = amount_of(np.zeros((3, 1)), np.full((3, 1), 1e-3), "shear")
    assert amount[0] == 0
    assert 0.7e-3 < sd[0] < 1e-3


def test_between_nodes_the_tensor_is_interpolated_along_the_turned_raster():
    row, col = np.meshgrid(np.arange(5), np.arange(7), indexing="ij")
    linear = np.stack([0.01 * row, -0.01 * row, 0.002 * col])
    place = NODES.to_nm(np.array([[1.25, 4.5]]))
    amount, _ = KnownStrain.of(strain_map(linear)).at(place, "shear")
    assert amount[0] == pytest.approx(math.hypot(0.0125, 0.009), rel=1e-5)


def test_opposite_shears_have_none_between_them():
    shear = np.zeros((3, *NODES.shape))
    shear[2, 2, 3], shear[2, 2, 4] = 0.02, -0.02
    amount, _ = KnownStrain.of(strain_map(shear)).at(NODES.to_nm(np.array([[2.0, 3.5]])), "shear")
    assert amount[0] == pytest.approx(0.0, abs=1e-9)


def test_beside_a_hole_the_nodes_that_have_a_value_speak_and_beyond_the_middle_none_does():
    strain = np.full((3, *NODES.shape), 0.01)
    strain[:, 3:] = np.nan
    places = NODES.to_nm(np.array([[2.0, 1.0], [2.4, 1.3], [2.6, 1.3], [3.0, 1.0]]))
    amount, sd = KnownStrain.of(strain_map(strain)).at(places, "shear")
    np.testing.assert_allclose(amount, [0.01, 0.01, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(np.isfinite(sd), np.isfinite(amount))


def test_the_rim_of_the_frame_takes_the_edge_of_the_map_and_what_is_far_has_no_value():
    strain = random_strain()
    places = NODES.to_nm(np.array([[4.9, 3.0], [4.0, 3.0], [5.1, 3.0], [-0.5, -0.5], [2.0, 40.0]]))
    amount, sd = KnownStrain.of(strain_map(strain)).at(places, "shear")
    assert amount[0] == pytest.approx(amount[1], rel=1e-6)
    np.testing.assert_array_equal(np.isfinite(amount), [True, True, False, True, False])
    np.testing.assert_array_equal(np.isfinite(sd), np.isfinite(amount))


def test_sites_are_taken_from_the_most_strained_on(make_latents):
    one, strain = agent(sd_weight=0.0), random_strain()
    one.tell(at_nodes(make_latents))
    one.tell(strain_map(strain))
    amount, _ = amount_of(strain.reshape(3, -1), np.zeros((3, 35)), "shear")
    taken = [one.ask() for _ in range(35)]
    assert [suggestion.track for suggestion in taken] == list(np.argsort(-amount))
    assert taken[0].acquisition == pytest.approx(amount.max(), rel=1e-5)
    _, sd = amount_of(strain.reshape(3, -1), np.full((3, 35), 1e-3), "shear")
    assert taken[0].reason == f"shear strain {100 * amount.max():.2f} ± {100 * sd[amount.argmax()]:.2f} %"
    assert math.isnan(taken[0].predicted_mean)  # of the spectrum a map says nothing


def test_a_site_that_is_less_strained_but_less_known_is_taken_when_that_counts(make_latents):
    strain, sd = np.full((3, *NODES.shape), 0.001), np.full((3, *NODES.shape), 1e-3)
    strain[2, 1, 1], sd[2, 3, 5] = 0.02, 0.015
    for weight, node in ((0.0, 1 * 7 + 1), (3.0, 3 * 7 + 5)):
        one = agent(sd_weight=weight)
        one.tell(at_nodes(make_latents))
        one.tell(strain_map(strain, sd))
        assert one.ask().track == node


def test_a_dilation_counts_where_the_principal_strain_is_asked_for(make_latents):
    strain = np.zeros((3, *NODES.shape))
    strain[:2, 0, 2] = -0.03  # squeezed alike along both axes
    strain[2, 4, 4] = 0.02
    for measure, node in (("shear", 4 * 7 + 4), ("principal", 2)):
        one = agent(measure=measure)
        one.tell(at_nodes(make_latents))
        one.tell(strain_map(strain))
        assert one.ask().track == node


def test_sites_without_a_value_come_last(make_latents):
    strain = random_strain()
    strain[:, 2:, :] = np.nan
    one = agent()
    one.tell(at_nodes(make_latents))
    one.tell(strain_map(strain))
    taken = [one.ask() for _ in range(35)]
    is_known = ["strain map" not in suggestion.reason for suggestion in taken]
    assert is_known == [True] * 14 + [False] * 21
    assert {suggestion.track for suggestion in taken[:14]} == set(range(14))
    assert {suggestion.track for suggestion in taken} == set(range(35))
    assert taken[-1].reason == "no free site on the strain map; next in reading order"


def test_before_a_map_came_it_goes_the_way_of_the_raster_and_says_so(make_latents):
    one, raster = agent(), agent("raster")
    for each in (one, raster):
        each.tell(at_nodes(make_latents))
    for _ in range(5):
        suggestion, other = one.ask(), raster.ask()
        assert suggestion.track == other.track
        assert suggestion.reason == "no strain map yet; next in reading order"


def test_a_map_of_another_registration_is_not_used(make_latents):
    one = agent()
    one.tell(strain_map(random_strain(), revision=1))
    one.tell(at_nodes(make_latents))
    assert one.ask().reason.startswith("no strain map of this registration; ")
    one.tell(at_nodes(make_latents, number=1, registration=Registration(revision=1)))
    assert one.ask().reason.startswith("shear strain ")


def test_the_newest_map_counts_and_comes_through_a_checkpoint(make_latents):
    first, second = random_strain(1), random_strain(2)
    one = agent()
    for strain in (first, second):
        one.tell(strain_map(strain))
    other = agent()
    other.restore(*one.checkpoint())
    amount, _ = amount_of(second.reshape(3, -1), np.zeros((3, 35)), "shear")
    for each in (one, other):
        each.tell(at_nodes(make_latents))
        assert each.ask().track == amount.argmax()


def test_a_measured_site_is_not_taken_again(make_latents):
    one = agent()
    one.tell(strain_map(random_strain()))
    tracks = []
    for number in range(6):
        one.tell(at_nodes(make_latents, number=number))
        suggestion = one.ask()
        tracks.append(suggestion.track)
        place = suggestion.position_nm
        answer = Outcome(
            session="s", id=suggestion.id, status="ok", scan_position_nm=place, position_nm=place
        )
        one.tell(answer)
    assert len(set(tracks)) == 6


def test_a_map_of_one_row_of_nodes_is_read_too():
    known = KnownStrain.of(strain_map(np.full((3, 1, 4), 0.01)))
    geometry = known.geometry
    amount, _ = known.at(geometry.to_nm(np.array([[0.0, 1.5]])), "shear")
    assert amount[0] == pytest.approx(0.01)


def test_a_weight_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"agent\.strain\.sd_weight is -1; it takes 0 to 1000"):
        StrainConfig(sd_weight=-1)
