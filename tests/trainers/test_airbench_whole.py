"""A whole run of airbench94's recipe against its mathematics written down a second time: in FP64, by function calls, on a summed loss."""

from __future__ import annotations

import dataclasses

import pytest
import trainable_net

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from accel.trainers import default_recipe, loop, run  # noqa: E402
from accel.trainers.data import PREPROCESS  # noqa: E402
from accel.trainers.views import Views  # noqa: E402

FACTORY = "accel.trainers.models.airbench94:build"
COLOURS = PREPROCESS["cifar10"].mean, PREPROCESS["cifar10"].std
BATCH, EPOCHS, WHITENING = 8, 8, 3
SUMMED = 2000
"""The images whose losses the script adds up; of our few, each stands for an equal share of them."""

HEAD_LR, BIAS_LR, MUON_LR, DECAY = 0.67, 0.053, 0.24, 2e-6 * SUMMED
"""The script's; DECAY is the share that a weight loses at the highest rate."""


def answers(state: dict[str, Tensor], x: Tensor, *, learn: bool) -> Tensor:
    """Logits; with `learn` from the batch's own statistics, which also move the running ones."""

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if learn:
            count = x.numel() // x.shape[1]
            own, spread = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
            with torch.no_grad():
                mean += 0.4 * (own - mean)
                var += 0.4 * (spread * count / (count - 1) - var)
            mean, var = own, spread
        return (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-12).sqrt() + state[f"{name}.bias"].view(-1, 1, 1)

    x = functional.gelu(functional.conv2d(x, state["whiten.weight"], state["whiten.bias"]))
    for group in ("groups.0", "groups.1", "groups.2"):
        x = functional.max_pool2d(functional.conv2d(x, state[f"{group}.conv1.weight"], padding=1), 2)
        x = functional.gelu(normalised(x, f"{group}.norm1"))
        x = functional.conv2d(x, state[f"{group}.conv2.weight"], padding=1)
        x = functional.gelu(normalised(x, f"{group}.norm2"))
    return x.amax(dim=(2, 3)) @ state["head.weight"].T / 256


def smoothed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed; 0.2 of a label is spread over all ten classes."""
    wanted = 0.8 * functional.one_hot(labels, 10) + 0.02
    return -(wanted * logits.log_softmax(dim=1)).sum() * (SUMMED / len(labels))


def orthogonal(matrix: Tensor) -> Tensor:
    """Singular vectors as they are; of a value's factor by the quintic only its square, an eigenvalue, needs to be known."""
    matrix = matrix / matrix.norm()
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    factor = torch.ones_like(squares)
    for _ in range(3):
        squared = squares * factor**2
        factor = factor * (3.4445 - 4.7750 * squared + 2.0315 * squared**2)
    return (vectors * factor) @ vectors.T @ matrix


def trained_by_hand(state: dict[str, Tensor], batches: list[tuple[Tensor, Tensor]]) -> None:
    """Train `state` in place, an update for each batch."""
    frozen = ("whiten.weight", "norm1.weight", "norm2.weight", "running_mean", "running_var", "num_batches_tracked")
    learned = [name for name in state if not name.endswith(frozen)]
    momenta = {name: torch.zeros_like(state[name]) for name in learned}
    for update, (images, labels) in enumerate(batches):
        names = [name for name in learned if name != "whiten.bias" or update < WHITENING]
        leaves = {name: state[name].clone().requires_grad_() for name in names}
        loss = smoothed_loss(answers({**state, **leaves}, images, learn=True), labels)
        for name, gradient in zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            total = WHITENING if name == "whiten.bias" else EPOCHS
            left = (total - update) / (total + 1)  # the script divides by `total`: its rates are higher by this one part
            weight, momentum = state[name], momenta[name]
            if name.endswith(("conv1.weight", "conv2.weight")):
                momentum.mul_(0.6).add_(gradient)
                direction = orthogonal((gradient + 0.6 * momentum).flatten(1)).view(weight.shape)
                weight.mul_(len(weight) ** 0.5 / weight.norm()).sub_(MUON_LR * left * direction)
            else:
                rate = HEAD_LR if name == "head.weight" else BIAS_LR
                gradient = gradient + DECAY / rate * weight
                momentum.mul_(0.85).add_(gradient)
                weight.sub_(rate * left * (gradient + 0.85 * momentum))


def test_a_run_is_what_the_scripts_mathematics_make_of_the_same_batches():
    recipe = dataclasses.replace(default_recipe("airbench94"), batch_size=BATCH, amp="off")
    assert (recipe.epochs, recipe.whitening_epochs, recipe.label_smoothing) == (EPOCHS, WHITENING, 0.2)
    pictures = trainable_net.pictures(BATCH, "train")
    pixels, labels = torch.from_numpy(pictures.images), torch.from_numpy(pictures.labels).long()
    torch.manual_seed(0)
    module = run.build(FACTORY, 10)
    run.initialise(FACTORY, module, lambda: pixels, COLOURS)
    module = module.double()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first = {name: tensor.clone() for name, tensor in state.items()}

    def views() -> Views:
        return Views(pixels, labels, recipe, colours=COLOURS, dtype=torch.float64, num_classes=10)

    mine, batches = views(), []
    for epoch in range(EPOCHS):
        mine.begin(epoch)
        images, targets = mine.batch(0)
        batches.append((images.permute(0, 3, 1, 2).clone(), targets.clone()))
    trained_by_hand(state, batches)
    trained = loop.fit(module, views(), recipe).module

    for name, tensor in trained.state_dict().items():
        if tensor.is_floating_point():
            gone = (state[name] - first[name]).norm()
            assert (tensor - state[name]).norm() <= 1e-3 * gone, name
    with torch.inference_mode():
        expected, found = answers(state, batches[0][0], learn=False), trained(batches[0][0])
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
