"""The protocol by which the benchmarks ask AtomAI and pyroVED; it runs under our own Python, without them."""

import sys
from pathlib import Path

import pytest

from tests.benchmarks.peers.ask import Peers, why_absent

OURS = Path(sys.executable)


def test_a_request_is_answered_with_its_own_answer_and_in_order() -> None:
    with Peers(python=OURS) as peers:
        values = [peers.ask("echo", value=value)["value"] for value in (1, "Zwei", [3.5, None])]
    assert values == [1, "Zwei", [3.5, None]]


def test_the_python_that_was_named_answers() -> None:
    with Peers(python=OURS) as peers:
        answered = peers.ask("echo", value=0)["python"]
    assert Path(answered) == OURS


def test_a_request_that_fails_is_an_error_and_not_a_figure(capfd: pytest.CaptureFixture[str]) -> None:
    with Peers(python=OURS) as peers, pytest.raises(RuntimeError, match="on the request 'dance'"):
        peers.ask("dance")
    assert "KeyError" in capfd.readouterr().err


def test_a_missing_environment_is_said_with_its_cure(tmp_path: Path) -> None:
    nowhere = tmp_path / "python"
    assert "make peers" in (why_absent(nowhere) or "")
    with pytest.raises(FileNotFoundError, match="make peers"), Peers(python=nowhere):
        pass


def test_a_python_that_exists_is_not_called_absent() -> None:
    assert why_absent(OURS) is None
