"""What the schedule `cluster` takes of a network: a chain of convolutions and a head; the rest it refuses by name."""

from __future__ import annotations

import dataclasses

from accel.exporters.fused.network import INPUT, Convolution, Layer, Linear, Network, Pool, Shape, refused


@dataclasses.dataclass(frozen=True)
class Head:
    """The linear layer behind the mean over `pixels`; None: the mean, or the last convolution, is the answer itself."""

    layers: tuple[Layer, ...]
    linear: Linear | None
    outputs: int
    pixels: int


def chain_of(network: Network) -> tuple[list[Convolution], Head]:
    """The convolutions, each of which reads the one before, and what ends the network; refuses by name what this schedule does not do."""
    layers = list(network.layers)
    convolutions: list[Convolution] = []
    before = INPUT
    while layers and isinstance(layer := layers[0], Convolution):
        if layer.groups > 1:
            raise refused(layer.name, "convolution", "the schedule cluster computes no grouped convolutions")
        if layer.residual is not None:
            raise refused(layer.name, "convolution", "the schedule cluster adds no residuals")
        if layer.source != before:
            raise refused(layer.name, "convolution", f"the schedule cluster takes chains alone, and it reads {layer.source!r}")
        before = layer.name
        convolutions.append(layer)
        layers.pop(0)
    if len(convolutions) < 2:
        name = network.layers[min(len(convolutions), len(network.layers) - 1)].name
        raise refused(name, "network", "the schedule cluster begins with two or more convolutions")
    last, rest = convolutions[-1], tuple(layers)
    head = _head(last.output, rest)
    if head is None or (rest and rest[0].source != last.name):
        raise refused(
            rest[0].name if rest else last.name,
            type(rest[0] if rest else last).__name__.lower(),
            "the schedule cluster ends with a global average, a linear layer, or both",
        )
    return convolutions, head


def _head(given: Shape, rest: tuple[Layer, ...]) -> Head | None:
    pooled = bool(rest) and isinstance(pool := rest[0], Pool) and pool.is_global and pool.how == "average"
    behind = rest[1:] if pooled else rest
    if not behind:
        return Head(rest, None, given.channels, given.pixels) if pooled or given.pixels == 1 else None
    linear = behind[0]
    if len(behind) > 1 or not isinstance(linear, Linear) or not (pooled or given.pixels == 1):
        return None
    return Head(rest, linear, linear.output.channels, given.pixels)
