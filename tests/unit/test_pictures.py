"""The pictures of the documentation come out of the repository, each with something in it."""

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from simulators.pictures import PICTURES, draw

ROOT = Path(__file__).parents[2]


def test_every_picture_of_the_page_is_made_here_and_shown_there():
    page = (ROOT / "docs" / "simulators.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(images/simulators/(\w+)\.png\)", page)
    assert sorted(shown) == sorted(PICTURES)
    kept = {path.stem for path in (ROOT / "docs" / "images" / "simulators").glob("*.png")}
    assert kept == set(PICTURES)


@pytest.mark.parametrize("name", ["stem", "eels", "afm", "diffraction", "kinetics", "structures", "pfm"])
def test_a_picture_shows_something(name, tmp_path):
    (path,) = draw(tmp_path, name)
    drawn = matplotlib.image.imread(path)[..., :3]
    assert path.name == f"{name}.png"
    assert min(drawn.shape[:2]) > 200
    assert len(np.unique((drawn.mean(axis=-1) * 255).round())) > 100
