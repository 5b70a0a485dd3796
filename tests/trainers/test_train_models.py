from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from accel.trainers.models import mobilenetv3_small, resnet18  # noqa: E402


@pytest.mark.parametrize(
    ("build", "parameters", "tensors"),
    [(resnet18.build, 11_173_962, 122), (mobilenetv3_small.build, 1_528_106, 244)],
    ids=["resnet18", "mobilenetv3_small"],
)
def test_models_have_the_size_of_their_paper_and_take_32_pixels(build, parameters, tensors):
    module = build(num_classes=10).eval()
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    assert len(module.state_dict()) == tensors
    with torch.inference_mode():
        assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (resnet18.build, {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4}),
        (mobilenetv3_small.build, {"features.0": 32, "features.1": 32, "features.2": 16, "features.4": 8, "features.9": 4}),
    ],
    ids=["resnet18", "mobilenetv3_small"],
)
def test_strides_fit_32_pixels(build, layers):
    module, sides = build().eval(), {}
    for name in layers:
        module.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: sides.update({name: output.shape[-1]}))
    with torch.inference_mode():
        module(torch.zeros(1, 3, 32, 32))
    assert sides == layers


def test_the_same_seed_draws_the_same_weights():
    def weights(seed: int):
        torch.manual_seed(seed)
        return mobilenetv3_small.build().state_dict()

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["features.0.0.weight"], other["features.0.0.weight"])
