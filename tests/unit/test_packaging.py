"""What is installed is what the house has, and nobody else claims its names."""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("streamer", "models", "agents", "simulators", "deploy")
FORBIDDEN = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("torch", "load"),
    ("yaml", "load"),
    ("marshal", "loads"),
    ("joblib", "load"),
}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_no_other_distribution_claims_our_names(room):
    assert set(packages_distributions().get(room, ["probeloop"])) == {"probeloop"}


def test_every_folder_with_python_is_named_in_pyproject():
    with (ROOT / "pyproject.toml").open("rb") as file:
        named = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    there = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in SOURCES}
    assert there == named


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_runs_code_from_data_is_called(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name):
                assert function.id not in ("eval", "exec"), f"line {node.lineno}"
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                assert (function.value.id, function.attr) not in FORBIDDEN, f"line {node.lineno}"
            for keyword in node.keywords:
                says_yes = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                assert not (keyword.arg in ("allow_pickle", "shell") and says_yes), f"line {node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert "pickle" not in names, f"line {node.lineno}"


def test_init_files_are_empty():
    assert [path for path in SOURCES if path.name == "__init__.py" and path.read_text()] == []
