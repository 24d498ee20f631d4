"""How a command says in one line that it will not, or could not, and with which exit code it ends."""

from __future__ import annotations

from typing import NoReturn

import typer


def refuse(problem: object) -> NoReturn:
    """Say what is wrong with what was asked for; exit code 2."""
    _end(problem, 2)


def fail(problem: object) -> NoReturn:
    """Say what went wrong; exit code 1."""
    _end(problem, 1)


def _end(problem: object, code: int) -> NoReturn:
    typer.echo(f"probeloop: {problem}", err=True)
    raise typer.Exit(code) from None
