"""`benchmarks/serve_load.py`, short, and what its check finds; the whole one is run by hand and holds the bound."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _package in ("starlette", "uvicorn", "httptools", "prometheus_client", "PIL.Image"):
    pytest.importorskip(_package, reason="the extra serve is not installed")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serve_load.py"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        spec = importlib.util.spec_from_file_location("serve_load", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "serve_load", module)
        spec.loader.exec_module(module)
        yield module


def test_no_request_of_a_short_run_is_lost_and_the_page_has_it_all(script: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "FACTOR", 1000)  # nothing is known of a machine that runs tests
    monkeypatch.setattr(script, "GROWTH_MB", 1000)
    options = script.parse(["--seconds", "0.2", "--rounds", "2"])

    case = script.measure(Path("engines"), "tiny", 1, options)

    assert case.problems() == []
    assert (case.variant, case.exit_code, len(case.rounds)) == ("onnxruntime:fp32", 0, 2)
    assert set(case.asked) == {"200", "503"}
    assert case.counted == case.asked
    page = script.page([case], options, 0.5)
    assert "## tiny, onnxruntime:fp32, --max-concurrency 1" in page
    assert "All as wanted." in page
    assert f"503: {case.asked['503']}; as the clients" in page


@pytest.fixture
def whole(script: Any) -> Any:
    """A case with nothing to complain of: 10 ms unloaded, 29 ms loaded."""
    found = script.Round(np.full(100, 10.0), 100.0, 200.0, np.full(50, 29.0), 50, 0, 0.1, 120.0)
    return script.Case("net", "fake:fp32", 1, (found, found), {"200": 300, "503": 100}, {"200": 300, "503": 100}, 0)


def test_a_case_where_all_is_well_has_no_problems(whole: Any) -> None:
    assert whole.problems() == []
    assert whole.ratio == pytest.approx(2.9)


@pytest.mark.parametrize(
    ("of_case", "of_last_round", "problem"),
    [
        ({}, {"accepted": np.full(50, 31.0)}, "p99 is 3.10 times the unloaded one"),
        ({}, {"other": 1}, "neither 200 nor 503, or not at all"),
        ({}, {"refused": 0}, "this was no overload"),
        ({}, {"rss_mb": 124.1}, "memory grew by 4.1 MB"),
        ({"counted": {"200": 299, "503": 100}}, {}, "/metrics counts"),
        ({"exit_code": -15}, {}, "exit code -15"),
    ],
)
def test_each_thing_that_is_not_as_wanted_is_a_problem(whole: Any, of_case: Any, of_last_round: Any, problem: str) -> None:
    rounds = (whole.rounds[0], dataclasses.replace(whole.rounds[1], **of_last_round))
    (found,) = dataclasses.replace(whole, rounds=rounds, **of_case).problems()
    assert problem in found


def test_the_bound_is_told_and_not_judged_where_more_run_at_once_than_by_default(script: Any, whole: Any) -> None:
    rounds = tuple(dataclasses.replace(found, accepted=np.full(50, 31.0)) for found in whole.rounds)
    crowded = dataclasses.replace(whole, rounds=rounds, slots=100)
    assert crowded.problems() == []
    assert script.verdict(crowded)[-1].startswith("More at once than the default")


def test_a_check_that_fails_is_exit_code_3_and_told(script: Any, whole: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    slow = dataclasses.replace(whole, exit_code=-9)
    for case, code, told in ((whole, 0, "ok"), (slow, 3, "exit code -9")):
        monkeypatch.setattr(script, "measure", lambda *_, case=case: case)
        assert script.main(["--case", "net:1", "--check"]) == code
        assert script.main(["--case", "net:1"]) == 0
        assert told in capsys.readouterr().out
