"""A module or an ONNX file read into the fused format's layers computes what the module computes; what does not fit is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporters.fused.reference import run

from accel.engines.folding import fold_batchnorm
from accel.errors import UnsupportedOperator, UsageError
from accel.exporters.fused import from_onnx, from_torch
from accel.exporters.fused.network import INPUT, Convolution, Linear, Network, Pool, Shape

torch = pytest.importorskip("torch")
models = pytest.importorskip("accel.trainers.models")

IMAGE = Shape(3, 16, 16)


def folded(build: Any) -> Any:
    torch.manual_seed(0)
    module = build().eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return fold_batchnorm(module)


def furthest(network: Network, module: Any) -> float:
    """The largest difference to the eager float64 answer on a fresh image, relative to the largest logit."""
    image = np.random.default_rng().standard_normal((network.input.channels, network.input.height, network.input.width))
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(image)[None])[0].numpy().reshape(-1)
    found = run(network, image)[network.layers[-1].name].reshape(-1)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def small(*layers: Any) -> Any:
    nn = torch.nn
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers).eval()


def head(channels: int = 8) -> list[Any]:
    return [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 4)]


def model(name: str) -> Any:
    import importlib

    module = importlib.import_module(f"accel.trainers.models.{name}")
    return folded(getattr(module, "build_deployed", module.build))


@pytest.mark.parametrize(("name", "layers"), [("student_a", 7), ("student_b", 10), ("student_c", 11), ("resnet18", 22)])
def test_a_shipped_model_is_read_and_computes_what_it_computed(name: str, layers: int) -> None:
    module = model(name)
    network = from_torch.read(module, IMAGE)
    assert len(network.layers) == layers
    assert furthest(network, module) < 1e-5


def test_a_residual_goes_into_the_later_convolution() -> None:
    layers = {layer.name: layer for layer in from_torch.read(model("resnet18"), IMAGE).layers}
    plain, down = layers["layer1.0.conv2"], layers["layer2.0.conv2"]
    assert isinstance(plain, Convolution)
    assert isinstance(down, Convolution)
    assert (plain.residual, plain.activation) == ("conv1", "relu")
    assert (down.residual, down.activation) == ("layer2.0.downsample.0", "relu")
    assert layers["layer2.0.downsample.0"].activation == "none"  # type: ignore[union-attr]
    assert isinstance(layers["avgpool"], Pool)
    assert layers["avgpool"].is_global
    assert isinstance(layers["fc"], Linear)
    assert layers["conv1"].source == INPUT


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_onnx_file_is_read_as_the_module_is(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("onnx")
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1, groups=2)
            self.pool, self.tail = nn.MaxPool2d(2), nn.Sequential(*head())

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.first(x))
            x = torch.nn.functional.hardswish(x + self.second(x))
            return self.tail(self.pool(torch.nn.functional.silu(self.third(x))))

    torch.manual_seed(2)
    module = Net().eval()
    dtype = getattr(torch, precision)
    path = tmp_path / "model.onnx"
    torch.onnx.export(module.to(dtype), (torch.zeros(1, 3, 16, 16, dtype=dtype),), str(path), dynamo=False, opset_version=17)
    network = from_onnx.read(path)
    direct = from_torch.read(module.float(), IMAGE)
    assert [type(layer) for layer in network.layers] == [type(layer) for layer in direct.layers]
    assert [getattr(layer, "activation", "") for layer in network.layers] == ["relu", "hardswish", "silu", "", "", "none"]
    assert furthest(network, module) < 1e-5
    assert furthest(direct, module) < 1e-5


def test_average_windows_count_their_padding() -> None:
    module = small(torch.nn.AvgPool2d(3, 2, 1), *head())
    assert furthest(from_torch.read(module, IMAGE), module) < 1e-5


class Scaled(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


class Doubled(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.relu(x) + x


class Twice(torch.nn.Module):
    """Activates a view of a value that an addition reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.second = torch.nn.Conv2d(8, 8, 1)

    def forward(self, x: Any) -> Any:
        return self.second(torch.relu(x.contiguous())) + x


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (lambda nn: [nn.GELU()], r"layer '1' \(aten.gelu\).*not among the operators"),
        (lambda nn: [nn.BatchNorm2d(8)], r"layer '1' \(aten.batch_norm\)"),
        (lambda nn: [nn.Conv2d(8, 8, 3, dilation=2)], r"layer '1' \(aten.conv2d\).*dilation"),
        (lambda nn: [nn.MaxPool2d(2, ceil_mode=True)], r"layer '1' \(aten.max_pool2d\).*ceil_mode"),
        (lambda nn: [nn.Flatten(), nn.Linear(2048, 4)], r"flatten.*only a pooled vector"),
        (lambda nn: [nn.ReLU(), nn.SiLU()], r"layer '2' \(aten.silu\).*must follow"),
        (lambda nn: [Scaled()], r"layer '1' \(aten.sigmoid\)"),
        (lambda nn: [Doubled()], r"layer '1' \(aten.relu\).*alone reads"),
        (lambda nn: [Twice()], r"layer '1' \(aten.relu\).*alone reads"),
    ],
)
def test_what_the_format_cannot_take_is_refused_with_layer_operator_and_reason(layers: Any, named: str) -> None:
    with pytest.raises(UnsupportedOperator, match=named) as caught:
        from_torch.read(small(*layers(torch.nn)), IMAGE)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_mobilenets_gates_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedOperator, match=r"'features.1.block.1.scale_activation' \(aten.hardsigmoid\)"):
        from_torch.read(model("mobilenetv3_small"), IMAGE)


def test_a_file_of_two_inputs_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    given = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 8, 8]) for name in ("a", "b", "c")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["a", "b"], ["c"])], "g", given[:2], given[2:])
    onnx.save_model(onnx.helper.make_model(graph), str(tmp_path / "two.onnx"))
    with pytest.raises(UsageError, match="one image"):
        from_onnx.read(tmp_path / "two.onnx")
