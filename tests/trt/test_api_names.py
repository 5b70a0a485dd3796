"""The list of TensorRT's names is what the code uses, and what the libraries have that can be imported without a GPU."""

from __future__ import annotations

import ast
import importlib
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from accel.exporters import tensorrt_config, tensorrt_macs, tensorrt_network
from accel.trt import names

ROOT = Path(__file__).resolve().parents[2] / "accel"
FILES = sorted([*(ROOT / "trt").glob("*.py"), *(ROOT / "exporters").glob("tensorrt*.py"), *(ROOT / "runtimes").glob("tensorrt*.py")])
TRT10 = Path(sys.prefix) / "trt10"
"""Where `make test` puts the lean runtime of TensorRT 10."""
OURS = set(importlib.import_module("accel.trt").__all__)
EVERY = (names.RUNNING, names.BUILDING, names.BUILDING_AHEAD, names.GONE)


def root_of(node: ast.expr) -> str:
    """`self._engine` → `engine`."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.lstrip("_")


def used(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(class, attribute) of every use of TensorRT's API; (class, "") where a class is named."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            if root_of(node.value) == "trt":
                if node.attr not in OURS:
                    yield node.attr, ""
            elif root_of(node.value) in names.VARIABLES:
                yield names.VARIABLES[root_of(node.value)], node.attr
            elif isinstance(node.value, ast.Attribute) and root_of(node.value.value) == "trt":
                yield node.value.attr, node.attr
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                if isinstance(base, ast.Attribute) and root_of(base.value) == "trt":
                    methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]
                    yield from ((base.attr, method) for method in methods if not (base.attr == "ILogger" and method == "listening"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_uses_only_listed_names(path: Path) -> None:
    listed = {(name, attribute) for table in EVERY for name, attributes in table.items() for attribute in ("", *attributes)}
    missing = set(used(ast.parse(path.read_text(encoding="utf-8")))) - listed
    assert not missing, f"add to accel/trt/names.py: {sorted(missing)}"


def test_the_scan_sees_every_way_of_naming_the_api() -> None:
    source = """
flag = trt.BuilderFlag.FP16
self._engine.get_tensor_mode(name)
parsed.builder.create_network(0)
library.trt.Runtime(log)
class Monitor(trt.IProgressMonitor):
    def phase_start(self): ...
"""
    found = set(used(ast.parse(source)))
    assert {("BuilderFlag", "FP16"), ("ICudaEngine", "get_tensor_mode"), ("Builder", "create_network")} <= found
    assert {("Runtime", ""), ("IProgressMonitor", "phase_start"), ("IProgressMonitor", "")} <= found


def test_names_that_are_asked_for_as_text_are_listed() -> None:
    kinds = {*names.BUILDING["NetworkDefinitionCreationFlag"], *names.GONE["NetworkDefinitionCreationFlag"]}
    assert {tensorrt_network.STRONG, tensorrt_network.WEAK} == kinds
    assert tensorrt_config.HARDWARE_LEVEL in names.BUILDING["HardwareCompatibilityLevel"]
    classes = {name for name, _ in tensorrt_macs._KINDS.values()}
    assert classes <= {*names.BUILDING, *names.GONE}
    assert {*tensorrt_macs._KINDS} - {"FULLY_CONNECTED"} == {*names.BUILDING["LayerType"]}


def absent(module: object, table: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [f"{name}.{attribute}" for name, attributes in table.items() for attribute in attributes if not has(module, name, attribute)]


def has(module: object, name: str, attribute: str) -> bool:
    return hasattr(getattr(module, name, None), attribute)


def test_tensorrt_rtx_has_every_name() -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed", exc_type=ImportError)
    for table in (names.RUNNING, names.BUILDING, names.BUILDING_AHEAD):
        assert absent(trt, table) == []
    assert len(absent(trt, names.GONE)) == sum(map(len, names.GONE.values()))


def check_lean(trt: Any, major: int) -> None:
    """Hold a lean library, which only runs plans, against the list."""
    assert trt.__version__.startswith(f"{major}.")
    told = {name: attributes for name, attributes in names.RUNNING.items() if hasattr(trt, name)}
    assert absent(trt, told) == []
    # What it lacks of the list is the inspector and the layout of tensors.
    assert {*names.RUNNING} - {*told} <= {"EngineInspector", "TensorFormat"}
    shared = {name: attributes for name, attributes in names.BUILDING.items() if hasattr(trt, name)}
    assert {"BuilderFlag", "HardwareCompatibilityLevel", "IProgressMonitor", "ITimingCache", "MemoryPoolType", "TacticSource"} <= {*shared}
    assert absent(trt, shared) == []
    # The flag of 8.6 is there until 11.
    assert hasattr(trt.BuilderFlag, "FP16") == (major < 11)


def test_tensorrt_11_has_every_name_of_a_runtime() -> None:
    trt = pytest.importorskip("tensorrt_lean_bindings", reason="TensorRT's lean runtime is not installed", exc_type=ImportError)
    check_lean(trt, 11)


def test_tensorrt_10_has_every_name_of_a_runtime() -> None:
    if not (TRT10 / "tensorrt_lean_bindings").is_dir():
        pytest.skip("the lean runtime of TensorRT 10 is not installed (make test does)")
    # In a process of its own: both are modules of the same name.
    code = f"import sys; sys.path[:0] = {[str(TRT10), *sys.path]}; import tensorrt_lean_bindings as trt; "
    code += "from test_api_names import check_lean; check_lean(trt, 10)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_wheels_that_make_test_installs_can_be_imported() -> None:
    """Where `make test` has put them, a wheel that does not import is a failure and no reason to skip."""
    if not (TRT10 / ".installed").is_file() or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("not an environment of `make test` on Linux x86-64")
    for module in ("tensorrt_rtx_bindings", "tensorrt_lean_bindings"):
        importlib.import_module(module)
    assert (TRT10 / "tensorrt_lean_bindings").is_dir()
