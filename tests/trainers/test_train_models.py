from __future__ import annotations

import functools

import pytest

torch = pytest.importorskip("torch")

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


def torchvisions(name: str):
    """torchvision's network with the strides of ours."""
    models = pytest.importorskip("torchvision.models")
    if name == "resnet18":
        theirs = models.resnet18(weights=None, num_classes=10)
        theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
        return theirs
    small = models.mobilenetv3
    blocks = [
        small.InvertedResidualConfig(*row[:5], "HS" if row[5] else "RE", row[6], dilation=1, width_mult=1.0)
        for row in mobilenetv3_small.BLOCKS
    ]
    norm = functools.partial(torch.nn.BatchNorm2d, eps=0.001, momentum=0.1)
    theirs = small.MobileNetV3(blocks, last_channel=1024, num_classes=10, norm_layer=norm, dropout=0.2)
    theirs.features[0][0].stride = (1, 1)
    return theirs


@pytest.mark.parametrize("ours", [resnet18, mobilenetv3_small], ids=["resnet18", "mobilenetv3_small"])
def test_a_model_is_torchvisions_name_for_name_and_number_for_number(ours):
    torch.manual_seed(0)
    theirs, module = torchvisions(ours.__name__.rpartition(".")[2]), ours.build()
    assert list(module.state_dict()) == list(theirs.state_dict())
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.1)  # BatchNorm too: fresh ones would hide an exchange
    module.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(module.eval()(images), theirs.eval()(images))


def test_mobilenets_first_weights_are_torchvisions_for_the_same_seed():
    torch.manual_seed(0)
    theirs = torchvisions("mobilenetv3_small").state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mobilenetv3_small.build().state_dict().items())


def test_the_same_seed_draws_the_same_weights():
    def weights(seed: int):
        torch.manual_seed(seed)
        return mobilenetv3_small.build().state_dict()

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["features.0.0.weight"], other["features.0.0.weight"])
