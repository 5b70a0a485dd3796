"""benchmarks/fused_flows.py with scripted times: what is timed, in which order it is told, and what is told of a wrong answer."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

ROOT = Path(__file__).resolve().parents[1]


def test_every_order_of_the_grids_work_is_timed_beside_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_flows

    class Scripted:
        """Blocks take a microsecond less, and one of them answers otherwise."""

        added: ClassVar[list[Any]] = []

        def parts(self, ways: Any, until: Any) -> Any:
            return {way: way.flow for way in ways if way.flow.pause != 400}

        def add(self, way: Any, part: Any) -> None:
            assert part == way.flow
            self.added.append(way)

        def compare(self, chains: Any, single: bool = False) -> list[list[float]]:
            wrong = self.added[-1]
            return [[float("inf") if way is wrong else 10.0 + single - way.flow.blocks + way.flow.pause / 1000 for (way,) in chains]]

    scripted = Scripted()
    monkeypatch.setattr(fused_flows, "Kernels", lambda *given: scripted)
    monkeypatch.setattr(fused_flows, "opened", lambda *given: contextlib.nullcontext(scripted))
    monkeypatch.setattr(fused_flows.device, "parse", lambda text: "cuda:0")
    monkeypatch.setattr(fused_flows.device, "describe", lambda on: SimpleNamespace(name="some GPU"))
    limits = SimpleNamespace(sms=132, capability=(9, 0))
    monkeypatch.setattr(fused_flows.kernels, "limits", lambda on: limits)
    monkeypatch.setattr(sys, "argv", ["fused_flows.py", "--networks", "student_a", "--out", str(tmp_path / "flows.json")])
    assert fused_flows.main() == 0
    rows = json.loads((tmp_path / "flows.json").read_text())["networks"]["student_a"]
    assert len(rows) == len(fused_flows.flows(3)) - 6
    assert fused_flows.flows(3)[0] == fused_flows.Flow()
    assert (rows[0]["blocks"], rows[0]["us"], rows[0]["single_us"]) == (True, 9.0, 10.0)
    assert (rows[-1]["us"], rows[-1]["single_us"]) == (None, None)
