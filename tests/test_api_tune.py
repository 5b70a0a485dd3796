"""`accel tune` and `accel export --to best` on a real, tiny network: what is printed, recorded and loaded afterwards."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import accel
from accel.api import choosing, tune_steps, tuning
from accel.api.tune_steps import Step
from accel.bench import worker
from accel.engines import Bundle, tuned
from accel.types import Variant

Cli = Callable[..., Any]

QUICK = ("--warmup", "2", "--iterations", "30", "--rounds", "2", "--threads", "1", "--device", "cpu")
STEPS = (Step("baseline", "eager:fp32"), Step("runtime", "tensorrt:fp16"), Step("runtime", "onnxruntime:fp32"))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Three steps, and workers that stay in this process, listed by mode and variant: starting them is what would take long."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    found: list[tuple[str, str]] = []

    def launch(request: dict[str, Any], python: str, folder: Path, progress: Any) -> dict[str, Any]:
        found.append((request["mode"], request["variant"]))
        reply, arrays = worker.answer(request, progress)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "arrays.npz", **arrays)
        return reply

    monkeypatch.setattr(tuning, "spawn", launch)
    monkeypatch.setitem(tune_steps.STEPS, "cpu", STEPS)
    yield found
    torch.set_num_threads(threads)


def test_export_to_best_ends_with_the_best_engine_in_the_bundle_and_load_takes_it(
    accel_cli: Cli, tiny_weights: Path, tiny_data: str, tmp_path: Path, launched: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"WARMUP": "2", "ITERATIONS": "50", "ROUNDS": "3", "THREADS": "1"}.items():
        monkeypatch.setenv(f"ACCEL_BENCH_{name}", value)
    monkeypatch.setenv("ACCEL_VERIFY_DATA", tiny_data)
    monkeypatch.setitem(tune_steps.STEPS, "cpu", (*STEPS[:2], Step("runtime", "torchscript:fp32"), STEPS[2]))
    factory = ("nets:build", "--weights", tiny_weights, "--input", "1x3x8x8", "--name", "tiny")

    ran = accel_cli("export", *factory, "--to", "best", "--device", "cpu", "--budget", "1h")

    assert ran.code == 0, ran.err
    *table, last = ran.out.splitlines()
    # Which of the three is the fastest is this machine's business; that the parts agree about it is not.
    best = last.removeprefix("best: ").partition(",")[0]
    assert best in ("eager:fp32", "torchscript:fp32", "onnxruntime:fp32")
    assert last.endswith("; load it: accel.load('engines/tiny.accel', device='cpu')")
    rows = [line for line in table if ":fp" in line]
    assert [line.split()[1] for line in rows[:4]] == ["eager:fp32", "tensorrt:fp16", "torchscript:fp32", "onnxruntime:fp32"]
    assert "91.67" in rows[0]
    assert "REFUSED: TensorRT runs on NVIDIA GPUs only" in rows[1]
    # TorchScript was not there: the search exported it.
    assert {entry.name for entry in Bundle.open(tmp_path / "engines" / "tiny.accel").entries} == {"onnx-fp32", "torchscript-fp32"}
    with accel.load("engines/tiny.accel", device="cpu") as engine:
        explained = engine.explain()
    assert explained["variant"] == best
    assert explained["why"].startswith("the fastest that passed verification, as accel tune measured on ")

    # The tuned bundle is told of, and the same search again runs nothing.
    shown = accel_cli("inspect", "tiny")
    assert f" {best} " in shown.out.splitlines()[-1]
    assert " finished " in shown.out.splitlines()[-1]
    (record,) = json.loads(accel_cli("inspect", "tiny", "--format", "json").out)["tuned"]
    assert (record["device"], record["best"]["variant"], record["gates"]["data"]) == ("cpu", best, tiny_data)
    assert [row["variant"] for row in record["rows"] if row["decision"] in ("baseline", "keep")][-1] == best
    assert record["environment"]["versions"]["torch"]
    runs = len(launched)
    again = accel_cli("tune", "tiny", "--device", "cpu")
    assert (again.code, again.out) == (0, ran.out)
    assert len(launched) == runs


def test_tune_prints_data_alone_where_data_is_asked_for(
    accel_cli: Cli, tiny: Path, tiny_data: str, tmp_path: Path, launched: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tune_steps.STEPS, "cpu", STEPS[1:])
    given = ("tune", "tiny", *QUICK, "--data", tiny_data, "--max-drop", "0.5", "--min-top1", "90", "--out", tmp_path / "sets")
    ran = accel_cli(*given, "--format", "json", "--export-csv", tmp_path / "rows.csv")
    assert ran.code == 0, ran.err
    first, second = json.loads(ran.out)
    assert (first["verdict"], second["decision"], second["against"]) == ("REFUSED", "baseline", None)
    assert second["top1"] == pytest.approx(91.67, abs=0.01)
    assert "best: onnxruntime:fp32, the baseline" in ran.err
    assert [path.name for path in (tmp_path / "sets").iterdir()] == [second["set_id"]]
    assert (tmp_path / "rows.csv").read_text() == accel_cli(*given, "--format", "csv").out
    assert [row["variant"] for row in csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text()))] == [
        "tensorrt:fp16",
        "onnxruntime:fp32",
    ]
    assert "| runtime | onnxruntime:fp32 | 91.67 |" in accel_cli(*given, "--format", "markdown").out


def test_ctrl_c_keeps_the_best_so_far_and_ends_with_130(
    accel_cli: Cli, tiny: Path, tiny_data: str, launched: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = tuning.spawn

    def interrupted(request: dict[str, Any], *more: Any) -> Any:
        if request["variant"] == "onnxruntime:fp32":
            raise KeyboardInterrupt
        return launch(request, *more)

    monkeypatch.setattr(tuning, "spawn", interrupted)
    ran = accel_cli("tune", "tiny", *QUICK, "--data", tiny_data)
    assert (ran.code, ran.err.splitlines()[-1]) == (130, "accel: interrupted; what was recorded is kept")
    (record,) = tuned.read(tiny).values()
    assert (record["best"]["variant"], record["finished"]) == ("eager:fp32", False)
    with accel.load(tiny, device="cpu") as engine:
        assert str(engine.variant) == "eager:fp32"


def test_load_passes_over_a_measurement_of_other_bytes_or_of_another_machine(tiny: Path) -> None:
    bundle = Bundle.open(tiny)
    variant = Variant("torchscript", "fp32")
    identity = choosing.identify(bundle, variant, 1, bundle.entry("torchscript", "fp32"), "cpu")
    about = {"device": "cpu", "plan": {}, "gates": {}, "environment": {}, "command": "", "rows": [], "finished": True, "updated_utc": "now"}
    here = choosing.devices.name("cpu")

    def chosen() -> list[str]:
        return [str(choice.variant) for choice in choosing.choices(bundle, "auto", "cpu")]

    usual = ["onnxruntime:fp32", "torchscript:fp32", "eager:fp32"]
    tuned.record(tiny, "a", {**about, "machine": "another CPU", "best": {"variant": str(variant), "identity": identity}})
    assert chosen() == usual
    tuned.record(tiny, "b", {**about, "machine": here, "best": {"variant": str(variant), "identity": "0" * 64}})
    assert chosen() == usual
    tuned.record(tiny, "c", {**about, "machine": here, "best": {"variant": "torchscript:fp32+later", "identity": identity}})
    assert chosen() == usual
    tuned.record(tiny, "b", {**about, "machine": here, "best": {"variant": str(variant), "identity": identity}})
    assert chosen() == ["torchscript:fp32", "onnxruntime:fp32", "eager:fp32"]
    # A runtime that was named is not overruled.
    assert [str(choice.variant) for choice in choosing.choices(bundle, "onnxruntime", "cpu")] == ["onnxruntime:fp32"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--to", "best", "--to", "onnx"), "--to best chooses the format itself, and onnx was named"),
        (("--to", "best", "--fp16"), "--to best chooses the engine itself, and --precision was given"),
        (("--to", "best", "--dry-run", "--builds", "3"), "and --dry-run, --builds was given"),
        (("--to", "best", "--budget", "soon"), "'soon' is no budget"),
        (("--to", "onnx", "--budget", "10m"), "--budget is of a search"),
    ],
)
def test_best_goes_with_nothing_that_a_format_is_told(accel_cli: Cli, tiny: Path, typed: tuple[str, ...], said: str) -> None:
    ran = accel_cli("export", "tiny", *typed)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_the_bundle_is_made_with_the_first_format_that_can_be_exported_here(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accel.errors import MissingExtra

    asked: list[str] = []

    def export(model: str, format: str, **given: Any) -> Any:
        asked.append(format)
        if format == "onnx":
            raise MissingExtra("onnx", "onnx")
        return real(model, format, **given)

    real = tuning.export
    monkeypatch.setattr(tuning, "export", export)
    where = {"out": tmp_path, "weights": tiny_weights, "input": "1x3x8x8", "name": "tiny", "device": "cpu"}
    made = tuning._bundle("nets:build", tmp_path, where)
    assert asked == ["onnx", "torchscript"]
    assert [entry.name for entry in made.entries] == ["torchscript-fp32"]
    assert tuning._bundle(made.path, tmp_path, dict.fromkeys(where)).path == made.path
