"""Which atoms are looked at first."""

import numpy as np

from agents.first_look import unseen_kind


def usual_atoms(n=400, d=3, seed=0):
    return np.random.default_rng(seed).normal(0, 0.2, (n, d))


def test_the_first_look_is_at_a_usual_atom():
    index, reason = unseen_kind(np.array([[5.0, 0.0], [0.1, 0.0], [-1.0, 0.0]]), np.zeros((0, 2)))
    assert (index, reason) == (1, "a usual site")


def test_a_group_nobody_looked_at_comes_before_single_freaks():
    rng = np.random.default_rng(1)
    group = np.array([3.0, 0.0, 0.0]) + rng.normal(0, 0.2, (6, 3))
    freaks = rng.normal(0, 6.0, (10, 3))
    offered = np.concatenate([usual_atoms(), freaks, group])
    index, reason = unseen_kind(offered, np.zeros((1, 3)))
    assert index >= 410
    assert reason == "a kind not yet measured"


def test_every_other_look_is_at_the_atom_least_like_all_seen():
    offered = np.concatenate([usual_atoms(), [[0.0, 9.0, 0.0], [4.0, 0.0, 0.0]]])
    index, reason = unseen_kind(offered, np.zeros((2, 3)))
    assert (index, reason) == (400, "unlike what was measured")


def test_where_everything_was_seen_the_farthest_atom_is_left():
    offered = np.array([[0.0, 0.0], [0.0, 0.0], [0.1, 0.0], [0.0, 0.0]])
    assert unseen_kind(offered, np.zeros((1, 2)))[0] == 2
    assert unseen_kind(np.array([[1.0, 1.0]]), np.zeros((1, 2)))[0] == 0


def test_equals_go_to_the_lowest_index():
    offered = np.array([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, 0.0]])
    assert unseen_kind(offered, np.zeros((2, 2)))[0] == 0


def test_a_crowd_of_candidates_is_thinned_and_still_answered():
    group = np.tile([[8.0, 0.0, 0.0]], (3000, 1))
    index, _ = unseen_kind(np.concatenate([usual_atoms(9000), group]), np.zeros((1, 3)))
    assert index >= 9000
