from __future__ import annotations

import copy
import csv
import dataclasses
import importlib
import json

import numpy as np
import pytest
import trainable_net

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402

from accel import trainers  # noqa: E402
from accel.checkpoint import exported_sha256, read_checkpoint  # noqa: E402
from accel.errors import AccelError, BundleMissing, ConfigError, DeviceUnavailable, MissingError, UnknownName, UsageError  # noqa: E402
from accel.trainers import backend, loop, read_recipe, run, train  # noqa: E402
from accel.trainers.evaluate import confusion  # noqa: E402


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_training_leaves_a_checkpoint_that_opens_and_loads_strictly(tiny, tmp_path):
    seen = []
    checkpoint = train("tiny", recipe=tiny, out=tmp_path / "out", device="cpu", progress=lambda *report: seen.append(report))
    assert read_checkpoint(tmp_path / "out") == dataclasses.replace(checkpoint, recipe=tiny.to_dict())
    assert (checkpoint.name, checkpoint.factory, checkpoint.num_classes, checkpoint.seed) == ("tiny", "trainable_net:build", 10, 0)
    assert checkpoint.input.shape == ("batch", 3, 32, 32)
    assert 0 <= checkpoint.top1 <= 100

    stored = load_file(checkpoint.weights)
    assert {name: str(array.dtype) for name, array in stored.items()} == {
        "0.weight": "float16",
        "1.weight": "float32",
        "1.bias": "float32",
        "1.running_mean": "float32",
        "1.running_var": "float32",
        "6.weight": "float16",
        "6.bias": "float32",
    }
    location, _, name = checkpoint.factory.partition(":")
    module = getattr(importlib.import_module(location), name)(**checkpoint.factory_args)
    module.load_state_dict({name: torch.from_numpy(array.astype(np.float32)) for name, array in stored.items()}, strict=True)

    assert seen[-1] == ("test as stored", 50, 50)
    assert ("train", 6, 6) in seen


def test_the_log_has_a_row_an_epoch_and_tests_only_after_the_last(tiny, tmp_path):
    train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    log = rows(tmp_path / "log.csv")
    assert [row["epoch"] for row in log] == ["1", "2"]
    assert [bool(row["test_top1"]) for row in log] == [False, True]
    assert not any(row["val_top1"] for row in log)
    assert not (tmp_path / "log.partial.csv").exists()
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["peak_mib"] is None  # only a GPU's memory is read
    assert facts["exported_sha256"] == exported_sha256(load_file(tmp_path / "weights.safetensors"))
    assert facts["compilation"] == {"used": False, "reason": "not compiled on a CPU", "compile_s": 0.0}


def test_a_held_out_split_is_measured_every_epoch_and_leaves_the_test_set_alone(tiny, tmp_path):
    checkpoint = train("tiny", recipe=tiny, overrides={"split": "45k/5k"}, out=tmp_path, device="cpu")
    assert checkpoint.top1 is None
    assert all(row["val_top1"] and not row["test_top1"] for row in rows(tmp_path / "log.csv"))


def test_a_run_learns_from_its_fraction_of_the_images(tiny, tmp_path):
    seen = []
    changes = {"train_fraction": 0.2, "batch_size": 20}  # 40 of 200 images: two batches an epoch
    train("tiny", recipe=tiny, overrides=changes, out=tmp_path, device="cpu", progress=lambda *report: seen.append(report))
    assert [report for report in seen if report[0] == "train"][-1] == ("train", 4, 4)


def test_it_learns(tiny, tmp_path):
    checkpoint = train("tiny", recipe=tiny, overrides={"epochs": 40, "cutout": 0}, out=tmp_path, device="cpu")
    log = rows(tmp_path / "log.csv")
    assert float(log[-1]["train_loss"]) < 0.75 * float(log[0]["train_loss"])
    assert checkpoint.top1 >= 50


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny, tmp_path, amp):
    def digest(folder: str, seed: int) -> str:
        return train("tiny", recipe=tiny, overrides={"seed": seed, "amp": amp}, out=tmp_path / folder, device="cpu").sha256

    assert digest("one", 0) == digest("two", 0)
    assert digest("one", 0) != digest("three", 1)


def test_the_written_recipe_repeats_the_run(tiny, tmp_path):
    first = train("tiny", recipe=tiny, overrides={"seed": 5, "flip": "random"}, out=tmp_path / "one", device="cpu")
    again = train("tiny", recipe=read_recipe(tmp_path / "one" / "recipe.toml"), out=tmp_path / "two", device="cpu")
    assert again.sha256 == first.sha256


def test_a_loss_that_is_not_finite_names_epoch_and_step_and_keeps_the_old_checkpoint(tiny, tmp_path):
    before = train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    with pytest.raises(AccelError, match=r"loss became (nan|inf) in epoch \d+, step \d of 3") as caught:
        train("tiny", recipe=tiny, overrides={"lr": 1e30}, out=tmp_path, device="cpu")
    assert caught.value.exit_code == 1
    assert read_checkpoint(tmp_path).sha256 == before.sha256
    assert len(rows(tmp_path / "log.csv")) == 2


def test_a_run_over_a_finished_one_says_so_before_it_trains(tiny, tmp_path, caplog):
    train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    assert "will be replaced" not in caplog.text
    train("tiny", recipe=tiny, overrides={"seed": 5}, out=tmp_path, device="cpu")
    assert f"the checkpoint in {tmp_path} will be replaced when this run ends; --out names another folder" in caplog.text


def test_memory_that_runs_out_names_the_batch_size(tiny, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("accel.trainers.run.fit", fail)
    with pytest.raises(MissingError, match="batch_size = 64") as caught:
        train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    assert caught.value.remedy == "--batch-size 32"


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_epoch(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(run, "fit", lambda *given, **named: pytest.fail("trained"))
    for out, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "within", "Not a directory")):
        with pytest.raises(UsageError, match=f"cannot be the folder of a run: {why}") as caught:
            train("tiny", recipe=tiny, out=out, device="cpu")
        assert caught.value.remedy == "name another with --out"
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UsageError, match="it may not be written to"):
        train("tiny", recipe=tiny, out=tmp_path / "locked", device="cpu")
    assert (tmp_path / "file").read_text() == "mine"


def greedy(num_classes: int = 10):
    """Asks for more memory than an address of 64 bits can name."""

    class Greedy(torch.nn.Linear):
        def forward(self, x):
            return super().forward(torch.empty(2**50))

    return Greedy(3, num_classes)


def test_memory_of_a_cpu_that_runs_out_is_said_and_not_taken_for_a_wrong_image(tiny, tmp_path, monkeypatch):
    before = train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    monkeypatch.setattr(trainable_net, "build", greedy)
    with pytest.raises(MissingError, match="cpu ran out of memory training tiny with batch_size = 64") as caught:
        train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    assert (caught.value.exit_code, caught.value.remedy) == (4, "--batch-size 32")
    assert read_checkpoint(tmp_path).sha256 == before.sha256
    with pytest.raises(RuntimeError, match=r"can't allocate memory|not enough memory"):
        run.demand_size(greedy(), torch.zeros(4, 8, 8, 3), tiny.replaced({"image_size": 8}))
    with pytest.raises(MissingError, match="cpu ran out of memory with 2 images"):
        confusion(greedy(), [np.zeros((2, 3, 8, 8), np.float32)], np.array([0, 1]), 10)


def test_what_is_no_lack_of_memory_is_not_called_so():
    assert backend.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert backend.out_of_memory(MemoryError())
    assert not backend.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not backend.out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))


def test_what_is_stored_is_the_average_of_the_last_epoch(tiny, tmp_path, monkeypatch):
    states = []
    monkeypatch.setattr(run.snapshot, "write", lambda path, state, *rest: states.append(copy.deepcopy(state)))
    checkpoint = train("tiny", recipe=tiny, overrides={"epochs": 3}, out=tmp_path, device="cpu")
    assert [state["epoch"] for state in states] == [1, 2, 3]
    average, last = states[-1]["average"]["module"], states[-1]["module"]
    for name, array in load_file(checkpoint.weights).items():
        stored = torch.from_numpy(array)
        assert torch.equal(stored, average[name].to(stored.dtype)), name
        assert not torch.equal(stored, last[name].to(stored.dtype)), name


def test_the_top1_on_record_is_that_of_the_weights_as_they_are_stored(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "top1", lambda module, measured, progress, step: {"test": 90.0, "test as stored": 80.0}[step])
    checkpoint = train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    facts = json.loads((tmp_path / "run.json").read_text())
    assert (checkpoint.top1, facts["top1"], facts["top1_unrounded"]) == (80.0, 80.0, 90.0)


def test_nobody_compiles_who_was_asked_not_to(tiny, tmp_path):
    train("tiny", recipe=tiny, overrides={"compile": False}, out=tmp_path, device="cpu")
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["compilation"] == {"used": False, "reason": "the recipe has compile = false", "compile_s": 0.0}


@pytest.mark.parametrize("wanted", [True, False])
def test_channels_last_is_the_layout_of_weights_and_images(tiny, tmp_path, monkeypatch, wanted):
    seen, build = [], trainable_net.build

    def note(layer, given, answer):
        layouts = torch.channels_last, torch.contiguous_format
        seen.append([x.is_contiguous(memory_format=layout) for x in (layer.weight, given[0]) for layout in layouts])

    def spied(num_classes: int = 10):
        module = build(num_classes)
        module[0].register_forward_hook(note)
        return module

    monkeypatch.setattr(trainable_net, "build", spied)
    train("tiny", recipe=tiny, overrides={"epochs": 1, "channels_last": wanted}, out=tmp_path, device="cpu")
    assert seen[:3] == [[wanted, not wanted] * 2] * 3  # one update a batch of 64; what is measured afterwards comes as it is


def test_fewer_images_than_a_batch_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="batch_size = 64 is more than the 10 images"):
        train("tiny", recipe=tiny, overrides={"limit": 10}, out=tmp_path, device="cpu")


def test_names_and_devices_that_do_not_exist_are_refused(tiny, tmp_path):
    with pytest.raises(UnknownName, match="resnet19"):
        train("resnet19", out=tmp_path)
    with pytest.raises(UnknownName, match="mnist"):
        train("tiny", recipe=tiny, overrides={"dataset": "mnist"}, out=tmp_path)
    with pytest.raises(UsageError, match="'tpu'"):
        train("tiny", recipe=tiny, out=tmp_path, device="tpu")
    with pytest.raises(DeviceUnavailable, match="cuda:99"):
        train("tiny", recipe=tiny, out=tmp_path, device="cuda:99")
    with pytest.raises(ConfigError, match="fp16"):
        train("tiny", recipe=tiny, overrides={"amp": "fp16"}, out=tmp_path, device="cpu")


def test_a_shipped_model_is_a_checkpoint_or_says_how_to_train_it():
    with pytest.raises(UnknownName):
        trainers.shipped("resnet19")
    try:
        folder = trainers.shipped("resnet18")
    except BundleMissing as error:
        assert error.remedy == "accel train resnet18"  # noqa: PT017
    else:
        assert read_checkpoint(folder).factory == trainers.MODELS["resnet18"]


def test_models_with_weights_are_those_whose_checkpoint_is_installed(monkeypatch, tmp_path):
    assert trainers.with_weights() == ["mobilenetv3_small", "naivenet", "resnet18", "student_a", "student_b"]
    with pytest.raises(BundleMissing, match="no trained weights of student_c") as caught:
        trainers.shipped("student_c")
    assert caught.value.remedy == "accel train student_c"
    monkeypatch.setattr(trainers, "WEIGHTS", tmp_path)
    with pytest.raises(BundleMissing, match="no trained weights are installed"):
        trainers.with_weights()


def test_a_compiler_that_fails_is_named_and_leaves_no_trace(monkeypatch, caplog):
    module = trainable_net.build().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def forward(images, labels):
        loss = module(torch.randn(4, 3, 32, 32)).sum()
        loss.backward()
        raise RuntimeError("Failed to find C compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    gpu = torch.device("cuda:0")
    chosen, facts = backend.compiled_or_eager(
        forward, module, lambda: (None, None), device=gpu, mode="default", progress=lambda *report: None
    )
    assert chosen is forward
    assert facts == {"used": False, "reason": "RuntimeError: Failed to find C compiler", "compile_s": 0.0}
    assert "Failed to find C compiler" in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_settings_are_restored():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark
    with backend.settings(ieee=True):
        assert (matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark) == ("ieee", "ieee", True)
    assert (matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark) == before


def test_losses_are_checked_in_order():
    loop.stop_unless_finite([1.0, 2.0], 0)
    with pytest.raises(AccelError, match="inf in epoch 3, step 2 of 3"):
        loop.stop_unless_finite([1.0, float("inf"), float("nan")], 2)


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
@pytest.mark.parametrize("compile_", [False, True])
def test_training_runs_on_a_gpu(tiny, tmp_path, amp, compile_):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    changes = {"amp": amp, "compile": compile_, "epochs": 40, "cutout": 0}
    checkpoint = train("tiny", recipe=tiny, overrides=changes, out=tmp_path, device="cuda:0")
    assert checkpoint.top1 >= 50
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["compilation"]["used"] is compile_
    assert 0 < facts["peak_mib"] < 1024


@pytest.mark.gpu
def test_a_gpu_whose_memory_runs_out_keeps_the_old_checkpoint(tiny, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    before = train("tiny", recipe=tiny, out=tmp_path, device="cuda:0")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(MissingError, match="cuda:0 ran out of memory training resnet18"):
            train("resnet18", recipe=tiny, out=tmp_path, device="cuda:0")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert read_checkpoint(tmp_path).sha256 == before.sha256


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_every_option_of_the_loop_runs_on_a_gpu_and_resumes_there(tiny, tmp_path, monkeypatch, amp, mode):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    teacher = train("tiny", recipe=tiny, out=tmp_path / "teacher", device="cuda:0")
    changes = {"amp": amp, "compile_mode": mode, "epochs": 20, "cutout": 0, "batch_size": 32, "accumulate": 2, "optimizer": "muon"}
    changes |= {"mixup": 0.1, "cutmix": 0.1, "randaugment": 1, "rotation": 5.0, "clip_norm": 100.0}
    changes |= {"teacher": str(teacher.path), "kd_alpha": 0.1}
    real = loop.stop_unless_finite

    def killed(losses, epoch):
        real(losses, epoch)
        if epoch == 10:
            monkeypatch.setattr(loop, "stop_unless_finite", real)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "stop_unless_finite", killed)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", recipe=tiny, overrides=changes, out=tmp_path / "out", device="cuda:0")
    train("tiny", recipe=tiny, out=tmp_path / "out", device="cuda:0", resume=True)
    log = rows(tmp_path / "out" / "log.csv")
    assert [row["epoch"] for row in log] == [str(epoch) for epoch in range(1, 21)]
    assert float(log[-1]["train_loss"]) < float(log[0]["train_loss"])
