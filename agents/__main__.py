"""``python -m agents``: connect to a streamer and choose what to measure next."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def main(
    connect: Annotated[str, typer.Option(help="Address of the streamer, such as tcp://127.0.0.1:5555.")],
    config: Annotated[Path | None, typer.Option(help="TOML file; the table [agent] is read.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="explorer (learns where it pays), strain (where it is large), raster or random."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.")] = None,
    key: Annotated[Path | None, typer.Option(help="This agent's key file, for a streamer with keys.")] = None,
    timeout_s: Annotated[float, typer.Option(help="How long to wait for the streamer.")] = 30.0,
) -> None:
    """Look at the atoms that the streamer finds, and choose where to take the next spectrum."""
    # One thread in every pool, set before NumPy comes in: two pools on one machine cost a factor of 100.
    for pool in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{pool}_NUM_THREADS", "1")
    stopped: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        stopped.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    sys.exit(_run(connect, config, policy, seed, key, timeout_s, stopped))


def _run(
    connect: str,
    config: Path | None,
    policy: str | None,
    seed: int | None,
    key: Path | None,
    timeout_s: float,
    stopped: list[int],
) -> int:
    """Serve one session; 0 in good order, 1 without a streamer, 2 for a wrong configuration."""
    import msgspec
    import structlog

    from agents.config import load_agent_config, overridden
    from agents.policies import make_agent, name_of
    from agents.serve import serve
    from streamer.keys import KeysError, PeerKeys
    from streamer.link import Link
    from streamer.log import log_to_stderr

    log_to_stderr()
    log = structlog.get_logger()
    try:
        settings = overridden(load_agent_config(config), policy=policy, seed=seed)
        keys = None if key is None else PeerKeys.read(key, "agent")
    except (OSError, ValueError) as error:
        print(f"configuration: {error}", file=sys.stderr)
        return 2
    try:
        agent = make_agent(settings)  # opens the files that an objective names
    except ValueError as error:
        print(f"configuration: {config}: agent.{error}", file=sys.stderr)
        return 2
    log.info("configuration", **msgspec.to_builtins(settings))
    log.info("objective", name=agent.objective.name)
    every = settings.checkpoint_every
    name = name_of(agent.policy)
    try:
        with Link(connect, role="agent", name=name, timeout_s=timeout_s, keys=keys) as link:
            reason = serve(agent, link, lambda: bool(stopped), checkpoint_every=every)
    except KeysError as error:
        print(f"configuration: {error}", file=sys.stderr)
        return 2
    except ConnectionError as error:
        print(str(error), file=sys.stderr)
        return 1
    log.info("ended", reason=reason, **agent.statistics())
    return 0


if __name__ == "__main__":
    app()
