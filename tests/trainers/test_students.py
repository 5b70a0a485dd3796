"""RepVGG's blocks: branches while training, one convolution when deployed."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402

from accel import trainers  # noqa: E402
from accel.checkpoint import read_checkpoint  # noqa: E402
from accel.engines.module import build_module  # noqa: E402
from accel.trainers import run, train  # noqa: E402
from accel.trainers.models import repvgg, student_a, student_b, student_c  # noqa: E402

STUDENTS = [student_a, student_b, student_c]


def trained_looking(module):
    """BatchNorm far from fresh, so that a branch in the wrong place or without its statistics shows."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.3, 3.0, generator=generator)
            torch.nn.init.uniform_(layer.weight, -0.5, 1.5, generator=generator)
            torch.nn.init.normal_(layer.bias, 0, 0.3, generator=generator)
    return module.eval()


def name_of(student) -> str:
    return student.__name__.rpartition(".")[2]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("student", STUDENTS, ids=name_of)
def test_merging_is_exact(student, dtype, limit):
    torch.manual_seed(0)
    module = trained_looking(student.build()).to(dtype)
    before = copy.deepcopy(module.state_dict())
    images = torch.randn(4, 3, 32, 32, dtype=dtype)
    with torch.inference_mode():
        expected, found = module(images), student.deployed(module)(images)
    assert (found - expected).abs().max() <= limit * expected.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("student", STUDENTS, ids=name_of)
def test_a_deployed_layer_is_one_convolution_and_relu(student):
    nn = torch.nn
    merged = student.deployed(student.build(num_classes=5))
    assert [type(layer) for layer in merged.features] == [nn.Conv2d, nn.ReLU] * len(student.LAYERS)
    assert [type(layer) for layer in (merged.pool, merged.classifier)] == [nn.AdaptiveAvgPool2d, nn.Linear]
    assert not merged.training
    built = student.build_deployed(num_classes=5)
    assert {name: tensor.shape for name, tensor in merged.state_dict().items()} == {
        name: tensor.shape for name, tensor in built.state_dict().items()
    }


@pytest.mark.parametrize(("row", "has_identity"), [((3, 1, 4), True), ((3, 1, 8), False), ((3, 2, 4), False), ((4, 2, 4), False)])
def test_a_block_has_an_identity_where_shapes_allow_and_merges_at_any_stride(row, has_identity):
    rows = [(3, 1, 4), row]
    module = trained_looking(repvgg.branched(rows, 2)).double()
    stem, block = module.features
    assert (stem.point, stem.identity) == (None, None)
    assert (block.identity is not None) is has_identity
    for branch in ("wide", "point", "identity"):  # each branch alone too: one that is off by a pixel cannot hide behind another
        alone = copy.deepcopy(module)
        for other in {"wide", "point", "identity"} - {branch}:
            norm = getattr(alone.features[1], other)
            if norm is not None:
                torch.nn.init.zeros_((norm if other == "identity" else norm[1]).weight)
        images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        with torch.inference_mode():
            torch.testing.assert_close(repvgg.merged(rows, alone).features(images), alone.features(images))


def test_a_trained_student_is_stored_without_branches_and_answers_as_it_was_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(trainers.MODELS, "student_a", "accel.trainers.models.student_a:build")
    kept = []
    fit = run.fit

    def remember(*given, **named):
        kept.append(fit(*given, **named))
        return kept[-1]

    monkeypatch.setattr(run, "fit", remember)
    checkpoint = train("student_a", recipe=tiny, overrides={"limit": 64, "epochs": 1}, out=tmp_path, device="cpu")
    assert checkpoint.factory == "accel.trainers.models.student_a:build_deployed"
    assert read_checkpoint(tmp_path).factory == checkpoint.factory
    tensors = load_file(checkpoint.weights)
    layers = [f"features.{2 * index}" for index in range(5)]
    assert set(tensors) == {f"{name}.{part}" for name in [*layers, "classifier"] for part in ("weight", "bias")}

    module, images = build_module(checkpoint), torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        expected = kept[0].module(images)
        merged = student_a.deployed(kept[0].module)
        assert (merged(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (module(images) - expected).abs().max() <= 1e-2 * expected.abs().max()  # the weights are stored as FP16
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(torch.from_numpy(tensors[name]).float(), tensor, rtol=1e-3, atol=1e-6)


def test_a_model_without_another_form_is_stored_as_it_is():
    module = torch.nn.Identity()
    assert run.deployable("trainable_net:build", module) == ("trainable_net:build", module)
