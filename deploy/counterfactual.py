"""``probeloop replay SESSION --counterfactual CONFIG``: what another agent would have made of the same data.

Only atoms whose spectrum was recorded are offered, in the order of the recorded frames, and a choice is
answered by that spectrum: nothing is invented. The agent may measure after a frame as often as the
session did; what is left then, it takes on the last frame.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import msgspec
import numpy as np
import structlog
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.spatial import cKDTree

from agents.config import AgentConfig, GoalName, direction_of, load_agent_config
from agents.next_scan import ScanConfig
from agents.objective import Objective, UnreadableSpectrum
from agents.policies import make_agent
from agents.site_agent import SiteAgent
from deploy.figures import BLUE, DPI, GREY, ORANGE, STYLE, Curve, learning_figure
from deploy.learning_curve import best_so_far, chance, draws_to_find, measurements_to_reach
from deploy.refusals import refuse
from streamer.codec import WireError
from streamer.journal import read_records
from streamer.messages import AnyMessage, Latents, Outcome, StrainMap, Suggestion
from streamer.segment import Record

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Float64 = NDArray[np.float64]
_NEAR_THE_BEST = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One recorded measurement.

    Attributes
    ----------
    outcome
        With its spectrum and its specimen position.
    revision
        Registration that the position speaks of.
    value
        What it is worth to the objective.
    """

    outcome: Outcome
    revision: int
    value: float


class Learnt(msgspec.Struct, frozen=True, kw_only=True):
    """How soon one agent found the best.

    Attributes
    ----------
    name
        Of its policy.
    values
        What each measurement was worth, in order.
    best
        The best so far after each.
    to_best, to_near_best
        Measurements until the best of the pool was found, and until a value within 5 % of it; None
        where it never was.
    """

    name: str
    values: list[float]
    best: list[float]
    to_best: float | None
    to_near_best: float | None


class Counterfactual(msgspec.Struct, frozen=True, kw_only=True):
    """Two agents, and chance, on one pool of measurements.

    Attributes
    ----------
    objective, goal
        What was looked for.
    pool
        How many recorded measurements could be read.
    unreadable
        How many could not; they were left out.
    never_taken
        Measurements of the pool that the other agent did not come to: their atoms were out of sight, or
        it holds them for the same as another.
    recorded, other
        As the session chose, and as the agent of the given settings did.
    chance_to_best, chance_to_near_best
        What random order needs on average.
    """

    objective: str
    goal: GoalName
    pool: int
    unreadable: int
    never_taken: int
    recorded: Learnt
    other: Learnt
    chance_to_best: float
    chance_to_near_best: float


class Pool:
    """The measurements of a session, each of which is made at most once more.

    Parameters
    ----------
    objective
        What they are worth.
    """

    def __init__(self, objective: Objective) -> None:
        self.all: list[Measured] = []
        self.unreadable = 0
        self._objective = objective
        self._is_taken: list[bool] = []

    def add(self, outcome: Outcome, revision: int) -> None:
        """Take in a recorded outcome, if there is a spectrum in it that can be read."""
        if outcome.status != "ok" or outcome.spectrum is None or outcome.position_nm is None:
            return
        measured = (outcome.spectrum, outcome.energy_offset_ev, outcome.energy_step_ev, outcome.bias_v)
        try:
            reading = self._objective.read(*measured)
        except UnreadableSpectrum:
            self.unreadable += 1
            return
        finally:
            self._objective.remember(*measured)
        self.all.append(Measured(outcome, revision, reading.value))
        self._is_taken.append(False)

    def in_sight(self, latents: Latents, reach_nm: float) -> tuple[Latents, list[int]]:
        """Keep of a frame's atoms those that were measured and are still to be taken.

        Returns
        -------
        offered
            The latents of these atoms alone.
        measured
            For each, which measurement of the pool it is.
        """
        there = [
            index
            for index, (measured, is_taken) in enumerate(zip(self.all, self._is_taken, strict=True))
            if not is_taken and measured.revision == latents.registration.revision
        ]
        of_atom: dict[int, int] = {}
        if there and len(latents.positions_nm):
            places = np.array([self.all[index].outcome.position_nm for index in there])
            away_nm, atoms = cKDTree(latents.positions_nm).query(places)
            for index, atom, distance in zip(there, atoms.tolist(), away_nm.tolist(), strict=True):
                if distance <= reach_nm:
                    of_atom.setdefault(atom, index)  # of two at one atom, the earlier first
        rows = sorted(of_atom)
        # All arrays of a frame's latents are of its atoms.
        said = msgspec.structs.asdict(latents).items()
        kept = {name: value[rows] for name, value in said if isinstance(value, np.ndarray)}
        return msgspec.structs.replace(latents, **kept), [of_atom[row] for row in rows]

    def take(self, index: int) -> Measured:
        """Make a measurement once more."""
        self._is_taken[index] = True
        return self.all[index]

    @property
    def left(self) -> int:
        """How many are still to be taken."""
        return self._is_taken.count(False)


def read_pool(folder: Path, objective: Objective) -> Pool:
    """Read what a session measured."""
    pool = Pool(objective)
    revisions: dict[str, int] = {}
    for message in _messages(folder, "suggestion", "outcome"):
        if isinstance(message, Suggestion):
            revisions[message.id] = message.registration_revision
        elif isinstance(message, Outcome) and message.id in revisions:
            pool.add(message, revisions[message.id])
    return pool


def read_turns(folder: Path, pool: Pool, encoder: str = "") -> Iterator[Latents | StrainMap | None]:
    """Read an encoder's latents of each frame and the maps, and None where the pool's next was measured."""
    known = {measured.outcome.id for measured in pool.all}
    for message in _messages(folder, "latents", "outcome", "strain_map"):
        if isinstance(message, StrainMap) or (
            isinstance(message, Latents)
            and message.encoder == encoder
            and message.request_id is None
            and not message.is_delivered
        ):
            yield message
        elif isinstance(message, Outcome) and message.id in known:
            known.remove(message.id)
            yield None


def _messages(folder: Path, *kinds: str) -> Iterator[AnyMessage]:
    """Read the whole records of some kinds; ``probeloop journal verify`` tells of the others."""
    for record in read_records(folder, kinds):
        if isinstance(record, Record):
            with contextlib.suppress(WireError):
                yield record.message()


class OtherAgent:
    """An agent that decides on a recording.

    Parameters
    ----------
    agent
        New.
    pool
        Nothing of it taken yet.
    """

    def __init__(self, agent: SiteAgent, pool: Pool) -> None:
        self.values: list[float] = []
        self._agent = agent
        self._pool = pool
        self._owed = 0
        self._frame: Latents | None = None

    def decide(self, turns: Iterable[Latents | StrainMap | None]) -> None:
        """Go through the session, then take what is left on its last frame."""
        for turn in turns:
            if turn is None:
                self._owed += 1
            elif isinstance(turn, StrainMap):
                self._agent.tell(turn)
            else:
                self._frame = turn
                self._look()
            self._measure()
        self._owed = self._pool.left
        before = -1
        while self._owed and self._owed != before:
            before = self._owed
            self._look()
            self._measure()

    def _look(self) -> None:
        """Show the agent what may be taken of the newest frame."""
        if self._frame is None:
            return
        self._offered, self._index = self._pool.in_sight(self._frame, self._agent.config.max_miss_nm)
        self._agent.tell(self._offered)

    def _measure(self) -> None:
        """Let it measure as often as the session has by now."""
        while self._owed and self._frame is not None:
            suggestion = self._agent.ask()
            if suggestion is None:
                return
            measured = self._pool.take(self._index[self._row_of(suggestion)])
            self._owed -= 1
            self.values.append(measured.value)
            self._agent.tell(msgspec.structs.replace(measured.outcome, id=suggestion.id))
            while self._agent.refit() is not None:
                pass

    def _row_of(self, suggestion: Suggestion) -> int:
        return int(np.hypot(*(self._offered.positions_nm - np.array(suggestion.position_nm)).T).argmin())


def compare(folder: Path, config: AgentConfig) -> Counterfactual:
    """Let another agent decide on a recorded session.

    Parameters
    ----------
    folder
        Of the session.
    config
        Of the other agent; its objective judges both.

    Raises
    ------
    FileNotFoundError
        If there is no journal.
    ValueError
        If no recorded spectrum can be read by the objective; the text says what would do.
    """
    # A scan cannot be made of a recording.
    agent = make_agent(msgspec.structs.replace(config, scan=ScanConfig()))
    pool = read_pool(folder, Objective(config.objective))  # one that remembers, remembers for the pool
    if not pool.all:
        raise ValueError(
            f"none of the {pool.unreadable} recorded spectra can be read as {agent.objective.name}; choose "
            "another agent.objective, or a session with measurements"
        )
    other = OtherAgent(agent, pool)
    other.decide(read_turns(folder, pool, config.encoder))
    sign = _sign(config.goal)
    site_values = sign * np.array([measured.value for measured in pool.all])
    level = near_best(site_values)
    return Counterfactual(
        objective=agent.objective.name,
        goal=config.goal,
        pool=len(pool.all),
        unreadable=pool.unreadable,
        never_taken=pool.left,
        recorded=_learnt("as recorded", site_values, site_values, sign),
        other=_learnt(f"{agent.policy} on the record", sign * np.array(other.values), site_values, sign),
        chance_to_best=draws_to_find(len(site_values), int((site_values >= site_values.max()).sum())),
        chance_to_near_best=draws_to_find(len(site_values), int((site_values >= level).sum())),
    )


def _sign(goal: GoalName) -> float:
    """What turns values so that larger is better; where nothing is best, the largest is looked at."""
    return -1.0 if direction_of(goal) == "minimise" else 1.0


def near_best(values: Float64) -> float:
    """Say from which value on one is within 5 % of the best; of the span, where the best is not above 0."""
    best = float(values.max())
    return best - _NEAR_THE_BEST * (best if best > 0 else float(np.ptp(values)))


def _learnt(name: str, values: Float64, pool: Float64, sign: float) -> Learnt:
    curve = best_so_far(values)
    return Learnt(
        name=name,
        values=(sign * values).tolist(),
        best=(sign * curve).tolist(),
        to_best=measurements_to_reach(curve, float(pool.max())),
        to_near_best=measurements_to_reach(curve, near_best(pool)),
    )


def draw(found: Counterfactual, path: Path) -> None:
    """Draw both learning curves, and that of chance, into a PNG."""
    sign = _sign(found.goal)
    luck = chance(sign * np.array(found.recorded.values), found.pool)
    low, high = sorted((sign * luck.low, sign * luck.high), key=lambda curve: float(curve.sum()))
    curves = [
        Curve(name=found.recorded.name, values=np.array(found.recorded.best), colour=BLUE),
        Curve(name=found.other.name, values=np.array(found.other.best), colour=ORANGE),
        Curve(name="at random (80 %)", values=sign * luck.mean, colour=GREY, low=low, high=high),
    ]
    figure = learning_figure(np.array(found.other.values), curves, found.recorded.best[-1], found.objective)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=DPI)


def as_table(found: Counterfactual) -> Table:
    """Draw how soon each found the best, for a terminal."""
    table = Table("", "measurements", "to within 5 %", "to the best", title=found.objective)
    for learnt in (found.recorded, found.other):
        table.add_row(
            learnt.name, str(len(learnt.values)), _count(learnt.to_near_best), _count(learnt.to_best)
        )
    table.add_row(
        "at random, on average", "", f"{found.chance_to_near_best:.1f}", f"{found.chance_to_best:.1f}"
    )
    return table


def _count(measurements: float | None) -> str:
    return "never" if measurements is None else f"{measurements:g}"


@app.command()
def main(
    session: Annotated[Path, typer.Argument(help="Folder of a recorded session.")],
    config: Annotated[Path, typer.Argument(help="TOML file; the table [agent] is read.")],
    to: Annotated[Path | None, typer.Option(help="Folder for the picture; else the session's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let another agent decide on what a session recorded, and compare how soon it finds the best."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    picture = (to or session) / "counterfactual.png"
    try:
        settings = load_agent_config(config)
        found = compare(session, settings)
        draw(found, picture)
    except (OSError, ValueError) as error:
        refuse(error)
    if as_json:
        typer.echo(msgspec.json.encode(found))
        return
    console = Console()
    console.print(as_table(found))
    if found.never_taken or found.unreadable:
        console.print(
            f"note: {found.never_taken} measurements were not taken by the other agent, {found.unreadable} "
            "spectra could not be read",
            soft_wrap=True,
        )
    console.print(f"Picture: {picture}", soft_wrap=True)


if __name__ == "__main__":
    app()
