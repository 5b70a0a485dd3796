from typing import Any

import pytest
from engine_samples import build

from accel.engines.folding import count_batchnorm, fold_batchnorm

torch = pytest.importorskip("torch")


def randomised(module: Any) -> Any:
    """Give every BatchNorm statistics that matter, so that a wrong fold shows."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.normal_(layer.bias, 0, 0.2, generator=generator)
    return module.eval()


def assert_folds(module: Any, example: Any, left: int = 0) -> None:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    folded = fold_batchnorm(module)
    assert count_batchnorm(folded) == left
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        expected, found = module(example), folded(example)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_small_net_folds() -> None:
    assert_folds(randomised(build()), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_the_shipped_architectures_fold_whole(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    assert_folds(randomised(getattr(models, name)(weights=None, num_classes=10)), torch.randn(2, 3, 32, 32))


def test_linear_and_1d_layers_fold() -> None:
    nn = torch.nn
    net = nn.Sequential(nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4, affine=False), nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5))
    assert_folds(randomised_plain(net), torch.randn(3, 2, 8))


def randomised_plain(net: Any) -> Any:
    net[1].running_mean.normal_()
    net[4].running_var.uniform_(0.5, 2)
    return net.eval()


class Shared(torch.nn.Module):
    """One convolution before two different BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)

    def forward(self, x: Any) -> Any:
        return self.second(self.conv(self.first(self.conv(x))))


class Branching(torch.nn.Module):
    """The convolution's output is also used without the BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        return self.norm(x) + x


class Untraceable(torch.nn.Module):
    """A branch on values, which fx refuses, around a plain Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3))

    def forward(self, x: Any) -> Any:
        return self.body(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize(("kind", "left"), [(Shared, 2), (Branching, 1), (Untraceable, 1)])
def test_what_cannot_be_folded_safely_is_left(kind: type, left: int) -> None:
    assert_folds(randomised(kind()), torch.randn(2, 3, 8, 8), left)
