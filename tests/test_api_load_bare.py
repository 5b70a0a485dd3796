"""A service with the base package and one runtime: nothing else can be imported, torch least of all, and accel.load works."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

requirements = pytest.importorskip("packaging.requirements")
if sys.version_info < (3, 11):
    pytest.skip("needs tomllib", allow_module_level=True)
import tomllib  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

PROGRAM = """
import asyncio, json, sys

allowed = set(json.loads(sys.argv[1])) | set(sys.stdlib_module_names) | {"accel"}

class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyThese())
import numpy as np
import accel

with accel.load(sys.argv[2], **json.loads(sys.argv[3])) as engine:
    images = np.load(sys.argv[4])
    one, awaited = engine(images), asyncio.run(engine.run_async(images))
    found = engine.explain()
print(json.dumps({"equal": bool((one == awaited).all()), "logits": one.tolist(), "variant": found["variant"], "golden": found["golden"],
                  "imported": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def brought_by(*extras: str) -> set[str]:
    """Top-level modules of what `pip install 'accel-engines[EXTRAS]'` brings here, by what each package says that it needs."""
    modules: dict[str, set[str]] = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            modules.setdefault(plain(name), set()).add(module)
    waiting = [
        requirements.Requirement(text)
        for text in (*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra]))
    ]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        item = waiting.pop()
        if item.marker is not None and not any(item.marker.evaluate({"extra": extra}) for extra in ("", *item.extras)):
            continue
        key = plain(item.name), frozenset(item.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            needs = importlib.metadata.requires(item.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in needs:
            need = requirements.Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *item.extras)):
                need.marker = None
                waiting.append(need)
    return set().union(*(modules.get(name, set()) for name, _ in seen))


def plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_what_the_extra_brings_is_worked_out_and_has_no_torch() -> None:
    pytest.importorskip("onnxruntime")
    found = brought_by("ort")
    assert {"numpy", "filelock", "platformdirs", "onnxruntime"} <= found
    assert not {"torch", "torchvision", "onnx", "PIL", "scipy", "pytest"} & found
    assert "PIL" in brought_by("ort", "images")
    assert "torch" in brought_by("train")


@pytest.mark.parametrize("asked", [{}, {"device": "cpu", "runtime": "onnxruntime:fp32", "threads": 1}, {"strict": False, "device": "cpu"}])
def test_with_the_ort_extra_alone_an_onnx_engine_is_loaded_checked_called_and_awaited(tiny: Path, tmp_path: Path, asked: dict) -> None:
    import numpy as np

    from accel import device
    from accel.engines import Bundle

    if device.gpu_available()[0] and "device" not in asked:
        asked = {"device": "cpu"}
    golden = Bundle.open(tiny).golden()
    np.save(tmp_path / "images.npy", golden.inputs["input"][:3])
    given = [json.dumps(sorted(brought_by("ort"))), str(tiny), json.dumps(asked), str(tmp_path / "images.npy")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *given], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["variant"], found["equal"]) == ("onnxruntime:fp32", True)
    assert (found["golden"] or {}).get("status") == (None if asked.get("strict") is False else "passed")
    np.testing.assert_allclose(found["logits"], golden.outputs["output"][:3], atol=1e-5)
    assert not {"torch", "onnx", "typer", "scipy", "PIL"} & set(found["imported"])


def test_what_needs_torch_says_so_with_the_extra_and_takes_nothing_else_instead(tiny: Path, tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "images.npy", np.zeros((1, 3, 8, 8), np.float32))
    asked = json.dumps({"runtime": "torchscript", "device": "cpu"})
    given = [json.dumps(sorted(brought_by("ort"))), str(tiny), asked, str(tmp_path / "images.npy")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *given], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1
    assert "MissingExtra: torchscript:fp32 comes first here" in done.stderr
    assert "pip install 'accel-engines[train]'" in done.stderr
