"""The commands on a real, tiny bundle: what they print and where."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import accel
from accel.engines import measured

Cli = Callable[..., Any]


def test_version_names_the_distribution(accel_cli: Cli) -> None:
    assert accel_cli("version").out.startswith("accel-engines 0.")


def test_config_says_where_each_value_came_from(accel_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCEL_BENCH_ROUNDS", "2")
    (tmp_path / "accel.toml").write_text('device = "cpu"\n')
    rows = {row["key"]: row for row in json.loads(accel_cli("config", "--format", "json").out)}
    assert (rows["device"]["value"], rows["device"]["source"]) == ("cpu", "accel.toml:1")
    assert (rows["bench.rounds"]["value"], rows["bench.rounds"]["source"]) == (2, "ACCEL_BENCH_ROUNDS")
    assert rows["seed"]["source"] == "default"


@pytest.mark.parametrize("format", ["table", "csv", "markdown"])
def test_every_format_holds_the_same_rows(accel_cli: Cli, format: str) -> None:
    out = accel_cli("config", "--format", format).out
    assert "bench.iterations" in out
    assert "\x1b[" not in out
    if format == "csv":
        assert next(csv.DictReader(io.StringIO(out)))["key"] == "device"


def test_brackets_in_a_table_are_text_and_not_markup() -> None:
    from accel.cli.output import as_table

    assert "pip install 'accel-engines[ort]'" in as_table([{"fix": "pip install 'accel-engines[ort]'"}], ["fix"])


def test_export_prints_one_row_a_format_and_writes_it_as_csv(accel_cli: Cli, tiny: Path, tiny_weights: Path, tmp_path: Path) -> None:
    given = ["nets:build", "--weights", tiny_weights, "--input", "1x3x8x8", "--name", "tiny", "--device", "cpu"]
    ran = accel_cli("export", *given, "--to", "onnx", "--to", "torchscript", "--fp16", "--format", "json", "--export-csv", "out.csv")
    assert ran.code == 0, ran.err
    assert [(row["engine"], row["status"], row["parity"]) for row in json.loads(ran.out)] == [
        ("onnx-fp16", "kept", "passed"),
        ("torchscript-fp16", "kept", "passed"),
    ]
    assert (tmp_path / "out.csv").read_text().startswith("engine,status,")


def test_inspect_is_readable_and_says_which_file_was_edited(accel_cli: Cli, tiny: Path) -> None:
    (tiny / "onnx-fp16" / "model.onnx").write_bytes(b"edited")
    ran = accel_cli("inspect", "tiny")
    assert ran.code == 0
    for expected in ("nets:build", "input float32 batchx3x8x8 NCHW", "8 samples", "onnx-fp32", "whole", "has SHA-256"):
        assert expected in ran.out
    data = json.loads(accel_cli("inspect", "engines/tiny.accel", "--format", "json").out)
    assert data["trusted"] is True
    assert {engine["name"]: engine["state"] == "whole" for engine in data["engines"]} == {
        "onnx-fp32": True,
        "torchscript-fp32": True,
        "onnx-fp16": False,
        "torchscript-fp16": True,
    }


def test_verify_and_bench_on_the_cpu(accel_cli: Cli, tiny: Path, tiny_data: str, tmp_path: Path) -> None:
    """One story, because verification takes a process a variant: verify, then bench finds the results, then a gate that fails."""
    ran = accel_cli("verify", "tiny", "--variant", "onnxruntime", "--data", tiny_data, "--format", "json")
    assert ran.code == 0, ran.err
    rows = {row["variant"]: row for row in json.loads(ran.out)}
    assert rows["onnxruntime:fp32"]["top1"] == pytest.approx(100 * 55 / 60)
    assert rows["onnxruntime:fp32"]["n_flips"] == 0
    assert rows["onnxruntime:fp16"]["verdict"] == "REFUSED"

    plan = ["--iterations", "30", "--rounds", "2", "--warmup", "2", "--data", tiny_data]
    ran = accel_cli("bench", "tiny", "--runtime", "onnxruntime", "--no-baseline", *plan, "--export-csv", "rows.csv")
    assert ran.code == 0, ran.err
    assert "91.67" in ran.out
    assert "custom plan: warm-up 2, 30 iterations, 2 rounds" in ran.out
    assert "no FP16 kernels on this CPU" in ran.out
    assert len(list(csv.DictReader((tmp_path / "rows.csv").open()))) == 1 + 2 * 2
    (folder,) = (tmp_path / "results" / "local").iterdir()
    assert {"results.jsonl", "results.csv", "samples.npz", "settings.json", "table.md"} <= {path.name for path in folder.iterdir()}

    # What was measured is in the bundle, for accel.load.
    (known,) = measured.read(tiny).values()
    assert [row["variant"] for row in known["rows"]] == ["onnxruntime:fp32"]
    with accel.load(tiny, device="cpu") as engine:
        assert engine.explain()["why"].startswith("the fastest of 1 that accel bench verified and measured on ")
    ran = accel_cli("bench", "tiny", "--runtime", "ort:fp32", "--no-baseline", *plan, "--min-top1", "95")
    assert ran.code == 3
    assert "at least 95 % are needed" in ran.err


EVERY_OPTION = {
    "export": "m --to onnx --precision fp16 --opset 17 --batch 4 --out o --weights w --input 1x3 --name n --device cpu --dry-run --force "
    "--trusted --embed-preprocess --flavor rtx --compute-capability 8.6 --workspace 1G --optimization-level 2 --timing-cache off "
    "--version-compatible --hardware-compatible --tactic-sources jit-convolutions --builds 2 --allow-mixed "
    "--min-batch 1 --opt-batch 2 --max-batch 4 --tune --budget 90s",
    "verify": "b --variant v --data d --metric m --max-drop 1 --min-top1 2 --batch 4 --device cpu --trusted --force",
    "bench": "b --runtime r --warmup 1 --iterations 2 --rounds 3 --max-rounds 4 --batch 4 --threads 5 --l2 cold --idle-ms 3 "
    "--device cpu --out o --aa --no-verify --rebuild --no-baseline --data d --metric m --max-drop 1 --min-top1 2 --trusted --track mlflow",
}


@pytest.mark.parametrize("command", EVERY_OPTION)
def test_every_option_reaches_the_api(command: str, accel_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel import api
    from accel.errors import UsageError

    parameters = inspect.signature(getattr(api, command)).parameters
    seen: dict[str, Any] = {}

    def record(*positional: Any, **named: Any) -> None:
        seen.update(dict(zip(parameters, positional, strict=False)) | named)
        raise UsageError("recorded")

    monkeypatch.setitem(api.__dict__, command, record)
    assert accel_cli(command, *EVERY_OPTION[command].split()).code == 2
    assert seen.keys() == parameters.keys()
    unchanged = [name for name, value in seen.items() if value == parameters[name].default and name not in ("to", "progress")]
    assert unchanged == []
    if command == "export":
        options, fresh = vars(seen["options"]), vars(type(seen["options"])())
        assert [name for name, value in options.items() if value == fresh[name]] == []


def test_iterations_are_a_number_or_auto(accel_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel import api
    from accel.errors import UsageError

    seen: list[Any] = []

    def record(*_: Any, **named: Any) -> None:
        seen.append(named["iterations"])
        raise UsageError("recorded")

    monkeypatch.setitem(api.__dict__, "bench", record)
    for typed in (("--iterations", "auto"), ("--iterations", "600"), ()):
        assert accel_cli("bench", "b", *typed).code == 2
    assert seen == ["auto", 600, None]


def test_data_status_lists_every_split(accel_cli: Cli) -> None:
    rows = json.loads(accel_cli("data", "status", "--format", "json").out)
    assert {(row["name"], row["split"]) for row in rows} >= {("cifar10", "train"), ("cifar10", "test"), ("cifar100", "test")}


def test_train_hands_the_options_on(accel_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel import trainers

    seen: dict[str, Any] = {}

    def train(name: str, **given: Any) -> Any:
        seen.update(given, name=name)
        given["out"].mkdir(parents=True)
        return type("Checkpoint", (), {"path": given["out"], "top1": 95.25})()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCEL_TRAIN_LR", "0.1")
    monkeypatch.setattr(trainers, "train", train)
    ran = accel_cli("train", "resnet18", "--epochs", "2", "--no-amp", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert ran.out == "runs/resnet18 (top-1 95.25 %)\n"
    assert seen["overrides"] == {"epochs": 2, "amp": "off"}
    assert (seen["recipe"].lr, seen["recipe"].epochs) == (0.1, 2)
    assert json.loads((tmp_path / "runs/resnet18/settings.json").read_text())["train.lr"]["source"] == "ACCEL_TRAIN_LR"


def test_train_names_every_model_in_its_help_and_takes_a_dataset(accel_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from accel import trainers
    from accel.cli.train import MODEL_HELP
    from accel.errors import UsageError

    assert re.findall(r"\w+", MODEL_HELP.replace(" or ", " ")) == sorted(trainers.MODELS)
    seen: dict[str, Any] = {}

    def train(name: str, **given: Any) -> Any:
        seen.update(given)
        raise UsageError("recorded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainers, "train", train)
    assert accel_cli("train", "naivenet", "--dataset", "cifar100").code == 2
    assert seen["overrides"] == {"dataset": "cifar100"}
    assert seen["recipe"].model == "naivenet"


EVERY_RECIPE_OPTION = {
    "--epochs 3": {"epochs": 3},
    "--batch-size 8": {"batch_size": 8},
    "--accumulate-grad-steps 4": {"accumulate": 4},
    "--optimizer muon": {"optimizer": "muon"},
    "--schedule triangular": {"schedule": "triangular"},
    "--lr 0.3": {"lr": 0.3},
    "--weight-decay 0.1": {"weight_decay": 0.1},
    "--clip-norm 2": {"clip_norm": 2.0},
    "--label-smoothing 0.2": {"label_smoothing": 0.2},
    "--warmup-epochs 1.5": {"warmup_epochs": 1.5},
    "--ema-decay 0.5": {"ema_decay": 0.5},
    "--no-channels-last": {"channels_last": False},
    "--seed 7": {"seed": 7},
    "--split 45k/5k": {"split": "45k/5k"},
    "--limit 90": {"limit": 90},
    "--train-fraction 0.25": {"train_fraction": 0.25},
    "--cutout 4": {"cutout": 4},
    "--mixup 0.2": {"mixup": 0.2},
    "--cutmix 1": {"cutmix": 1.0},
    "--randaugment 2": {"randaugment": 2},
    "--randaugment-magnitude 5": {"randaugment_magnitude": 5.0},
    "--upscale 128": {"upscale": 128},
    "--rotation 15": {"rotation": 15.0},
    "--translation 0.1": {"translation": 0.1},
    "--scaling 0.2": {"scaling": 0.2},
    "--shear 10": {"shear": 10.0},
    "--teacher resnet18,runs/other": {"teacher": "resnet18,runs/other"},
    "--kd-temperature 2": {"kd_temperature": 2.0},
    "--kd-alpha 0.5": {"kd_alpha": 0.5},
    "--amp off": {"amp": "off"},
    "--no-compile": {"compile": False},
    "--loader workers": {"loader": "workers"},
    "--image-size 64": {"image_size": 64},
    "--deterministic": {"deterministic": True},
}


def test_every_option_of_train_reaches_its_field_of_the_recipe(accel_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel import trainers
    from accel.errors import UsageError
    from accel.trainers import default_recipe

    seen: list[dict[str, Any]] = []

    def train(name: str, **given: Any) -> Any:
        seen.append(given["overrides"])
        raise UsageError("recorded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainers, "train", train)
    for typed, wanted in EVERY_RECIPE_OPTION.items():
        assert accel_cli("train", "resnet18", *typed.split()).code == 2
        assert seen[-1] == wanted
        assert default_recipe("resnet18").replaced(wanted) != default_recipe("resnet18")


def test_selfcheck_prints_seven_checks_and_fails_if_one_does(accel_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.bench import checking

    ran = accel_cli("selfcheck", "--device", "cpu", "--format", "json")
    rows = json.loads(ran.out)
    assert (ran.code, len(rows), {row["result"] for row in rows}) == (0, 7, {"ok"})
    found = checking.simulated()
    bad = dataclasses.replace(found.checks[3], passed=False)
    monkeypatch.setattr(checking, "simulated", lambda: dataclasses.replace(found, checks=(bad,)))
    ran = accel_cli("selfcheck", "--device", "cpu")
    assert ran.code == 3
    assert "FAILED" in ran.out
