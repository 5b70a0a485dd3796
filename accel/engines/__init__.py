"""The engine folder: what is in it, how it is read strictly and written whole; no runtime, no exporter.

>>> bundle = Bundle.open("engines/resnet18.accel")  # doctest: +SKIP
>>> bundle.file(bundle.entry("onnx", "fp16"))  # doctest: +SKIP
"""

from accel.engines import archive, compat, embedding, folding, golden, identity, measured, module, signing, trust, tuned, verified
from accel.engines.bundle import Bundle, entry_name
from accel.engines.compat import batch_of
from accel.engines.golden import Golden, Reference
from accel.engines.manifest import CheckpointRecord, Manifest
from accel.engines.writing import add, create, create_bare, holds, write_reference

__all__ = [
    "Bundle",
    "CheckpointRecord",
    "Golden",
    "Manifest",
    "Reference",
    "add",
    "archive",
    "batch_of",
    "compat",
    "create",
    "create_bare",
    "embedding",
    "entry_name",
    "folding",
    "golden",
    "holds",
    "identity",
    "measured",
    "module",
    "signing",
    "trust",
    "tuned",
    "verified",
    "write_reference",
]
