"""--deterministic, and the precision that a CPU trains in: what is asked of torch, put back, and written down."""

from __future__ import annotations

import json
import os

import pytest

torch = pytest.importorskip("torch")

from accel import trainers  # noqa: E402
from accel.errors import ConfigError  # noqa: E402
from accel.trainers import backend, read_recipe, train  # noqa: E402


def switches() -> tuple:
    cudnn = torch.backends.cudnn
    asked = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return *asked, cudnn.deterministic, cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_a_deterministic_run_forbids_what_differs_and_puts_it_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = switches()
    with backend.deterministic(True), backend.settings(ieee=True):
        assert switches() == (True, False, True, False, ":4096:8")
    assert switches() == before
    with pytest.raises(KeyError), backend.deterministic(True):
        raise KeyError
    assert switches() == before
    with backend.deterministic(False):
        assert switches() == before


def test_a_workspace_of_the_users_own_is_kept_if_it_is_deterministic_and_refused_if_not(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with backend.deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError, match="CUBLAS_WORKSPACE_CONFIG = ':0:0' is not deterministic"), backend.deterministic(True):
        pytest.fail("the block was entered")
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_algorithm_is_named():
    with pytest.raises(ConfigError, match=r"cannot be deterministic: put_") as caught, backend.deterministic(True):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # of which one wins is anybody's guess
    assert "leave out --deterministic" in caught.value.remedy
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("loader", ["gpu", "workers"])
def test_two_deterministic_runs_are_equal_bit_for_bit_and_say_so(tiny, tmp_path, loader, monkeypatch):
    seen = []
    real = backend.compiled_or_eager
    monkeypatch.setattr(
        "accel.trainers.loop.compiled_or_eager", lambda *given, **named: (seen.append(switches()), real(*given, **named))[1]
    )
    changes = {"deterministic": True, "loader": loader, "amp": "bf16", "mixup": 0.2, "randaugment": 1, "flip": "random"}
    one, two = (train("tiny", recipe=tiny, overrides=changes, out=tmp_path / name, device="cpu") for name in ("one", "two"))
    assert one.weights.read_bytes() == two.weights.read_bytes()
    assert [row[:4] for row in seen] == [(True, False, True, False)] * 2
    assert read_recipe(tmp_path / "one" / "recipe.toml").deterministic
    assert one.recipe["deterministic"] is True
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("compile_", [False, True])
def test_two_deterministic_runs_on_a_gpu_are_equal_bit_for_bit(tmp_path, monkeypatch, compile_):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from trainable_net import TINY, pictures

    from accel import datasets

    monkeypatch.setattr(datasets, "load", lambda name, split: pictures({"train": 600, "test": 50}[split], split))
    changes = {"model": "resnet18", "deterministic": True, "amp": "bf16", "compile": compile_, "randaugment": 1}
    runs = [train("resnet18", recipe=TINY, overrides=changes, out=tmp_path / name, device="cuda:0") for name in ("one", "two")]
    assert runs[0].weights.read_bytes() == runs[1].weights.read_bytes()


def test_a_cpu_trains_in_fp32_if_nobody_asked_for_anything_else_and_says_so(tiny, tmp_path, caplog):
    shipped = tiny.replaced({"amp": "bf16"})
    with caplog.at_level("INFO", logger="accel"):
        plain = train("tiny", recipe=shipped, out=tmp_path / "plain", device="cpu")
    assert "the CPU trains in FP32; --amp bf16 would ask for the autocast" in caplog.text
    assert plain.recipe["amp"] == "off"
    assert read_recipe(tmp_path / "plain" / "recipe.toml").amp == "off"
    (note,) = json.loads((tmp_path / "plain" / "run.json").read_text())["notes"]
    assert note == "amp = 'bf16' of the recipe is for a GPU; this CPU trained in FP32, because --amp was not given"
    off = train("tiny", recipe=shipped, overrides={"amp": "off"}, out=tmp_path / "off", device="cpu")
    assert off.sha256 == plain.sha256


def test_an_autocast_that_somebody_asked_for_is_kept_on_a_cpu(tiny, tmp_path, caplog):
    shipped = tiny.replaced({"amp": "bf16"})
    (tmp_path / "mine.toml").write_text('amp = "bf16"\n')
    with caplog.at_level("INFO", logger="accel"):
        typed = train("tiny", recipe=shipped, overrides={"amp": "bf16"}, out=tmp_path / "typed", device="cpu")
        filed = train("tiny", recipe=shipped, recipe_file=tmp_path / "mine.toml", out=tmp_path / "filed", device="cpu")
        asked_off = train("tiny", recipe=shipped, overrides={"amp": "off"}, out=tmp_path / "off", device="cpu")
    assert "trains in FP32" not in caplog.text
    assert typed.recipe["amp"] == filed.recipe["amp"] == "bf16"
    assert typed.sha256 == filed.sha256 != asked_off.sha256
    assert json.loads((tmp_path / "typed" / "run.json").read_text())["notes"] == []


def test_the_command_says_that_a_cpu_trains_in_fp32(accel_cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainers, "default_recipe", lambda name: tiny.replaced({"amp": "bf16"}))
    assert accel_cli("train", "tiny", "--out", "one", "--device", "cpu", "--deterministic").code == 0
    written = read_recipe(tmp_path / "one" / "recipe.toml")
    assert (written.amp, written.deterministic) == ("off", True)
    assert accel_cli("train", "tiny", "--out", "two", "--device", "cpu", "--amp", "bf16").code == 0
    assert read_recipe(tmp_path / "two" / "recipe.toml").amp == "bf16"
