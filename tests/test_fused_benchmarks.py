"""benchmarks/fused_check.py on a driver of host memory: every check runs, a right engine passes them, and a wrong one does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from exporters.fused import handmade
from fake_cuda import installed
from fake_kernels import KernelDriver

from accel import device
from accel.exporters.fused import exporting

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ("layers", "times", "refused", "repeat", "threads", "crowded")


class TimedDriver(KernelDriver):
    """With events, a microsecond apart from each other."""

    def _cuEventCreate(self, flags: int) -> tuple[int]:  # noqa: N802
        return (1,)

    def _cuEventElapsedTime(self, begin: int, end: int) -> tuple[float]:  # noqa: N802
        return (0.001,)


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, dict[str, Any]]]]:
    """check(kernels) → exit code and record of a run with the handmade network."""
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_check

    monkeypatch.setattr(exporting, "GENERATOR", "exporters.fused.handmade:generate")
    monkeypatch.setattr(fused_check, "NETWORKS", {"hand": handmade.network})
    monkeypatch.setattr(fused_check, "SHIPPED", ("hand",))
    monkeypatch.setattr(device, "parse", lambda text: "cuda:0")
    for name, value in {"WARM_S": 0.0, "LENGTH": 2, "ROUNDS": 2}.items():
        monkeypatch.setattr(fused_check.fused_timing, name, value)

    def run(kernels: dict[str, Any], *arguments: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "check.json"
        words = ["--launches", "5", "--samples", "3", "--images", "2", "--seed", "1", "--out", str(out), *arguments]
        monkeypatch.setattr(sys, "argv", ["fused_check.py", *words])
        with installed(TimedDriver({"crowd": lambda arguments: None, **kernels})) as driver:
            driver.parameters["crowd"] = 1
            code = fused_check.main()
        return code, json.loads(out.read_text())

    yield run
    sys.modules.pop("fused_check", None)


def test_a_right_engine_passes_every_check_of_every_schedule(check: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, record = check(handmade.EMULATED)
    assert [(row["schedule"], row["check"]) for row in record["rows"]] == [(name, what) for what in CHECKS for name in ("chain", "grid")]
    assert {row["ok"] for row in record["rows"]} == {True}, record
    assert code == 0
    by = {(row["schedule"], row["check"]): row for row in record["rows"]}
    assert set(by["grid", "layers"]["of"]) == {"mean", "fc"}
    assert "1 of them cooperative; the graph has 1 and 0" in by["grid", "refused"]["not cooperative"]
    assert "resident at once" in by["grid", "refused"]["does not fit"]
    assert list(by["chain", "times"]["kernels_us"]) == ["mean", "fc"]
    assert "cluster of one CTA" in record["left_out"]["hand"]["cluster"]


def test_an_engine_that_leaves_a_layer_out_or_wavers_fails(check: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    draw = np.random.default_rng(0)

    def wavering(arguments: Any) -> None:
        handmade.fc(arguments)
        logits = handmade._array(arguments[3], (handmade.CLASSES,), np.float32)
        logits += draw.standard_normal(handmade.CLASSES).astype(np.float32) * np.float32(1e-4)

    code, record = check({"mean": lambda arguments: None, "fc": wavering, "whole": lambda arguments: None})
    failed = {(row["schedule"], row["check"]) for row in record["rows"] if row["ok"] is False}
    assert code == 1
    assert failed >= {("chain", "layers"), ("grid", "layers"), ("chain", "repeat"), ("grid", "repeat"), ("chain", "threads")}


def test_what_the_time_does_not_suffice_for_is_said(check: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, record = check(handmade.EMULATED, "--seconds", "-1")
    assert code == 0
    assert {(row["ok"], row["reason"]) for row in record["rows"]} == {(None, "not run: no time left")}


def test_without_a_gpu_it_compiles_and_prints_what_kernels_use(
    check: Callable[..., tuple[int, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = check(handmade.EMULATED, "--compile-only")
    said = capsys.readouterr().out
    assert code == 0
    assert [line.split()[3] for line in said.splitlines() if line.startswith("hand")] == ["mean", "fc", "whole"]
