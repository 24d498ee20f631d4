"""The help of a simulated instrument: every key, its unit, its default and what it means."""

from __future__ import annotations

import msgspec
import pytest
from typer.testing import CliRunner

from simulators.__main__ import app
from simulators.catalogue import CATALOGUE
from simulators.knobs import as_text, knobs, unit_of
from streamer.config_file import INSTRUMENTS


class _Base(msgspec.Struct, frozen=True, kw_only=True):
    """What all have.

    Attributes
    ----------
    rows, cols
        Size of a frame. More takes longer.
    """

    rows: int = 8
    cols: int = 8


class _Inner(msgspec.Struct, frozen=True, kw_only=True):
    """A table.

    Attributes
    ----------
    kind
        ``a`` or ``b``.
    """

    kind: str = "a"


class _Own(_Base, frozen=True, kw_only=True):
    """One of them.

    Attributes
    ----------
    tip_radius_nm
        Of the tip; blunt ones
        see less.
    inner
        A table of its own.
    many
        Several.
    """

    tip_radius_nm: float = 2.5
    inner: _Inner = _Inner()
    many: tuple[_Inner, ...] = ()


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("rows", ""),
        ("dwell_time_us", "µs"),
        ("travel_um_per_s", "µm/s"),
        ("vacancies_per_nm2", "1/nm²"),
        ("drift_wander_nm_per_sqrt_s", "nm/√s"),
        ("electrostatic_pm_per_v", "pm/V"),
        ("has_grain_boundary", ""),
    ],
)
def test_the_unit_is_read_from_the_name(name, unit):
    assert unit_of(name) == unit


def test_own_keys_come_first_then_those_of_every_instrument_then_tables():
    found = knobs(_Own)

    assert [knob.key for knob in found] == [
        *("tip_radius_nm", "rows", "cols", "inner.kind", "many", "many[].kind"),
    ]
    assert (found[0].default, found[0].unit, found[0].meaning) == (
        "2.5",
        "nm",
        "Of the tip; blunt ones see less.",
    )
    assert found[1].meaning == found[2].meaning == "Size of a frame."
    assert (found[3].default, found[3].meaning) == ('"a"', "a or b.")


def test_the_text_has_each_key_once_and_what_is_said_of_several_once():
    text = as_text(_Own, "simulate.own")

    assert text.startswith("Keys of [simulate.own]")
    assert "  tip_radius_nm = 2.5 nm\n      Of the tip; blunt ones see less.\n" in text
    assert "  rows = 8\n  cols = 8\n      Size of a frame.\n" in text


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_key_of_every_instrument_says_what_it_means(name):
    entry = CATALOGUE[name]

    silent = [knob.key for knob in knobs(entry.config_class()) if len(knob.meaning) < 3]
    assert silent == []


@pytest.mark.parametrize("name", CATALOGUE)
def test_help_of_every_instrument_ends_with_its_keys(name):
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})

    assert shown.exit_code == 0
    assert f"Keys of [simulate.{name}]" in shown.output
    assert "field_of_view_nm = " in shown.output


def test_the_configuration_file_knows_a_table_for_every_instrument():
    assert set(CATALOGUE) <= set(INSTRUMENTS)
    assert all(entry.config_class().table == entry.name for entry in CATALOGUE.values())
