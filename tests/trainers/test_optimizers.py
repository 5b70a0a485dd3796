"""Updates: Muon against a slow FP64 one, accumulation against one large batch, clipping, and what each optimizer is given."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trainable_net
from trainable_net import TINY

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from accel.trainers import loop, muon  # noqa: E402
from accel.trainers.augment import draw, first_mirrored  # noqa: E402
from accel.trainers.optimizers import Optimizers, parameter_groups  # noqa: E402
from accel.trainers.views import Views  # noqa: E402

CPU = torch.device("cpu")


def optimizers(module: nn.Module, **changes):
    return Optimizers(module, dataclasses.replace(TINY, **changes), CPU, total=4, warmup=0)


def slow_orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """By its definition on the singular values: each goes three times through the quintic."""
    u, values, vt = np.linalg.svd(matrix / (np.linalg.norm(matrix) + 1e-7), full_matrices=False)
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return u @ np.diag(values) @ vt


@pytest.mark.parametrize("shape", [(8, 27), (30, 9), (6, 6)])
def test_orthogonalising_is_the_quintic_on_the_singular_values(shape):
    matrices = np.random.default_rng(0).standard_normal((3, *shape))
    got = muon.orthogonalised(torch.from_numpy(matrices).float()).numpy()
    for one, matrix in zip(got, matrices, strict=True):
        np.testing.assert_allclose(one, slow_orthogonalised(matrix), atol=2e-5)


def test_muon_follows_a_slow_one_over_several_updates():
    generator = np.random.default_rng(1)
    shapes = [(8, 3, 3, 3), (8, 3, 3, 3), (12, 4, 1, 1)]
    weights = [generator.standard_normal(shape) for shape in shapes]
    momenta = [np.zeros(shape) for shape in shapes]
    parameters = [nn.Parameter(torch.from_numpy(weight).float()) for weight in weights]
    optimizer = muon.Muon(list(parameters), lr=0.24, momentum=0.6)
    for _ in range(4):
        for index, parameter in enumerate(parameters):
            gradient = generator.standard_normal(shapes[index])
            parameter.grad = torch.from_numpy(gradient).float()
            momenta[index] = 0.6 * momenta[index] + gradient
            matrix = (gradient + 0.6 * momenta[index]).reshape(len(gradient), -1)
            scaled = weights[index] * len(gradient) ** 0.5 / np.linalg.norm(weights[index])
            weights[index] = scaled - 0.24 * slow_orthogonalised(matrix).reshape(shapes[index])
        optimizer.step()
    for parameter, weight in zip(parameters, weights, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), weight, atol=1e-4)


def test_muon_leaves_a_filter_without_gradient_alone_and_continues_from_its_state():
    def pair():
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(4, 2, 3, 3)) for _ in range(2)]

    def update(optimizer, parameters, value: float) -> None:
        parameters[0].grad = torch.arange(72.0).view(4, 2, 3, 3).sub(value)
        optimizer.step()

    whole = pair()
    optimizer = muon.Muon(list(whole), lr=0.1, momentum=0.6)
    update(optimizer, whole, 3.0)
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in whole]
    second = muon.Muon(list(resumed), lr=0.1, momentum=0.6)
    second.load_state_dict(optimizer.state_dict())
    update(optimizer, whole, 40.0)
    update(second, resumed, 40.0)
    assert torch.equal(whole[0], resumed[0])
    assert torch.equal(whole[1], pair()[1])


def test_muon_takes_the_filters_that_a_batchnorm_follows_and_sgd_the_rest():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv2d(8, 4, 1),
        nn.Linear(4, 10),
    )
    frozen = nn.Conv2d(4, 4, 1, bias=False).requires_grad_(False)
    made = optimizers(module.append(frozen), optimizer="muon", lr=0.5, muon_lr=0.25)
    sgd, orthogonal = made.members
    assert [tuple(parameter.shape) for parameter in orthogonal.param_groups[0]["params"]] == [(8, 3, 3, 3)]
    shapes = [[tuple(parameter.shape) for parameter in group["params"]] for group in sgd.param_groups]
    assert shapes == [[(8, 1, 3, 3), (4, 8, 1, 1), (10, 4)], [(4,), (10,)]]
    assert made.set_rate(0) == pytest.approx(0.5 * 0.9045085)  # a cosine over 5 of which 1 has passed
    assert orthogonal.param_groups[0]["lr"] == pytest.approx(0.25 * 0.9045085)


def test_adamw_takes_the_momentum_as_its_first_beta():
    (member,) = optimizers(trainable_net.build(), optimizer="adamw", momentum=0.8).members
    assert isinstance(member, torch.optim.AdamW)
    assert [group["betas"] for group in member.param_groups] == [(0.8, 0.999)] * 2
    assert [group["weight_decay"] for group in member.param_groups] == [5e-4, 0.0]


def test_only_tensors_of_two_or_more_dimensions_decay():
    decayed, free = parameter_groups(trainable_net.build(), TINY)
    assert (decayed["weight_decay"], free["weight_decay"]) == (5e-4, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(8, 3, 3, 3), (10, 32)]
    assert [tuple(parameter.shape) for parameter in free["params"]] == [(8,), (8,), (10,)]


def plain() -> nn.Module:
    """Without BatchNorm and dropout: nothing in it looks at the batch as a whole."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))


def fitted(module: nn.Module, count: int = 200, **changes) -> nn.Module:
    train = trainable_net.pictures(count, "train")
    recipe = dataclasses.replace(TINY, lr=0.05, ema_decay=0.0, **changes)
    labels = torch.from_numpy(train.labels).long()
    colours = ((0.0,) * 3, (1.0,) * 3)
    views = Views(torch.from_numpy(train.images), labels, recipe, colours=colours, dtype=torch.float32, num_classes=10)
    return loop.fit(module, views, recipe).module


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for got, want in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_accumulating_equals_one_large_batch(optimizer):
    large = fitted(plain(), batch_size=64, optimizer=optimizer)
    assert_same(fitted(plain(), batch_size=16, accumulate=4, optimizer=optimizer), large)
    assert not torch.allclose(fitted(plain(), batch_size=16, optimizer=optimizer)[0].weight, large[0].weight, rtol=1e-3)


def test_the_last_updates_fewer_batches_weigh_as_one_batch_of_their_own():
    """80 images: an update of 3 × 16 and one of 2 × 16, against the two batches written out."""
    got = fitted(plain(), count=80, epochs=1, batch_size=16, accumulate=3, crop_padding=0, flip="none", cutout=0, momentum=0.0)
    recipe = dataclasses.replace(TINY, epochs=1, lr=0.05, crop_padding=0, flip="none", cutout=0)
    want, train = plain(), trainable_net.pictures(80, "train")
    generator = torch.Generator().manual_seed(0)
    order = draw(recipe, 0, (32, 32), first_mirrored(80, generator), generator).order
    images = (torch.from_numpy(train.images).float() / 255)[order].permute(0, 3, 1, 2)
    labels = torch.from_numpy(train.labels).long()[order]
    optimizer = torch.optim.SGD(parameter_groups(want, TINY), lr=0.0)
    # Two updates, a quarter epoch's warm-up of 0.5: rates 0.05 · (1 + cos(π · done)) / 2 at done = 0.2 and 0.6.
    for part, rate in ((slice(0, 48), 0.0452254), (slice(48, 80), 0.0172746)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        nn.functional.cross_entropy(want(images[part]), labels[part], label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(got, want)


def test_gradients_longer_than_the_limit_are_scaled_down_to_it():
    module = nn.Linear(2, 1, bias=False)
    made = optimizers(module, clip_norm=0.5, momentum=0.0, weight_decay=0.0, lr=1.0)
    made.set_rate(0)
    before = module.weight.detach().clone()
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    made.step()
    torch.testing.assert_close(before - module.weight, 0.9045085 * torch.tensor([[0.3, 0.4]]))
    assert module.weight.grad is None


@pytest.mark.parametrize(("amp", "scaled"), [("fp16", True), ("bf16", False), ("off", False)])
def test_the_loss_is_scaled_for_fp16_only_and_gradients_are_clipped_in_their_own_scale(amp, scaled):
    module = nn.Linear(2, 1, bias=False)
    made = optimizers(module, amp=amp, clip_norm=0.5, momentum=0.0, weight_decay=0.0, lr=1.0)
    assert made.scaler.is_enabled() is scaled
    made.set_rate(0)
    before = module.weight.detach().clone()
    made.backward(module(torch.tensor([[3.0, 4.0]])).sum(), 1)
    assert module.weight.grad.norm().item() == (5.0 * 65536 if scaled else 5.0)
    made.step()
    torch.testing.assert_close(before - module.weight, 0.9045085 * torch.tensor([[0.3, 0.4]]))


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 0.02), ("muon", 0.2)])
def test_every_optimizer_learns(tiny, tmp_path, optimizer, lr):
    from accel.trainers import train

    changes = {"optimizer": optimizer, "lr": lr, "epochs": 40, "cutout": 0, "schedule": "triangular"}
    assert train("tiny", recipe=tiny, overrides=changes, out=tmp_path, device="cpu").top1 >= 50
