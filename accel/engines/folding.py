"""Fold BatchNorm into the convolution or linear layer before it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from accel.optional import require


def fold_batchnorm(module: Any) -> Any:
    """Return a copy of `module` (nn.Module, eval mode) in which each BatchNorm that directly follows a convolution or linear
    layer is folded into it and replaced by Identity; `module` itself is untouched.

    A pair is found in the graph that torch.fx traces; where the module cannot be traced, only neighbours in an nn.Sequential
    are folded. Weights are folded in float64: w·γ/√(σ²+ε), and (b-μ)·γ/√(σ²+ε)+β for the bias.
    """
    torch = require("torch", extra="train")
    folded = copy.deepcopy(module).eval()
    with torch.no_grad():
        for layer_name, norm_name in list(_pairs(folded)):
            layer, norm = folded.get_submodule(layer_name), folded.get_submodule(norm_name)
            _fold(layer, norm)
            _replace(folded, norm_name, torch.nn.Identity())
    return folded


def count_batchnorm(module: Any) -> int:
    """How many BatchNorm layers `module` still has."""
    torch = require("torch", extra="train")
    return sum(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def _pairs(module: Any) -> Iterator[tuple[str, str]]:
    """Names of a layer and of the BatchNorm that is alone in using its output."""
    torch = require("torch", extra="train")
    fx = require("torch.fx", extra="train")
    try:
        graph = fx.Tracer().trace(module)
    # A forward that fx cannot follow fails in its own words: a branch on values, len() of a proxy, a C function.
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, KeyError, IndexError):
        candidates = _neighbours(module, torch)
    else:
        candidates = _edges(graph)
    aliases = [id(layer) for _, layer in module.named_modules(remove_duplicate=False)]
    for layer_name, norm_name in candidates:
        layer, norm = module.get_submodule(layer_name), module.get_submodule(norm_name)
        if _foldable(layer, norm, torch) and aliases.count(id(layer)) == aliases.count(id(norm)) == 1:
            yield layer_name, norm_name


def _edges(graph: Any) -> list[tuple[str, str]]:
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    return [
        (node.args[0].target, node.target)
        for node in calls
        if len(node.args) == 1
        and getattr(node.args[0], "op", None) == "call_module"
        and len(node.args[0].users) == 1
        and targets.count(node.target) == targets.count(node.args[0].target) == 1
    ]


def _neighbours(module: Any, torch: Any) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, container in module.named_modules():
        if type(container) is torch.nn.Sequential:
            names = [f"{name}.{child}".lstrip(".") for child, _ in container.named_children()]
            found += itertools.pairwise(names)
    return found


def _foldable(layer: Any, norm: Any, torch: Any) -> bool:
    nn = torch.nn
    kinds = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d, nn.Linear: nn.BatchNorm1d}
    has_hooks = any(item._forward_hooks or item._forward_pre_hooks for item in (layer, norm))
    return kinds.get(type(layer)) is type(norm) and norm.running_mean is not None and not has_hooks


def _fold(layer: Any, norm: Any) -> None:
    torch = require("torch", extra="train")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias.double()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.double()
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias = torch.nn.Parameter(((bias - norm.running_mean.double()) * scale + shift).to(layer.weight.dtype), requires_grad=False)
    layer.weight = torch.nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)


def _replace(root: Any, name: str, layer: Any) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, layer)
