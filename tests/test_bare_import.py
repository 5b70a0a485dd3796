"""`import accel`, `accel --help` and every submodule work where only the base dependencies are installed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ["torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "tensorrt", "cuda", "PIL", "scipy", "matplotlib", "jinja2", "pynvml"]
HEAVY += ["mlflow", "pandas", "ray", "fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "optuna"]
HEAVY += ["cryptography", "prometheus_client"]

BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None
sys.meta_path.insert(0, Blocker())
"""


def bare(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter where the heavy packages are absent."""
    return subprocess.run([sys.executable, "-c", BLOCKER + code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_submodule_imports_without_the_heavy_packages() -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in (ROOT / "accel").rglob("*.py")
    )
    code = f"""
import importlib, json
failed = {{}}
for name in {modules!r}:
    if name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps(failed))
"""
    done = bare(code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["config"],
        ["version"],
        ["export", "--help"],
        ["bench", "--help"],
        ["predict", "--help"],
        ["report", "--help"],
        ["serve", "--help"],
    ],
)
def test_the_command_line_answers_without_the_heavy_packages(arguments: list[str]) -> None:
    done = bare(f"from accel.cli import main\nsys.exit(main({arguments!r}))")
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_face_imports_nothing_heavy() -> None:
    done = bare("import accel, json; print(json.dumps(sorted(sys.modules)))")
    names = json.loads(done.stdout)
    assert not {"numpy", "typer", "accel.api", "accel.types", "importlib.metadata"} & set(names)


def test_the_command_line_starts_without_numpy_or_rich() -> None:
    done = bare("import accel.cli, json; print(json.dumps(sorted(sys.modules)))")
    assert not {"numpy", "rich", "accel.api"} & set(json.loads(done.stdout))


def test_help_answers_in_half_a_second_where_python_starts_in_twenty_milliseconds() -> None:
    def taken(*arguments: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    # Side by side and the best of several: neither a slow machine nor a busy one is a slow start.
    pairs = [(taken("-c", "pass"), taken("-m", "accel", "--help")) for _ in range(5)]
    bare, answered = map(min, zip(*pairs, strict=True))
    assert answered < 25 * bare


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    done = bare("from accel.cli import main\nsys.exit(main(['export', '--to', 'onnx', '--dry-run', '--weights', 'x', 'json:loads']))")
    assert done.returncode in (2, 4), done.stderr
    assert "to mend it" in done.stderr
    assert "Traceback" not in done.stderr
