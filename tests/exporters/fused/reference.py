"""The intermediate form computed in float64, layer by layer, in the plainest way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from accel.exporters.fused.network import INPUT, Convolution, Layer, Linear, Network, Pool

Values = NDArray[np.float64]

FUNCTIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def run(network: Network, image: Values) -> dict[str, Values]:
    """Every layer's result, channels × height × width, for an image of that layout."""
    results = {INPUT: image.astype(np.float64)}
    for layer in network.layers:
        results[layer.name] = layer_of(layer, results)
    return results


def layer_of(layer: Layer, results: dict[str, Values]) -> Values:
    x = results[layer.source]
    if isinstance(layer, Linear):
        return FUNCTIONS[layer.activation](layer.weight.astype(np.float64) @ x.reshape(-1) + layer.bias).reshape(-1, 1, 1)
    if isinstance(layer, Pool):
        windows = _windows(x, layer.kernel, layer.stride, layer.padding, -np.inf if layer.how == "max" else 0.0)
        return windows.max((3, 4)) if layer.how == "max" else windows.mean((3, 4))
    return _convolution(layer, x, results)


def _convolution(layer: Convolution, x: Values, results: dict[str, Values]) -> Values:
    windows = _windows(x, layer.kernel, layer.stride, layer.padding, 0.0)
    inside, outside = np.split(windows, layer.groups), np.split(layer.weight.astype(np.float64), layer.groups)
    pairs = zip(outside, inside, strict=True)
    y = np.concatenate([np.tensordot(weight, part, ((1, 2, 3), (0, 3, 4))) for weight, part in pairs])
    y += layer.bias.astype(np.float64)[:, None, None]
    if layer.residual is not None:
        y += results[layer.residual]
    return FUNCTIONS[layer.activation](y)


def _windows(x: Values, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], filler: float) -> Values:
    """channels × height out × width out × kernel height × kernel width"""
    padded = np.pad(x, ((0, 0), *((size, size) for size in padding)), constant_values=filler)
    return np.lib.stride_tricks.sliding_window_view(padded, kernel, (1, 2))[:, :: stride[0], :: stride[1]]
