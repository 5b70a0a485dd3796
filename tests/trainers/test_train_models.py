from __future__ import annotations

import functools
import importlib

import pytest

torch = pytest.importorskip("torch")

from accel.trainers import MODELS, default_recipe  # noqa: E402
from accel.trainers.models import (  # noqa: E402
    airbench94,
    alexnet,
    efficientnet_b0,
    mobilenetv2,
    mobilenetv3_small,
    naivenet,
    resnet18,
    shufflenetv2_x1,
    student_a,
    student_b,
    student_c,
)

SIZES = {
    # parameters, multiply-accumulates, convolutions, tensors in the state dict
    resnet18.build: (11_173_962, 555_422_720, 20, 122),
    mobilenetv3_small.build: (1_528_106, 17_507_328, 52, 244),
    shufflenetv2_x1.build: (1_263_854, 45_002_112, 56, 338),
    mobilenetv2.build: (2_236_682, 87_976_448, 52, 314),
    efficientnet_b0.build: (4_020_358, 116_167_168, 81, 360),
    alexnet.build: (2_490_314, 217_292_800, 5, 32),
    naivenet.build: (298_778, 37_605_248, 41, 168),
    airbench94.build_deployed: (1_971_640, 118_147_360, 7, 15),
    student_a.build_deployed: (987_162, 50_137_600, 5, 12),
    student_b.build_deployed: (2_145_162, 130_550_272, 8, 18),
    student_c.build_deployed: (4_369_738, 289_017_600, 9, 20),
}


def name_of(build) -> str:
    return build.__module__.rpartition(".")[2] if callable(build) else str(build)


def multiplied(module) -> tuple[int, int]:
    """Multiply-accumulates of one 32×32 image in convolutions and linear layers, and the number of convolutions."""
    seen = []

    def count(layer, _, output):
        seen.append((layer.weight[0].numel() * output.numel(), isinstance(layer, torch.nn.Conv2d)))

    for layer in module.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        module.eval()(torch.zeros(1, 3, 32, 32))
    return sum(macs for macs, _ in seen), sum(is_convolution for _, is_convolution in seen)


@pytest.mark.parametrize(("build", "size"), SIZES.items(), ids=name_of)
def test_a_deployed_model_has_its_size(build, size):
    module = build(num_classes=10)
    assert (sum(parameter.numel() for parameter in module.parameters()), *multiplied(module), len(module.state_dict())) == size


def test_the_small_models_keep_to_their_budgets():
    budgets = {naivenet.build: 330_000, student_a.build_deployed: 1_000_000, student_b.build_deployed: 2_200_000}
    budgets[student_c.build_deployed] = 4_800_000
    assert all(SIZES[build][0] <= budget for build, budget in budgets.items())
    assert [SIZES[student.build_deployed][2] for student in (student_a, student_b)] == [5, 8]
    assert sum(parameter.numel() for parameter in naivenet.build(num_classes=100).parameters()) <= 330_000


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_takes_32_pixels_and_any_number_of_classes(name):
    location, _, factory = MODELS[name].partition(":")
    module = getattr(importlib.import_module(location), factory)(num_classes=7).eval()
    with torch.inference_mode():
        assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (resnet18.build, {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4}),
        (mobilenetv3_small.build, {"features.0": 32, "features.1": 32, "features.2": 16, "features.4": 8, "features.9": 4}),
        (shufflenetv2_x1.build, {"conv1": 32, "stage2": 16, "stage3": 8, "stage4": 4}),
        (mobilenetv2.build, {"features.0": 32, "features.2": 32, "features.4": 16, "features.7": 8, "features.14": 4}),
        (efficientnet_b0.build, {"features.0": 32, "features.2": 32, "features.3": 16, "features.4": 8, "features.6": 4}),
        (alexnet.build, {"features.0": 32, "features.4": 16, "features.8": 8, "features.14": 8, "features.17": 4}),
        (naivenet.build, {"enlarge": 128, "features.0": 64, "features.1": 32, "features.3": 16, "features.8": 8, "features.10": 8}),
        (airbench94.build, {"whiten": 31, "groups.0": 15, "groups.1": 7, "groups.2": 3, "pool": 1}),
        (student_a.build, {"features.0": 16, "features.1": 16, "features.2": 8, "features.3": 8, "features.4": 4}),
        (student_b.build, {"features.0": 16, "features.2": 16, "features.3": 8, "features.5": 8, "features.6": 4, "features.7": 4}),
        (student_c.build, {"features.0": 16, "features.3": 16, "features.4": 8, "features.6": 8, "features.7": 4, "features.8": 4}),
    ],
    ids=name_of,
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
    if name == "shufflenetv2_x1":
        theirs = models.shufflenet_v2_x1_0(weights=None, num_classes=10)
        theirs.conv1[0].stride, theirs.maxpool = (1, 1), torch.nn.Identity()
        return theirs
    if name == "mobilenetv2":
        theirs = models.mobilenet_v2(weights=None, num_classes=10, inverted_residual_setting=[list(row) for row in mobilenetv2.STAGES])
        theirs.features[0][0].stride = (1, 1)
        return theirs
    if name == "efficientnet_b0":
        theirs = models.efficientnet_b0(weights=None, num_classes=10, stochastic_depth_prob=0.0)
        theirs.features[0][0].stride = theirs.features[2][0].block[1][0].stride = (1, 1)
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


TORCHVISIONS = [resnet18, mobilenetv3_small, shufflenetv2_x1, mobilenetv2, efficientnet_b0]


@pytest.mark.parametrize("ours", TORCHVISIONS, ids=lambda ours: ours.__name__.rpartition(".")[2])
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


@pytest.mark.parametrize("ours", TORCHVISIONS[1:], ids=lambda ours: ours.__name__.rpartition(".")[2])
def test_the_first_weights_are_torchvisions_for_the_same_seed(ours):
    torch.manual_seed(0)
    theirs = torchvisions(ours.__name__.rpartition(".")[2]).state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.build().state_dict().items())


def test_the_same_seed_draws_the_same_weights():
    def weights(seed: int):
        torch.manual_seed(seed)
        return mobilenetv3_small.build().state_dict()

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["features.0.0.weight"], other["features.0.0.weight"])


def test_naivenet_enlarges_as_the_formula_says_and_leaves_an_enlarged_picture_alone():
    module = naivenet.build().eval()
    images = torch.randn(2, 3, 32, 32)
    # Half-pixel centres, edges repeated: pixel i of 128 reads (i + 0.5) / 4 - 0.5 of 32.
    at = ((torch.arange(128) + 0.5) / 4 - 0.5).clamp(0, 31)
    low = at.floor().long()
    high, share = (low + 1).clamp(max=31), at - at.floor()
    rows = images[:, :, low] * (1 - share)[:, None] + images[:, :, high] * share[:, None]
    expected = rows[..., low] * (1 - share) + rows[..., high] * share
    with torch.inference_mode():
        enlarged = module.enlarge(images)
        torch.testing.assert_close(enlarged, expected)
        assert torch.equal(module.enlarge(enlarged), enlarged)
        assert torch.equal(module(enlarged), module(images))


def test_naivenet_has_the_parts_that_its_document_names():
    module = naivenet.build().eval()
    blocks = [block for block in module.features if hasattr(block, "depthwise")]
    assert len(blocks) == 10
    for block in blocks:
        depthwise, pointwise, excite = block.depthwise[0], block.pointwise[0], block.excite
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
        assert (pointwise.kernel_size, pointwise.groups) == ((1, 1), 1)
        x = torch.rand(2, pointwise.out_channels, 4, 4)
        with torch.inference_mode():
            squeezed = x.mean(dim=(2, 3))
            hidden = (squeezed @ excite.reduce.weight.flatten(1).T + excite.reduce.bias).relu()
            gate = (hidden @ excite.expand.weight.flatten(1).T + excite.expand.bias).sigmoid()
            torch.testing.assert_close(excite(x), x * gate[..., None, None])
    # Where a block's branch says nothing, a residual one hands on what it was given.
    for block in blocks:
        torch.nn.init.zeros_(block.pointwise[1].weight)
    through = []
    with torch.inference_mode():
        for block in blocks:
            x = torch.rand(1, block.depthwise[0].in_channels, 4, 4)
            found = block(x)
            through.append(found.shape == x.shape and torch.equal(found, x))
            assert through[-1] or not found.any()
    assert through == [False, True, False, *[True] * 4, False, True, True]


def test_naivenet_is_trained_on_enlarged_images_that_are_turned_and_scaled():
    recipe = default_recipe("naivenet")
    assert recipe.upscale == naivenet.SIDE == 128
    assert recipe.rotation > 0
    assert recipe.scaling > 0
