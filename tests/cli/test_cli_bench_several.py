"""`accel bench A B`: two bundles in real worker processes, and what cannot be asked of several."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel import api
from accel.engines import measured
from accel.errors import UsageError

Cli = Callable[..., Any]


def test_two_bundles_get_a_set_each_of_one_session(accel_cli: Cli, tiny: Path, tiny_data: str, tiny_weights: Path, tmp_path: Path) -> None:
    how = ["--weights", tiny_weights, "--input", "1x3x8x8", "--name", "other", "--device", "cpu"]
    assert accel_cli("export", "nets:build", "--to", "onnx", *how).code == 0
    plan = ["--iterations", "12", "--rounds", "2", "--warmup", "2", "--no-baseline", "--device", "cpu", "--data", tiny_data]
    ran = accel_cli("bench", "tiny", "other", "--runtime", "ort:fp32", "--runtime", "torchscript:fp32", *plan, "--export-csv", "rows.csv")
    assert ran.code == 4  # an engine that was named is missing in one of the two
    assert "1 variant of other has no good result\n  torchscript:fp32 is MISSING" in ran.err
    sets = {json.loads(path.read_text())["model"]: json.loads(path.read_text()) for path in Path("results/local").glob("*/set.json")}
    assert {name: found["state"] for name, found in sets.items()} == {"tiny": "finished", "other": "finished"}
    assert sets["tiny"]["session"] == sets["other"]["session"] == sets["tiny"]["set_id"]
    rows = [row for row in csv.DictReader((tmp_path / "rows.csv").open()) if row["latency_kind"] == "host_us"]
    timed = {(row["model"], row["variant"], row["round"]) for row in rows}
    assert timed == {
        (*who, number)
        for who in (("tiny", "onnxruntime:fp32"), ("tiny", "torchscript:fp32"), ("other", "onnxruntime:fp32"))
        for number in "01"
    }
    assert len({row["input_sha256"] for row in rows}) == 1
    for path in Path("results/local").iterdir():
        assert {"results.jsonl", "results.csv", "samples.npz", "settings.json", "table.md"} <= {item.name for item in path.iterdir()}
    for name in ("tiny", "other"):
        (known,) = measured.read(Path(f"engines/{name}.accel")).values()
        assert "onnxruntime:fp32" in {row["variant"] for row in known["rows"]}
    (command,) = re.findall(r"`accel (compare [^`]+)`", ran.err)
    compared = accel_cli(*shlex.split(command), "--format", "json")
    assert compared.code == 0, compared.err
    found = {row["variant"]: row for row in json.loads(compared.out)}["onnxruntime:fp32"]
    assert (found["model"], found["against"], found["rounds"]) == ("other", "onnxruntime:fp32 of tiny", 2)


def test_nothing_named_is_refused() -> None:
    with pytest.raises(UsageError, match="no bundle was named"):
        api.bench([])


def test_a_store_that_accel_does_not_know_is_refused_before_anything_is_timed(accel_cli: Cli, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "engines" / "copy.accel")
    ran = accel_cli("bench", "tiny", "copy", "--device", "cpu", "--track", "notebook")
    assert (ran.code, Path("results").exists()) == (2, False), ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny", "engines/tiny.accel"), "engines/tiny.accel is named twice"),
        (("tiny", "other", "--aa", "--runtime", "eager"), "--aa runs the variants of one bundle, and 2 were named"),
    ],
)
def test_what_cannot_be_asked_of_several_is_refused(accel_cli: Cli, tiny: Path, words: tuple[str, ...], message: str) -> None:
    ran = accel_cli("bench", *words, "--device", "cpu")
    assert ran.code == 2
    assert message in ran.err
    assert not Path("results").exists()
