"""Whether columns are dark is read from the name of a channel, whatever else it says."""

from __future__ import annotations

import pytest

from streamer.channel_names import shows_dark_columns


@pytest.mark.parametrize("name", ["ABF", "BF", "abf", "004_ABF_movie_21", "bf-stem", "STEM BF", "ABF1"])
def test_bright_field_shows_dark_columns(name: str) -> None:
    assert shows_dark_columns(name)


@pytest.mark.parametrize("name", ["HAADF", "ADF", "DF4", "", "iDPC", "BFP", "subfield", "Nb_film"])
def test_other_channels_show_bright_ones(name: str) -> None:
    assert not shows_dark_columns(name)
