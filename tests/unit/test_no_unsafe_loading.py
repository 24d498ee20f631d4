"""Nothing that came from elsewhere is ever run: the tree holds no loader that would."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("streamer", "models", "agents", "simulators", "deploy", "tests", "docs")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.hub.load",
    "yaml.load",
    "yaml.unsafe_load",
}
MEANT = {
    # The client that is printed in the documentation is run by its test.
    ("tests/process/test_plain_client.py", "exec"),
    # A file of the kind that must be refused.
    ("tests/unit/test_recordings.py", "np.save(allow_pickle)"),
}


def dangers(source: str) -> Iterator[str]:
    """Name every import and call in a source text that could run what it loads."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in MODULES:
                    yield module
                yield from (f"{module}.{name.name}" for name in names if f"{module}.{name.name}" in CALLS)
            case ast.Call():
                yield from _dangers_of_call(node)
            case _:
                pass


def _dangers_of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in CALLS or name.removeprefix("builtins.") in ("eval", "exec"):
        yield name
    if name.endswith(("pickle.load", "pickle.loads", "read_pickle", "recv_pyobj", "send_pyobj")):
        yield name
    if name in ("__import__", "importlib.import_module") and any(
        isinstance(argument, ast.Constant) and argument.value in MODULES for argument in node.args
    ):
        yield name
    for word in node.keywords:
        if word.arg in ("allow_pickle", "shell") and not _is_false(word.value):
            yield f"{name}({word.arg})"


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_no_file_of_ours_runs_what_it_loads():
    found = {
        (str(path.relative_to(ROOT)), danger)
        for path in sources()
        for danger in dangers(path.read_text(encoding="utf-8"))
    }
    assert found == MEANT


def test_every_folder_is_looked_at():
    looked_at = {path.relative_to(ROOT).parts[0] for path in sources()}
    assert looked_at >= {"streamer", "models", "agents", "simulators", "deploy", "tests"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import marshal, os",
        "import shelve",
        "from torch import load",
        "import torch\ntorch.load('x', weights_only=True)",
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "yaml.load(text)",
        "numpy.load('x', allow_pickle=True)",
        "np.savez('x', allow_pickle=flag)",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "socket.recv_pyobj()",
        "pandas.read_pickle('x')",
        "__import__('pickle')",
        "importlib.import_module('pickle')",
    ],
)
def test_each_danger_would_be_found(source):
    assert list(dangers(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "np.load('x', allow_pickle=False)",
        "subprocess.run(['ls'], shell=False)",
        "json.load(file)",
    ],
)
def test_what_is_harmless_is_not_taken_for_a_danger(source):
    assert not list(dangers(source))
