"""What each format can be asked for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FormatInfo:
    """Attributes:
    file: the name of the file that a runtime opens.
    precisions: what `--precision` may name.
    opsets: lowest and highest that may be asked for, None where the format has none.
    opset: taken where none is asked for.
    extra: what installs the exporter's packages.
    per_device: compiled for the kind of device that the export names; one of another kind is exported anew.
    """

    file: str
    precisions: tuple[str, ...]
    opsets: tuple[int, int] | None
    opset: int | None
    extra: str
    per_device: bool = False


FORMATS: dict[str, FormatInfo] = {
    # 17 is the highest that TensorRT 8.6 parses; 18-23 go through the exporter that is built on torch.export.
    "onnx": FormatInfo("model.onnx", ("fp32", "fp16"), (11, 23), 17, "onnx"),
    "torchscript": FormatInfo("model.ts", ("fp32", "fp16"), None, None, "train"),
    "aoti": FormatInfo("model.pt2", ("fp32", "fp16"), None, None, "train", per_device=True),
}
