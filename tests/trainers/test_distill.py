"""Distillation: the loss against its formula in FP64, and teachers who see the student's views and learn nothing themselves."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import trainable_net
from trainable_net import TINY

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from accel.checkpoint import read_checkpoint, write_checkpoint  # noqa: E402
from accel.errors import ConfigError, IncompatibleArtifact, UnknownName  # noqa: E402
from accel.packed import PACKED  # noqa: E402
from accel.trainers import WEIGHTS, shipped, train  # noqa: E402
from accel.trainers.distill import distillation, open_teachers, soft_answers  # noqa: E402
from accel.trainers.objective import objective  # noqa: E402

CPU = torch.device("cpu")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def formula(student: np.ndarray, teachers: list[np.ndarray], temperature: float) -> float:
    """T² · Σ p (log p - log q) in FP64, the mean over the rows."""
    p = np.mean([softmax(one / temperature) for one in teachers], axis=0)
    return float(temperature**2 * (p * (np.log(p) - np.log(softmax(student / temperature)))).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("count", [1, 3])
def test_the_loss_is_the_formula(temperature, count):
    generator = np.random.default_rng(0)
    student, *teachers = (3 * generator.standard_normal((6, 10)) for _ in range(count + 1))
    answers = soft_answers([torch.from_numpy(one).float() for one in teachers], temperature)
    got = distillation(torch.from_numpy(student).float(), answers, temperature)
    assert float(got) == pytest.approx(formula(student, teachers, temperature), rel=1e-5)


def test_two_classes_by_hand():
    """Probabilities 3/4 and 1/4 followed by an even guess: ln 2 - H(1/4) = 0.130812."""
    answers = soft_answers([torch.tensor([[np.log(3.0), 0.0]])], 1.0)
    assert float(distillation(torch.zeros(1, 2), answers, 1.0)) == pytest.approx(0.130812, abs=1e-6)


def test_the_objective_weighs_teachers_and_labels():
    torch.manual_seed(0)
    student, teachers = linear(), [linear(), linear()]
    batch, labels = torch.randn(5, 8, 8, 3), torch.tensor([1, 2, 3, 4, 5])
    chosen = dataclasses.replace(TINY, kd_alpha=0.3, kd_temperature=2.0, label_smoothing=0.0, teacher="two")
    loss, _ = objective(student, chosen, CPU, teachers)(batch, labels)
    pixels = batch.permute(0, 3, 1, 2)
    logits, *opinions = (module(pixels).detach().double().numpy() for module in (student, *teachers))
    cross_entropy = -np.log(softmax(logits)[np.arange(5), labels.numpy()]).mean()
    assert float(loss.detach()) == pytest.approx(0.3 * formula(logits, opinions, 2.0) + 0.7 * cross_entropy, rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))


def test_a_student_learns_from_teachers_that_see_its_views_and_stay_as_they_are(tiny, tmp_path, monkeypatch):
    first = train("tiny", recipe=tiny, overrides={"epochs": 3}, out=tmp_path / "first", device="cpu")
    second = train("tiny", recipe=tiny, overrides={"epochs": 3, "seed": 1}, out=tmp_path / "second", device="cpu")
    built, seen = [], []
    build = trainable_net.build

    def spied(num_classes: int = 10):
        module = build(num_classes)
        module.register_forward_hook(lambda module, inputs, output: seen.append((module, module.training, inputs[0].clone())))
        built.append(module)
        return module

    monkeypatch.setattr(trainable_net, "build", spied)
    changes = {"teacher": f"{first.path}, {second.path}", "kd_alpha": 0.5, "mixup": 0.2, "epochs": 1}
    checkpoint = train("tiny", recipe=tiny, overrides=changes, out=tmp_path / "student", device="cpu")
    student, *teachers = built
    for step in range(3):
        views = [(module, training, inputs) for module, training, inputs in seen[3 * step : 3 * step + 3]]
        assert [module for module, _, _ in views] == [student, *teachers]
        assert [training for _, training, _ in views] == [True, False, False]
        assert all(torch.equal(inputs, views[0][2]) for _, _, inputs in views)
    for teacher, path in zip(teachers, (first.weights, second.weights), strict=True):
        from safetensors.numpy import load_file

        for name, array in load_file(path).items():
            np.testing.assert_array_equal(teacher.state_dict()[name].numpy(), array.astype(np.float32))
    facts = json.loads((tmp_path / "student" / "run.json").read_text())
    assert [one["sha256"] for one in facts["teachers"]] == [first.sha256, second.sha256]
    assert checkpoint.recipe["teacher"] == changes["teacher"]


def test_following_the_teachers_alone_learns_too(tiny, tmp_path):
    teacher = train("tiny", recipe=tiny, overrides={"epochs": 40, "cutout": 0}, out=tmp_path / "teacher", device="cpu")
    changes = {"teacher": str(teacher.path), "kd_alpha": 1.0, "epochs": 40, "cutout": 0}
    assert train("tiny", recipe=tiny, overrides=changes, out=tmp_path / "student", device="cpu").top1 >= 50


def test_a_shipped_teacher_may_be_packed_and_named_by_its_folder_too():
    real = read_checkpoint(shipped("resnet18"))
    assert (WEIGHTS / "resnet18" / PACKED).is_file()
    chosen = dataclasses.replace(TINY, teacher=f"resnet18, {WEIGHTS / 'resnet18'}")
    teachers = open_teachers(chosen, dict(real.preprocess), real.labels, CPU)
    assert [one.to_dict() for one in teachers] == [{"name": "resnet18", "sha256": real.sha256, "top1": 95.7}] * 2


def test_a_teacher_that_does_not_fit_is_refused(tiny, tmp_path):
    teacher = train("tiny", recipe=tiny, overrides={"epochs": 1}, out=tmp_path / "teacher", device="cpu")
    from safetensors.numpy import load_file

    def refused(message: str, error=ConfigError, tensors=None, **changes) -> None:
        write_checkpoint(dataclasses.replace(teacher, **changes), tensors or load_file(teacher.weights))
        with pytest.raises(error, match=message):
            train("tiny", recipe=tiny, overrides={"teacher": str(teacher.path)}, out=tmp_path / "student", device="cpu")

    refused("has the classes", labels=tuple("abcdefghik"))
    refused("has the preprocessing", preprocess={**teacher.preprocess, "fill": [0, 0, 0]})
    refused("has the upscale 128", recipe={**teacher.recipe, "upscale": 128})
    refused("nets:build, which is not accel's", factory="nets:build")
    refused("do not fit", IncompatibleArtifact, tensors={"0.weight": np.zeros((8, 3, 3, 3), np.float32)})
    write_checkpoint(teacher, load_file(teacher.weights))
    assert read_checkpoint(teacher.path)
    with pytest.raises(UnknownName, match="no teacher called 'runs/resnet19'") as caught:
        train("tiny", recipe=tiny, overrides={"teacher": "runs/resnet19"}, out=tmp_path / "student", device="cpu")
    assert "choose one of: a folder that accel train wrote, mobilenetv3_small" in caught.value.remedy


def test_what_was_typed_and_would_do_nothing_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"kd_alpha = 0\.5 does nothing without teacher"):
        train("tiny", recipe=tiny, overrides={"kd_alpha": 0.5}, out=tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="randaugment_magnitude"):
        train("tiny", recipe=tiny, overrides={"randaugment_magnitude": 3.0}, out=tmp_path, device="cpu")
