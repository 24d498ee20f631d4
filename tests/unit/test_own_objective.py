"""An objective in a file of one's own: what it is given, what may go wrong, and what its noise comes to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.config import AgentConfig
from agents.objective import Objective, ObjectiveConfig, UnreadableSpectrum
from agents.policies import make_agent
from tests.contract.test_agents import latents, outcome

AXIS_EV = np.arange(256.0)
SUM = "def value(spectrum, axis):\n    return spectrum[(axis >= 99) & (axis < 120)].sum()\n"


def own(folder: Path, text: str, **config: Any) -> ObjectiveConfig:
    path = folder / "my_objective.py"
    path.write_text(text)
    return ObjectiveConfig(kind="file", file=str(path), **config)


def test_a_file_is_given_the_spectrum_and_its_axis(tmp_path):
    spectrum = np.random.default_rng(1).poisson(50.0, 256).astype(np.float32)
    built_in = ObjectiveConfig(background_model="none", normalise="none")
    expected = Objective(built_in).read(spectrum)
    reading = Objective(own(tmp_path, SUM)).read(spectrum)
    assert reading.value == expected.value
    assert reading.variance == pytest.approx(
        expected.variance, rel=0.3
    )  # of two channels in 256 the signs are the same


def test_a_variance_that_the_file_gives_is_taken(tmp_path):
    text = "def value(spectrum, axis):\n    return spectrum.sum(), 7.0\n"
    assert Objective(own(tmp_path, text)).read(np.ones(9)).variance == 7.0


@pytest.mark.parametrize("seed", [1, 3])
def test_the_variance_of_a_value_alone_is_the_scatter_of_noisy_spectra(tmp_path, seed):
    text = "def value(spectrum, axis):\n    return (spectrum * axis).sum() / spectrum.sum()\n"
    objective = Objective(own(tmp_path, text))
    clean = 300 * np.exp(-0.5 * ((AXIS_EV - 100) / 30) ** 2)
    truth = objective.read(clean).value
    noisy = np.random.default_rng(seed).poisson(clean, (200, 256))
    readings = [objective.read(one) for one in noisy]
    z = [(one.value - truth) / one.variance**0.5 for one in readings]
    assert 0.9 < np.sqrt(np.mean(np.square(z))) < 1.1


def test_the_noise_of_a_loop_is_taken_from_the_loop(tmp_path):
    rng = np.random.default_rng(1)
    bias_v = 8 * 2 / np.pi * np.arcsin(np.sin(2 * np.pi * np.arange(1, 129) / 64))
    objective = Objective(own(tmp_path, "def value(spectrum, axis):\n    return spectrum.mean()\n"))
    reading = objective.read(bias_v + rng.normal(0, 0.5, 128), bias_v=bias_v)
    assert reading.variance == pytest.approx(0.25 / 128, rel=0.6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def value(spectrum, axis)\n    return 1\n", "my_objective.py, line 1: SyntaxError: expected ':'"),
        ("import numpy\n\nimport nothing_of_this_name\n", "my_objective.py, line 3: ModuleNotFoundError"),
        ("x = 1\ny = x / 0\n", "my_objective.py, line 2: ZeroDivisionError: division by zero"),
        ("raise SystemExit\n", "my_objective.py, line 1: SystemExit"),
        ("def worth(spectrum, axis):\n    return 1\n", r"has no function value\(spectrum, axis\)"),
        ("\ndef value(spectrum):\n    return 1\n", r"line 2: value\(spectrum\) does not take two arguments"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_by_its_line_at_the_start(tmp_path, text, message):
    config = own(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        make_agent(AgentConfig(objective=config))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"objective.file: .*none.py: there is no such file"):
        Objective(ObjectiveConfig(kind="file", file=str(tmp_path / "none.py")))
    with pytest.raises(ValueError, match=r"objective\.file is empty; kind 'file' takes the path of a file"):
        ObjectiveConfig(kind="file")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return axis[999]", "my_objective.py, line 2: IndexError"),
        ("spectrum[0] = 0", "my_objective.py, line 2: ValueError: assignment destination is read-only"),
        ("return float('nan')", r"value\(\) gave nan; it takes a finite number"),
        ("return 'much'", r"value\(\) gave 'much'"),
        ("return 1.0, -1.0", r"value\(\) gave \(1.0, -1.0\)"),
        ("return None", r"value\(\) gave None"),
    ],
)
def test_what_goes_wrong_in_the_file_makes_the_spectrum_unreadable(tmp_path, body, message):
    objective = Objective(own(tmp_path, f"def value(spectrum, axis):\n    {body}\n"))
    with pytest.raises(UnreadableSpectrum, match=message):
        objective.read(np.ones(9))


def test_an_agent_outlives_an_error_in_the_file_and_counts_it(tmp_path):
    fails = "    if spectrum[255] == 0:\n        raise RuntimeError('empty')\n"
    text = f"def value(spectrum, axis):\n{fails}    return 1.0\n"
    agent = make_agent(AgentConfig(policy="raster", max_per_frame=0, objective=own(tmp_path, text)))
    agent.tell(latents())
    empty, full = np.zeros(256, np.float32), np.full(256, 9, np.float32)
    assert agent.tell(outcome(agent.ask(), spectrum=empty)) is None
    assert agent.last_unreadable.startswith("own objective failed: ")
    assert agent.last_unreadable.endswith("my_objective.py, line 3: RuntimeError: empty")
    assert agent.tell(outcome(agent.ask(), spectrum=full)).value == 1.0
    assert agent.last_unreadable == ""
    assert agent.statistics()["unreadable, own objective failed"] == 1


def test_the_score_names_the_contents_of_the_file(tmp_path):
    before = Objective(own(tmp_path, SUM, unit="counts")).name
    assert before.startswith("my_objective (counts, my_objective.py ")
    assert Objective(own(tmp_path, SUM, label="strength")).name.startswith("strength (my_objective.py ")
    assert Objective(own(tmp_path, SUM + "# changed\n", unit="counts")).name != before


def test_a_changed_file_reads_every_spectrum_anew_after_a_restart(tmp_path):
    config = AgentConfig(policy="raster", max_per_frame=0, objective=own(tmp_path, SUM))
    agent = make_agent(config)
    agent.tell(latents())
    value = agent.tell(outcome(agent.ask())).value
    state = agent.checkpoint()
    own(tmp_path, SUM.replace(".sum()", ".sum() / 2"))
    again = make_agent(config)
    again.restore(*state)
    assert again.observations[0].reading.value == value / 2
