"""airbench94: its first weights, what of it learns and by which rates, its deployed form, and the script that times it."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import trainable_net
from trainable_net import TINY

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from accel import trainers  # noqa: E402
from accel.engines.module import build_module  # noqa: E402
from accel.errors import ConfigError  # noqa: E402
from accel.progress import silent  # noqa: E402
from accel.trainers import backend, default_recipe, loop, run, train  # noqa: E402
from accel.trainers.data import PREPROCESS  # noqa: E402
from accel.trainers.models import airbench94  # noqa: E402
from accel.trainers.muon import Muon  # noqa: E402
from accel.trainers.optimizers import BUILDERS, Optimizers, parameter_groups  # noqa: E402
from accel.trainers.ranks import Ranks  # noqa: E402
from accel.trainers.views import Views  # noqa: E402

CPU = torch.device("cpu")
FACTORY = "accel.trainers.models.airbench94:build"
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "airbench.py"


def smooth_images(count: int = 8) -> torch.Tensor:
    """Neighbours alike, as in photographs, and with a mean that is not 0: patches that are far from white."""
    noise = torch.randn(count, 3, 36, 36, generator=torch.Generator().manual_seed(0))
    return 3 * nn.functional.avg_pool2d(noise, 5, 1) + 0.3


def whitening_net() -> nn.Module:
    """A frozen convolution whose bias learns, and one for Muon with its BatchNorm."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 2, stride=4), nn.GELU(), nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(2)]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10, bias=False))
    module[0].weight.requires_grad_(False)
    module[3].weight.requires_grad_(False)
    return module


WHITENED = dataclasses.replace(TINY, optimizer="muon", schedule="triangular", warmup_epochs=0, epochs=4, whitening_epochs=2, cutout=0)


def fitted(module: nn.Module, recipe: trainers.Recipe, **given) -> tuple[nn.Module, list[dict]]:
    """The trained module and the state after every epoch."""
    pictures, states = trainable_net.pictures(128, "train"), []
    pixels, labels = torch.from_numpy(pictures.images), torch.from_numpy(pictures.labels).long()
    views = Views(pixels, labels, recipe, colours=((0.5,) * 3, (0.25,) * 3), dtype=torch.float32, num_classes=10)
    trained = loop.fit(module, views, recipe, on_state=lambda state: states.append(copy.deepcopy(state)), **given)
    return trained.module, states


def test_the_first_convolution_makes_patches_white():
    images, module = smooth_images(), airbench94.build()
    airbench94.initialise(module, images)
    patches = np.stack([image[:, y : y + 2, x : x + 2].ravel() for image in images.numpy() for y in range(31) for x in range(31)])
    variances = np.linalg.eigvalsh(patches.T.astype(np.float64) @ patches / len(patches))
    assert variances[-1] > 100 * variances[0]
    with torch.no_grad():
        outputs = nn.functional.conv2d(images, module.whiten.weight).permute(0, 2, 3, 1).reshape(-1, 24).double()
    moments = (outputs.T @ outputs / len(outputs)).numpy()
    np.testing.assert_allclose(moments[:12, :12], np.diag(variances / (variances + 5e-4)), atol=5e-3)
    assert torch.equal(module.whiten.weight[12:], -module.whiten.weight[:12])


def test_the_first_convolution_is_the_same_in_16_bits():
    module = airbench94.build()
    airbench94.initialise(module, smooth_images())
    assert torch.equal(module.whiten.weight.half().float(), module.whiten.weight)


def test_a_convolution_begins_as_the_identity_on_as_many_channels_as_it_takes():
    torch.manual_seed(0)
    module = airbench94.build()
    for group, (taken, made) in zip(module.groups, [(24, 64), (64, 256), (256, 256)], strict=True):
        for convolution, channels in ((group.conv1, taken), (group.conv2, made)):
            x = torch.randn(1, channels, 5, 5)
            with torch.no_grad():
                y = convolution(x)
            assert y.shape == (1, made, 5, 5)
            torch.testing.assert_close(y[:, :channels], x)
            assert not (y[:, channels:] == 0).any()
    assert module.head.weight.std().item() == pytest.approx(1.0)


def test_what_is_frozen():
    frozen = {name for name, parameter in airbench94.build().named_parameters() if not parameter.requires_grad}
    assert frozen == {"whiten.weight"} | {f"groups.{group}.norm{half}.weight" for group in range(3) for half in (1, 2)}


def test_first_weights_follow_from_the_first_train_images_as_the_network_sees_them(monkeypatch):
    seen = []
    monkeypatch.setattr(trainable_net, "initialise", lambda *given: seen.append(given), raising=False)
    monkeypatch.setattr(run, "FIRST_IMAGES", 5)
    pixels, module = torch.arange(7 * 2 * 2 * 3, dtype=torch.uint8).view(7, 2, 2, 3), trainable_net.build()
    colours = PREPROCESS["cifar10"].mean, PREPROCESS["cifar10"].std
    run.initialise("trainable_net:build", module, lambda: pixels, colours)
    ((given, images),) = seen
    assert (given, images.dtype, images.shape) == (module, torch.float32, (5, 3, 2, 2))
    mean, std = colours
    assert images[1, 2, 0, 1].item() == pytest.approx((17 / 255 - mean[2]) / std[2])


def test_images_are_not_even_read_where_first_weights_do_not_depend_on_them():
    run.initialise("trainable_net:build", trainable_net.build(), lambda: pytest.fail("read"), ((0.0,), (1.0,)))


def test_each_kind_of_parameter_has_its_rate_and_decay():
    recipe = dataclasses.replace(WHITENED, lr=8.0, bias_lr=0.5, weight_decay=0.01, bias_weight_decay=0.02)
    module = whitening_net()
    made = Optimizers(module, recipe, CPU, total=8, warmup=0)
    groups = [group for member in made.members for group in member.param_groups]
    assert [[parameter.shape for parameter in group["params"]] for group in groups] == [[(10, 32)], [(8,)], [(6,)], [(8, 6, 3, 3)]]
    assert groups[1]["params"][0] is module[3].bias
    assert groups[2]["params"][0] is module[0].bias
    assert [group["lr"] for group in groups] == [8.0, 0.5, 0.5, 0.24]
    assert [group.get("weight_decay") for group in groups] == [0.01, 0.02, 0.02, None]
    plain, biases, _ = parameter_groups(module, dataclasses.replace(recipe, bias_lr=0.0))
    assert (plain["lr"], biases["lr"]) == (8.0, 8.0)


def test_the_rate_of_a_whitening_bias_comes_down_within_its_epochs():
    made = Optimizers(whitening_net(), dataclasses.replace(WHITENED, lr=9.0, bias_lr=0.5), CPU, total=8, warmup=0)
    rates = []
    for update in range(8):
        made.set_rate(update)
        rates.append([group["lr"] for group in made.members[0].param_groups])
    linear, biases, whitening = zip(*rates, strict=True)
    assert linear == pytest.approx([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert biases == pytest.approx([rate / 18 for rate in linear])
    assert whitening == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0])


def test_a_whitening_bias_learns_for_its_epochs_and_frozen_weights_never():
    module = whitening_net()
    first = copy.deepcopy(module.state_dict())
    _, states = fitted(module, WHITENED)
    _, second, third, fourth = (state["module"] for state in states)
    assert not torch.equal(second["0.bias"], first["0.bias"])
    assert torch.equal(third["0.bias"], second["0.bias"])
    assert torch.equal(fourth["0.bias"], second["0.bias"])
    for name in ("0.weight", "3.weight"):
        assert torch.equal(fourth[name], first[name])
    for name in ("2.weight", "3.bias", "6.weight"):
        assert not torch.equal(fourth[name], third[name])


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_resumed_on_either_side_of_that_equals_an_uninterrupted_one(epoch):
    whole, states = fitted(whitening_net(), WHITENED)
    resumed, _ = fitted(whitening_net(), WHITENED, resumed=states[epoch - 1])
    assert all(torch.equal(one, other) for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_whitening_epochs_want_a_whitening_convolution():
    with pytest.raises(ConfigError, match="whitening_epochs = 2: tiny has no convolution with frozen weights"):
        parameter_groups(trainable_net.build(), WHITENED)


def test_every_part_of_a_run_that_needs_it_is_compiled_before_the_clock_starts(monkeypatch):
    module, called = whitening_net(), []
    made = Optimizers(module, WHITENED, CPU, total=8, warmup=0)
    assert made.stages() == [0, 2]

    def forward(images, labels):
        called.append(module[0].bias.requires_grad)
        return module(images).sum(), None

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    stages = [lambda epoch=epoch: made.begin_epoch(epoch) for epoch in made.stages()]
    before = copy.deepcopy(module.state_dict())
    example = (torch.randn(4, 3, 32, 32), None)
    gpu = torch.device("cuda:0")
    _, facts = backend.compiled_or_eager(
        forward, module, lambda: example, device=gpu, mode="default", progress=lambda *report: None, stages=stages
    )
    assert facts["used"]
    assert called == [True] * 3 + [False] * 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items() if tensor.is_floating_point())
    assert all(parameter.grad is None for parameter in module.parameters())
    made.begin_epoch(0)
    assert module[0].bias.requires_grad


def test_the_recipes_rates_are_those_of_the_summed_loss():
    """SGD by the numbers of the script, on the gradients of a sum over 2000 images, against ours on their mean."""
    recipe, total = dataclasses.replace(default_recipe("airbench94"), amp="off"), 200
    torch.manual_seed(0)
    module = airbench94.build()
    made = Optimizers(module, recipe, CPU, total=total, warmup=0)
    theirs = [module.head.weight.detach().clone(), module.groups[0].norm1.bias.detach().clone(), module.whiten.bias.detach().clone()]
    rates, shares = (0.67, 0.053, 0.053), (200, 200, 75)
    sgd = torch.optim.SGD([{"params": [own], "lr": rate} for own, rate in zip(theirs, rates, strict=True)], momentum=0.85, nesterov=True)
    for step in range(3):
        for group, rate, steps in zip(sgd.param_groups, rates, shares, strict=True):
            # One more in both, because our straight line would reach 0 a step after the last.
            group["lr"] = rate * (steps - step) / (steps + 1)
            group["weight_decay"] = 2e-6 * 2000 / rate
        made.set_rate(step)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter) / 2000 if parameter.requires_grad else None
        for own, parameter in zip(theirs, (module.head.weight, module.groups[0].norm1.bias, module.whiten.bias), strict=True):
            own.grad = 2000 * parameter.grad
        sgd.step()
        made.step()
    for own, parameter in zip(theirs, (module.head.weight, module.groups[0].norm1.bias, module.whiten.bias), strict=True):
        torch.testing.assert_close(parameter.detach(), own, rtol=1e-4, atol=1e-5)


def scaled_updates(optimizer, parameters: list[nn.Parameter], batches: list[list[torch.Tensor]], scaler) -> list[torch.Tensor]:
    """The parameters after an update for each batch of gradients, which come scaled."""
    for gradients in batches:
        scaler.scale(torch.zeros(()))  # makes the scale, as a loss does
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
    return [parameter.detach().clone() for parameter in parameters]


def test_muon_takes_scaled_gradients_and_skips_infinite_ones():
    torch.manual_seed(0)
    weights = [torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3), torch.randn(6, 4, 1, 1)]
    good, other, bad = ([torch.randn_like(weight) for weight in weights] for _ in range(3))
    bad[1][0, 0, 0, 0], bad[2][0] = float("inf"), float("nan")

    def updated(batches, **scaler) -> list[torch.Tensor]:
        parameters = [nn.Parameter(weight.clone()) for weight in weights]
        return scaled_updates(Muon(list(parameters), lr=0.2, momentum=0.6), parameters, batches, torch.amp.GradScaler("cpu", **scaler))

    plain = updated([good, other], enabled=False)
    for got, want in zip(updated([good, other], init_scale=1024.0), plain, strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(updated([bad, good, bad, other, bad], init_scale=1024.0), plain, strict=True):
        torch.testing.assert_close(got, want)


def test_a_first_update_that_is_skipped_leaves_nothing_in_sgds_momentum():
    module = nn.Linear(4, 1, bias=False)
    (sgd,) = BUILDERS["sgd"](module, dataclasses.replace(TINY, lr=1.0, weight_decay=0.0), True)
    assert sgd.defaults["fused"]
    before = module.weight.detach().clone()
    batches = [[torch.full((1, 4), gradient)] for gradient in (float("inf"), 1.0)]
    (after,) = scaled_updates(sgd, [module.weight], batches, torch.amp.GradScaler("cpu", init_scale=8.0))
    torch.testing.assert_close(before - after, torch.full((1, 4), 1.9))  # g + 0.9 · (0.9 · 0 + g)


def trained_looking(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.3, 3.0, generator=generator)
            nn.init.normal_(layer.bias, 0, 0.3, generator=generator)
    airbench94.initialise(module, smooth_images())
    return module.eval()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"])
def test_the_deployed_form_has_the_logits_of_the_trained_one(dtype, limit):
    torch.manual_seed(0)
    module = trained_looking(airbench94.build(num_classes=5)).to(dtype)
    images = torch.randn(4, 3, 32, 32, dtype=dtype)
    deployed = airbench94.deployed(module)
    with torch.inference_mode():
        expected, found = module(images), deployed(images)
    assert (found - expected).abs().max() <= limit * expected.abs().max()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in deployed.modules())
    built = airbench94.build_deployed(num_classes=5)
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (deployed, built)]
    assert shapes[0] == shapes[1]


SMALL = {"epochs": 2, "limit": 16, "batch_size": 8, "amp": "off", "whitening_epochs": 1, "lr": 10.0, "bias_lr": 1.0}


def test_a_trained_one_is_stored_as_it_is_deployed_and_whitens_its_own_train_images(tiny, tmp_path):
    checkpoint = train("airbench94", recipe=default_recipe("airbench94"), overrides=SMALL, out=tmp_path, device="cpu")
    assert checkpoint.factory == "accel.trainers.models.airbench94:build_deployed"
    expected, train_set = airbench94.build(), trainable_net.pictures(200, "train")
    prepare = PREPROCESS["cifar10"]
    run.initialise(FACTORY, expected, lambda: torch.from_numpy(train_set.images[:16]), (prepare.mean, prepare.std))
    assert torch.equal(build_module(checkpoint).whiten.weight, expected.whiten.weight)


def test_what_stops_learning_within_a_run_is_not_trained_by_several_processes(tiny, tmp_path):
    recipe = default_recipe("airbench94").replaced(SMALL)
    with pytest.raises(ConfigError, match=r"whitening_epochs = 1 .* 2 processes cannot\n.*in one process"):
        run.run(recipe, factory=FACTORY, out=tmp_path, device="cpu", ranks=Ranks(count=2), progress=silent)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("airbench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_script_trains_each_seed_as_accel_train_does_and_writes_what_it_found(script, tiny, tmp_path, capsys):
    typed = [f"--set={key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in SMALL.items()]
    file = tmp_path / "new" / "out.json"
    assert script.main(["--device", "cpu", "--seeds", "2", *typed, "--out", str(file), "--check"]) == 3
    found = json.loads(file.read_text())
    alone = train("airbench94", recipe=default_recipe("airbench94"), overrides={**SMALL, "seed": 1}, out=tmp_path, device="cpu")
    assert found["rows"][1]["top1"] == json.loads((tmp_path / "run.json").read_text())["top1_unrounded"]
    assert [row["seed"] for row in found["rows"]] == [0, 1]
    assert {key: found["recipe"][key] for key in SMALL} == SMALL
    assert [row["loss_scale"] for row in found["rows"]] == [None, None]  # no scaling without fp16
    assert alone.recipe == {**found["recipe"], "seed": 1}
    assert found["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["within"] is False
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tops", "seconds", "within"),
    [((93.0, 93.2), (2.3, 2.1), True), ((93.0, 93.18), (2.0, 2.0), False), ((94.0, 94.0), (2.2, 2.3), False)],
)
def test_the_script_judges_the_means(script, tops, seconds, within):
    found = script.judged([{"top1": top, "seconds": second} for top, second in zip(tops, seconds, strict=True)])
    assert found["within"] is within
    assert found["mean"] == {"top1": pytest.approx(sum(tops) / 2), "seconds": pytest.approx(sum(seconds) / 2)}
    assert found["std"]["top1"] == pytest.approx(abs(tops[0] - tops[1]) / 2**0.5, abs=1e-4)


def test_the_script_refuses_what_the_recipe_has_not(script, capsys):
    assert script.main(["--set", "epoch=3"]) == 2
    assert "no key 'epoch'" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_it_trains_compiled_on_a_gpu_with_a_bias_that_stops_learning(tiny, tmp_path, mode):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    changes = {**SMALL, "amp": "fp16", "compile_mode": mode}
    train("airbench94", recipe=default_recipe("airbench94"), overrides=changes, out=tmp_path, device="cuda:0")
    assert json.loads((tmp_path / "run.json").read_text())["compilation"]["used"]


@pytest.mark.gpu
def test_an_update_in_fp16_never_waits_for_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    gpu = torch.device("cuda:0")
    module = whitening_net().to(gpu).train()
    made = Optimizers(module, dataclasses.replace(WHITENED, amp="fp16"), gpu, total=8, warmup=0)
    images = torch.randn(16, 3, 32, 32, device=gpu)

    def update(number: int) -> None:
        made.begin_epoch(0)
        made.set_rate(number)
        with torch.autocast("cuda", dtype=torch.float16):
            loss = module(images).float().square().mean()
        made.backward(loss, 1)
        made.step()

    update(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
