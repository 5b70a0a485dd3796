"""pyproject.toml, constraints.txt: what is installed where."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

requirements = pytest.importorskip("packaging.requirements")
if sys.version_info < (3, 11):
    pytest.skip("needs tomllib", allow_module_level=True)
import tomllib  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
VENDOR = ("trt", "rtx")
"""Extras whose packages carry NVIDIA's own licence; nobody gets them without asking."""
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def applying(extra: str, **environment: str) -> list[Any]:
    parsed = [requirements.Requirement(text) for text in EXTRAS[extra]]
    return [item for item in parsed if item.marker is None or item.marker.evaluate(environment)]


@pytest.mark.parametrize(
    ("platform", "machine", "python"),
    list(itertools.product(("linux", "win32", "darwin"), ("x86_64", "AMD64", "aarch64", "arm64"), ("3.10", "3.11", "3.12", "3.13"))),
)
def test_exactly_one_onnxruntime_is_installed_anywhere(platform: str, machine: str, python: str) -> None:
    found = [
        item
        for item in applying("ort", sys_platform=platform, platform_machine=machine, python_version=python)
        if item.name.startswith("onnxruntime")
    ]
    assert len(found) == 1
    (item,) = found
    has_gpu = platform in ("linux", "win32") and machine in ("x86_64", "AMD64")
    assert item.name == ("onnxruntime-gpu" if has_gpu else "onnxruntime")
    assert item.extras == ({"cuda", "cudnn"} if has_gpu else set())
    assert item.specifier.contains("1.31.1") is (python != "3.10")
    assert item.specifier.contains("1.23.2") is (python == "3.10")


def test_the_base_package_stays_small() -> None:
    names = {requirements.Requirement(text).name for text in PROJECT["dependencies"]}
    assert names == {"numpy", "typer", "platformdirs", "filelock", "safetensors", "tomli"}


def test_no_vendor_toolkit_is_part_of_what_the_demo_needs() -> None:
    asked = [text for name, texts in EXTRAS.items() if name not in VENDOR for text in texts]
    assert not [
        text for text in [*asked, *PINS] if text.startswith(("tensorrt", "nvidia-modelopt", "accel-engines[trt", "accel-engines[rtx"))
    ]
    assert EXTRAS["toolkit"] == ["accel-engines[train,onnx,ort,bench]"]


def test_what_was_tested_is_pinned_and_inside_the_ranges() -> None:
    pins = {requirements.Requirement(text).name.lower(): requirements.Requirement(text) for text in PINS}
    tested = (texts for name, texts in EXTRAS.items() if name not in VENDOR)
    for text in itertools.chain(PROJECT["dependencies"], *tested):
        wanted = requirements.Requirement(text)
        here = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
        if wanted.name != "accel-engines" and (wanted.marker is None or wanted.marker.evaluate(here)):
            (pin,) = pins[wanted.name.lower()].specifier
            assert pin.operator == "=="
            assert wanted.specifier.contains(pin.version), f"{wanted} does not allow the pinned {pin.version}"
    assert str(pins["torch"].specifier) == "==2.15.0"


def test_the_repository_stays_below_its_limit() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no repository of git's")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 500
    assert sum(path.lstat().st_size for path in files if path.exists()) < 36 * 2**20


def test_the_wheel_carries_what_is_not_python() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    carried = {item.distribution_path for item in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    data = {str(path.relative_to(ROOT)) for path in (ROOT / "accel").rglob("*.j2")}
    assert "accel/report/page.html.j2" in data
    assert data <= carried
    # Trained weights, plain and packed, and what lies beside them.
    weights = {str(path.relative_to(ROOT)) for path in (ROOT / "accel/trainers/weights").rglob("*") if path.is_file()}
    assert {"accel/trainers/weights/resnet18/weights.safetensors.xz", "accel/trainers/weights/student_b/weights.safetensors"} <= weights
    assert weights <= carried


def test_the_report_needs_its_own_extra_and_the_tests_have_it() -> None:
    assert {requirements.Requirement(text).name for text in EXTRAS["report"]} == {"jinja2", "matplotlib", "scipy"}
    assert "accel-engines[toolkit,report,track,sweep]" in EXTRAS["dev"]


def test_tracking_and_sweeps_need_extras_of_their_own_and_the_tests_have_them() -> None:
    assert {requirements.Requirement(text).name for text in EXTRAS["track"]} == {"mlflow-skinny", "sqlalchemy", "alembic"}
    assert {requirements.Requirement(text).name for text in EXTRAS["sweep"]} == {"optuna"}
    assert not {"track", "sweep"} & requirements.Requirement(EXTRAS["toolkit"][0]).extras


def test_what_scales_out_has_extras_of_its_own_and_ray_is_no_part_of_the_environment_of_the_tests() -> None:
    assert {requirements.Requirement(text).name for text in EXTRAS["mlflow"]} == {"mlflow-skinny", "pandas"}
    (ray,) = map(requirements.Requirement, EXTRAS["ray"])
    assert (ray.name, ray.extras) == ("ray", {"serve"})
    assert not {"mlflow", "ray"} & requirements.Requirement(EXTRAS["toolkit"][0]).extras
    assert "accel-engines[mlflow]" in EXTRAS["dev"]
    assert not [text for text in EXTRAS["dev"] if "ray" in text]
    skinny = {text for name in ("track", "mlflow") for text in EXTRAS[name] if text.startswith("mlflow-skinny")}
    assert len(skinny) == 1


def test_signing_needs_one_package_and_the_tests_have_it() -> None:
    assert {requirements.Requirement(text).name for text in EXTRAS["sign"]} == {"cryptography"}
    assert "accel-engines[sign]" in EXTRAS["dev"]


def test_serving_needs_an_extra_of_its_own_with_the_pillow_of_the_others_and_the_tests_have_it() -> None:
    needed = {"starlette", "uvicorn", "httptools", "prometheus-client", "pillow"}
    assert {requirements.Requirement(text).name for text in EXTRAS["serve"]} == needed
    assert EXTRAS["images"][0] in EXTRAS["serve"]
    assert "accel-engines[serve]" in EXTRAS["dev"]
    assert "serve" not in requirements.Requirement(EXTRAS["toolkit"][0]).extras


def test_predicting_on_pictures_needs_pillow_alone_of_the_range_that_training_has() -> None:
    (pillow,) = EXTRAS["images"]
    assert requirements.Requirement(pillow).name == "pillow"
    assert pillow in EXTRAS["train"]
    assert pillow in EXTRAS["bench"]


def test_the_version_is_the_packages_own() -> None:
    import accel

    assert PROJECT["dynamic"] == ["version"]
    assert accel.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
