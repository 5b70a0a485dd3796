"""Who may import whom: the table of the architecture, held against every import and every lazy name in `accel`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "accel"

CORE = {
    "errors",
    "types",
    "optional",
    "config",
    "locking",
    "files",
    "progress",
    "checkpoint",
    "packed",
    "pictures",
    "tracking",
    "interrupts",
}
ROOMS = {
    "preprocess",
    "datasets",
    "device",
    "engines",
    "trt",
    "trainers",
    "exporters",
    "runtimes",
    "verify",
    "bench",
    "report",
    "sweeps",
    "serve",
}
MAY_IMPORT = {
    "core": set(),
    "preprocess": {"core"},
    "datasets": {"core"},
    "device": {"core"},
    "engines": {"preprocess", "core"},
    "trt": {"core"},
    "trainers": {"datasets", "preprocess", "core"},
    "exporters": {"trt", "device", "engines", "core"},
    "runtimes": {"trt", "device", "engines", "core"},
    "verify": {"runtimes", "engines", "datasets", "preprocess", "device", "core"},
    "bench": {"verify", "runtimes", "device", "engines", "core"},
    "report": {"bench", "core"},
    "sweeps": {"core"},
    "serve": {"runtimes", "engines", "preprocess", "core"},
    "api": ROOMS | {"core", "face"},
    "face": {"api"},
    "integrations": ROOMS | {"core", "api", "face"},
    "cli": ROOMS | {"core", "api", "face", "integrations"},
    "__main__": {"cli"},
}
LAYER_OF = {"api": "api", "integrations": "integrations", "doctor": "api", "cli": "cli", "__init__": "face", "__main__": "__main__"}
LAZY_NAME = re.compile(r"^accel(\.\w+)+(:\w+)?$")
FILES = sorted(ROOT.rglob("*.py"))


def layer(module: str) -> str:
    """The layer of a dotted module below `accel`, as `runtimes.eager` → `runtimes`."""
    head = module.partition(".")[0]
    return "core" if head in CORE else LAYER_OF.get(head, head)


def imported(tree: ast.Module, package: str) -> set[tuple[str, int]]:
    """Modules of accel that a file names, with the line: imports anywhere in it, and strings of lazy tables."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found: set[tuple[str, int]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])])
            # `from accel import x` names a room or the face's own function; the room is what counts.
            found |= {(f"accel.{alias.name}", node.lineno) for alias in node.names} if base == "accel" else {(base, node.lineno)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            name = node.value.partition(":")[0]
            # "accel.json" and "accel.toml" are file names.
            if LAZY_NAME.match(node.value) and named_layer(name) != "face":
                found.add((name, node.lineno))
    return {(name, line) for name, line in found if name == "accel" or name.startswith("accel.")}


def named_layer(name: str) -> str:
    rest = name.removeprefix("accel").removeprefix(".")
    head = rest.partition(".")[0]
    known = head in CORE | ROOMS or head in LAYER_OF
    return layer(rest) if known else "face"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_the_layers_below_it(path: Path) -> None:
    relative = path.relative_to(ROOT).with_suffix("")
    own = layer(".".join(relative.parts))
    assert own in MAY_IMPORT, f"{relative} belongs to no layer of the table"
    package = ".".join(["accel", *relative.parts[:-1]])
    allowed = MAY_IMPORT[own] | {own}
    wrong = [
        f"{path.name}:{line} ({own}) names {name} ({named_layer(name)})"
        for name, line in imported(ast.parse(path.read_text(encoding="utf-8")), package)
        if named_layer(name) not in allowed
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_the_check_sees_every_way_of_naming_a_module() -> None:
    source = """
import accel.bench.plan
from accel import runtimes
from accel.engines.bundle import Bundle
from .sibling import x
def later():
    from accel.trainers import models
TABLE = {"onnx": "accel.exporters.onnx:export"}
"""
    assert {name for name, _ in imported(ast.parse(source), "accel.verify")} == {
        "accel.bench.plan",
        "accel.runtimes",
        "accel.engines.bundle",
        "accel.verify.sibling",
        "accel.trainers",
        "accel.exporters.onnx",
    }


def test_the_table_has_no_circle() -> None:
    def below(name: str, seen: tuple[str, ...] = ()) -> None:
        assert name not in seen, f"circle: {' → '.join([*seen, name])}"
        for other in MAY_IMPORT[name] - {"face"}:
            below(other, (*seen, name))

    for name in MAY_IMPORT:
        below(name)


def test_no_clock_outside_the_bench_clock() -> None:
    clocks = re.compile(r"perf_counter|time\.time\(|cuda\.Event|elapsed_time")
    rooms = [ROOT / room for room in ("bench", "runtimes", "device", "engines")]
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for room in rooms
        for path in sorted(room.rglob("*.py"))
        if path != ROOT / "bench" / "clock.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if clocks.search(line)
    ]
    assert not wrong


def test_no_file_is_over_400_lines() -> None:
    assert not [f"{path.relative_to(ROOT)}: {n}" for path in FILES if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400]
