"""What each format can be asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from accel.errors import UnknownName, UsageError


@dataclasses.dataclass(frozen=True)
class FormatInfo:
    """Attributes:
    file: the name of the file that a runtime opens.
    precisions: what `--precision` may name.
    opsets: lowest and highest that may be asked for, None where the format has none.
    opset: taken where none is asked for.
    extra: what installs the exporter's packages.
    per_device: compiled by this machine's compiler for the device that the export names; `all` does without it where that fails.
    source: format of the engine that it is built from; None where it is made from the module.
    module_first: made from the module all the same, where there is one and torch is here; from the source elsewhere.
    batch: the only batch size that it has; None where it may be chosen.
    options: fields of BuildOptions that it takes.
    flavors: `--flavor` → the format that it turns this one into.
    details: `module:function`, given the file, what `accel inspect` shows of it as a table; None has none.
    current: `module:function`, asked whether an engine that is there is what would be built now; None compares the opset alone.
    """

    file: str
    precisions: tuple[str, ...]
    opsets: tuple[int, int] | None
    opset: int | None
    extra: str
    per_device: bool = False
    source: str | None = None
    module_first: bool = False
    batch: int | None = None
    options: tuple[str, ...] = ()
    flavors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    current: str | None = None
    details: str | None = None


_BATCHES = ("min_batch", "opt_batch", "max_batch")
_TENSORRT = ("timing_cache", "version_compatible", "hardware_compatible", "tactic_sources", "builds")

FORMATS: dict[str, FormatInfo] = {
    # 17 is the highest that TensorRT 8.6 parses; 18-23 go through the exporter that is built on torch.export.
    "onnx": FormatInfo("model.onnx", ("fp32", "fp16"), (11, 23), 17, "onnx"),
    "torchscript": FormatInfo("model.ts", ("fp32", "fp16"), None, None, "train"),
    "aoti": FormatInfo("model.pt2", ("fp32", "fp16"), None, None, "train", per_device=True, current="accel.exporters.aoti:is_current"),
    "tensorrt": FormatInfo(
        "model.plan",
        ("fp32", "fp16"),
        None,
        None,
        "trt",
        source="onnx",
        options=("workspace", "optimization_level", "allow_mixed", *_TENSORRT, *_BATCHES),
        flavors={"rtx": "tensorrt-rtx"},
        current="accel.exporters.tensorrt:is_current",
    ),
    "tensorrt-rtx": FormatInfo(
        "model.plan",
        ("fp32", "fp16"),
        None,
        None,
        "rtx",
        source="onnx",
        options=("workspace", "optimization_level", "allow_mixed", "compute_capabilities", *_BATCHES),
        current="accel.exporters.tensorrt:is_current_rtx",
    ),
    "fused": FormatInfo(
        "plan.json",
        ("fp16",),
        None,
        None,
        "fused",
        source="onnx",
        module_first=True,
        batch=1,
        options=("compute_capabilities", "tune", "tune_s"),
        current="accel.exporters.fused.exporting:is_current",
        details="accel.engines.fused_plan:rows",
    ),
}

ALIASES = {"trt": "tensorrt"}
"""Short names that may be typed wherever a format is named."""


def resolve(name: str, flavor: str | None = None) -> str:
    """The key of FORMATS that `name` means; `flavor` picks one of a format's relatives.

    Raises:
        UnknownName: there is no such format. UsageError: the format has no such flavor.
    """
    format = ALIASES.get(name, name)
    if format not in FORMATS:
        raise UnknownName("export format", name, list(FORMATS))
    if flavor is None:
        return format
    flavors = FORMATS[format].flavors
    if flavor not in flavors:
        known = [f"--to {other} --flavor {word}" for other, info in FORMATS.items() for word in info.flavors]
        raise UsageError(f"{format} has no flavor {flavor!r}", remedy=f"leave --flavor out, or use {', '.join(known)}")
    return flavors[flavor]
