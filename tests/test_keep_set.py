"""benchmarks/keep_set.py: what a repository keeps of a set."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from report.report_sets import write_set

from accel.bench.results import open_results, read_samples
from accel.report import table as tables
from accel.report.sections import open_sections

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "keep_set.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("keep_set", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_kept_set_has_the_same_figures_and_no_path_of_the_machine(script: ModuleType, tmp_path: Path) -> None:
    measured = write_set(
        tmp_path / "measured", {"eager:fp16": {"host_us": 100, "device_us": 80, "command": "accel bench --out /home/me/x/sets"}}
    )
    (measured / "set.json").write_text('{"state": "/home/me/x/engines"}')
    (measured / "table.md").write_text("/home/me/x")

    assert script.main([str(measured), str(tmp_path / "results"), "--call", "/home/me/x=out", "--call", "/home/me=~"]) == 0

    kept = tmp_path / "results" / "measured"
    assert {path.name for path in kept.iterdir()} == {"set.json", "results.jsonl.xz", "samples.npz"}
    assert (kept / "set.json").read_text() == '{\n "state": "out/engines"\n}\n'
    before, after = open_results(measured), open_results(kept)
    assert {row["command"] for row in after.rows} == {"accel bench --out out/sets"}
    assert [{**row, "command": ""} for row in after.rows] == [{**row, "command": ""} for row in before.rows]
    old, new = read_samples(measured / "samples.npz"), read_samples(kept / "samples.npz")
    assert list(old) == list(new)
    assert all(np.array_equal(old[key], new[key]) for key in old)
    content = {path.name: path.read_bytes() for path in kept.iterdir()}

    assert script.main([str(kept), str(tmp_path / "results")]) == 0  # once more, in its place
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == content


def test_raw_samples_of_one_latency_alone(script: ModuleType, tmp_path: Path) -> None:
    measured = write_set(tmp_path / "measured", {"eager:fp16": {"host_us": 100, "device_us": 80}})
    (measured / "set.json").write_text('{"set_id": "another"}')
    whole = read_samples(measured / "samples.npz")

    assert script.main([str(measured), str(tmp_path / "results"), "--samples", "host_us"]) == 0

    assert script.main([str(measured), str(tmp_path / "other"), "--samples", "hots_us"]) == 2
    assert not (tmp_path / "other").exists()
    kept = read_samples(tmp_path / "results" / "measured" / "samples.npz")
    assert kept.keys() == {key for key in whole if key.endswith("/host_us")} < whole.keys()
    (said,) = (note for note in tables.notes(open_sections([tmp_path / "results" / "measured"])[0]) if "raw samples" in note)
    assert said.startswith("Of device the raw samples are not here: each figure is the median of what the rounds had")


def test_without_samples_and_of_a_folder_that_is_no_set(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = write_set(tmp_path / "measured", {"eager:fp16": {"host_us": 100}})
    (measured / "set.json").write_text("{}")

    assert script.main([str(measured), str(tmp_path / "results"), "--no-samples"]) == 0
    assert not (tmp_path / "results" / "measured" / "samples.npz").exists()

    assert script.main([str(tmp_path), str(tmp_path / "other")]) == 2
    assert "is not there" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
