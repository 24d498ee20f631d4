"""The agent in the words of bluesky-adaptive 0.4 and 1.0 and of blop 1.2, whose shapes are written here."""

import doctest
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import deploy.bridges.bluesky
from agents.notebook import Chooser
from agents.objective import ObjectiveConfig
from deploy.bridges.bluesky import NothingLeft, Optimizer, RunAgent

SIDE = 7


def chooser(**settings: Any) -> Chooser:
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    return Chooser(1000.0 * np.stack([x.ravel(), y.ravel()], axis=1), **({"value_sd": 0.1} | settings))


def optimizer(**settings: Any) -> Optimizer:
    return Optimizer(chooser(**settings), ("sx", "sy"), value="signal", sd="signal_sd", unit_nm=1000.0)


def signal(point: dict[str, Any]) -> float:
    return 10 * float(np.exp(-((point["sx"] - 5) ** 2 + (point["sy"] - 1) ** 2) / 4))


def data_key(value: Any) -> tuple[str, tuple[int, ...]]:
    """Say what bluesky-adaptive 0.4 describes a value of a document as: its first event fixes it for all."""
    if isinstance(value, np.ndarray):
        return "array", value.shape
    for kinds, name in ((float, "number"), (str, "string"), (int, "integer")):
        if isinstance(value, kinds):
            return name, ()
    raise TypeError(f"{value!r} has no place in a document")


def keys_of(document: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: data_key(value) for name, value in document.items()}


def test_the_example_holds():
    found = doctest.testmod(deploy.bridges.bluesky)
    assert found.attempted > 4
    assert found.failed == 0


def test_bluesky_itself_is_not_imported():
    names = "bluesky", "bluesky_adaptive", "blop", "ophyd"
    code = f"import sys, deploy.bridges.bluesky; print([n for n in {names} if n in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_an_optimisation_in_their_steps_finds_the_peak():
    one = optimizer()
    for _ in range(16):
        suggestions = one.suggest(2)
        assert len({point["_id"] for point in suggestions}) == 2
        assert all(set(point) == {"_id", "sx", "sy"} for point in suggestions)
        one.ingest([{"_id": point["_id"], "signal": signal(point)} for point in reversed(suggestions)])
        if one.get_best_points()[0][1] == {"sx": 5.0, "sy": 1.0}:
            break
    (identifier, parameters, outcomes) = one.get_best_points()[0]
    assert parameters == {"sx": 5.0, "sy": 1.0}
    assert outcomes == {"signal": 10.0}
    assert identifier.startswith("explorer-")


def test_a_single_point_is_suggested_unless_more_are_asked_for():
    assert len(optimizer().suggest()) == 1
    assert len(optimizer().suggest(5)) == 5


def test_points_of_ones_own_are_registered_measured_and_ingested():
    one = optimizer()
    mine = one.register_suggestions(
        [{"sx": 5.1, "sy": 1.0, "note": "mine"}, {"sx": 5.0, "sy": 0.9, "_id": "x"}]
    )
    assert [point["_id"] for point in mine] == ["own-0", "own-1"]
    assert mine[0]["note"] == "mine"
    one.ingest([{"_id": "own-0", "signal": 9.0, "signal_sd": 0.5}, {"sx": 0.0, "sy": 6.0, "signal": 1.0}])
    assert [(known.position_nm, known.value) for known in one.chooser.measured] == [
        ((5000.0, 1000.0), 9.0),
        ((0.0, 6000.0), 1.0),
    ]
    assert one.chooser.measured[0].variance == pytest.approx(0.25)


def test_a_baseline_is_taken_at_its_place():
    one = optimizer()
    one.ingest([{"_id": "baseline", "sx": 3.0, "sy": 3.0, "signal": 0.5}])
    assert one.chooser.measured[0].position_nm == (3000.0, 3000.0)


def test_a_point_far_from_every_candidate_is_refused_and_named():
    one = optimizer()
    far = {"sx": 20.0, "sy": 1.0, "signal": 1.0}
    with pytest.raises(ValueError, match=r"\(20000, 1000\) nm is 1.4e\+04 nm away.*max_miss_nm = 500 nm"):
        one.ingest([far])
    with pytest.raises(ValueError, match="nearest candidate"):
        one.register_suggestions([{"sx": 1.0, "sy": 1.0}, far])
    assert one.chooser.under_way == ()
    for outcome, text in (
        ({"_id": "nobody", "signal": 1.0}, "is of no suggestion under way and does not say 'sx'"),
        ({"sx": 1.0, "sy": 1.0}, "has no 'signal'"),
    ):
        with pytest.raises(ValueError, match=text):
            one.ingest([outcome])


def test_failures_free_their_places():
    one = optimizer()
    suggestions = one.suggest(3)
    one.register_failures(suggestions)
    assert one.chooser.under_way == ()
    assert one.chooser.agent.statistics()["skipped"] == 3


def test_it_says_when_to_stop_and_that_nothing_is_left():
    one = optimizer(stopping={"measurements": 2})
    assert one.should_stop() == (False, None)
    for _ in range(2):
        (point,) = one.suggest()
        one.ingest([{"_id": point["_id"], "signal": signal(point)}])
    stop, reason = one.should_stop()
    assert stop
    with pytest.raises(NothingLeft, match=reason):
        one.suggest()
    few = Optimizer(Chooser([[0, 0], [0, 1]], value_sd=1.0))
    assert len(few.suggest(5)) == 2
    with pytest.raises(NothingLeft, match="measured or are under way"):
        few.suggest()


def test_where_no_value_is_best_all_measurements_are_given():
    one = optimizer(goal="map")
    for _ in range(3):
        (point,) = one.suggest()
        one.ingest([{"_id": point["_id"], "signal": signal(point)}])
    assert len(one.get_best_points()) == 3


class Experiment:
    """Stands where the class of bluesky-adaptive does: takes what is its own."""

    def __init__(self, *, kafka_consumer: str) -> None:
        self.consumer = kafka_consumer


class Microscope(RunAgent, Experiment):
    pass


def test_documents_of_a_run_agent_have_the_same_shape_from_the_first_to_the_last():
    agent = Microscope(chooser=chooser(), unit_nm=1000.0, kafka_consumer="theirs")
    assert agent.consumer == "theirs"
    suggested, ingested, reported = [], [], [keys_of(agent.report())]
    for _ in range(14):
        documents, points = agent.suggest(2)
        assert len(documents) == len(points) == 2
        assert all(point.shape == (2,) for point in points)
        values = [signal({"sx": x, "sy": y}) for x, y in points]
        ingested += [keys_of(document) for document in agent.ingest_many(points, values)]
        suggested += [keys_of(document) for document in documents]
        reported.append(keys_of(agent.report(extra=1)))
    for documents in (suggested, ingested, reported):
        assert all(document == documents[0] for document in documents)
    assert agent.report()["best_position"] == pytest.approx([5.0, 1.0])
    assert agent.chooser.under_way == ()


def test_a_run_agent_reads_spectra_and_refuses_places_without_a_candidate():
    agent = RunAgent(chooser=chooser(objective=ObjectiveConfig(background_model="none")), unit_nm=1000.0)
    document = agent.ingest([2.0, 3.0], np.full(256, 5.0))
    assert document["candidate"] == 3 * SIDE + 2
    assert document["value"] == pytest.approx(21 / 256)
    with pytest.raises(ValueError, match="nearest candidate"):
        agent.ingest([2.0, 30.0], np.full(256, 5.0))
    with pytest.raises(ValueError, match="unit_nm is 0"):
        RunAgent(chooser=chooser(), unit_nm=0)
