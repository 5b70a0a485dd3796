"""No pickle is read or written, except where a test says what keeps it from running code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "accel"
FILES = sorted(ROOT.rglob("*.py"))

MODULES = {"pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "marshal", "multiprocessing"}
"""What unpickles, or runs bytecode; multiprocessing sends its arguments that way."""

ALLOWED = {
    # CIFAR's own archives are pickles; this unpickler admits a uint8 array, lists, strings and numbers (tests/datasets holds it to that).
    "datasets/pickles.py": {"pickle", "pickletools"},
    # The state of a training that goes on: torch.save writes a pickle, and torch.load(weights_only=True) admits tensors and plain data.
    "trainers/snapshot.py": {"pickle"},
}
CALLS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
"""Call → the argument that it must have."""

NEVER = {"pd.read_pickle", "yaml.load", "torch.package.PackageImporter", "torch.hub.load", "eval", "exec"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str, allowed: set[str]) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "require")) and node.args:
            # A lazy import by its name.
            names += [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        found += [f"line {node.lineno}: {name}" for name in names if str(name).partition(".")[0] in MODULES - allowed]
        if not isinstance(node, ast.Call):
            continue
        call = dotted(node.func)
        if call in NEVER:
            found.append(f"line {node.lineno}: {call}")
        if call in CALLS:
            argument, wanted = CALLS[call]
            given = {keyword.arg: keyword.value for keyword in node.keywords}.get(argument)
            if not (isinstance(given, ast.Constant) and given.value is wanted):
                found.append(f"line {node.lineno}: {call} without {argument}={wanted}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_unpickles(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    assert faults(path.read_text(encoding="utf-8"), ALLOWED.get(name, set())) == []


def test_the_search_sees_each_way() -> None:
    source = """
import pickle, json
from joblib import load
import multiprocessing.pool
require("dill", "x")
torch.load(path)
torch.load(path, weights_only=False)
torch.load(path, weights_only=True)
np.load(path)
np.load(path, allow_pickle=False)
eval(text)
"""
    assert faults(source, set()) == [
        "line 2: pickle",
        "line 3: joblib",
        "line 4: multiprocessing.pool",
        "line 5: dill",
        "line 6: torch.load without weights_only=True",
        "line 7: torch.load without weights_only=True",
        "line 9: np.load without allow_pickle=False",
        "line 11: eval",
    ]
    assert faults("import pickle", {"pickle"}) == []


def test_the_exceptions_are_still_needed() -> None:
    for name, modules in ALLOWED.items():
        assert {fault.rpartition(" ")[2] for fault in faults((ROOT / name).read_text(encoding="utf-8"), set())} == modules
