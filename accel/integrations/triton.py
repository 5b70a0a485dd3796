"""A Triton model repository: a folder for each engine, with its configuration, its version, its labels.

    NAME/config.pbtxt   NAME/labels.txt   NAME/1/model.onnx   NAME/warmup/golden-0 (where asked for)

What Triton wants, by its documentation of release 26.05:

* the folder's name is the model's; with `max_batch_size` of N ≥ 1 the shapes leave out the batch, which Triton puts before them, and the
  engine must take any batch up to N; with 0 they are the engine's own;
* PyTorch's backend knows tensors by position, `INPUT__0` and `OUTPUT__0`, and does not batch a `torch_aoti` model.

No server was run by anything here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel.engines import Bundle, batch_of, trust
from accel.errors import BundleMissing, UsageError
from accel.integrations import triton_config
from accel.integrations.packaging import Package, Packaged, Request, folder_size
from accel.integrations.placing import copy_files, demand_free, placed
from accel.integrations.triton_config import LABELS_FILE, Word
from accel.runtimes import table
from accel.types import Array, EngineEntry, TensorSpec, Variant

DEFAULT_MAX_BATCH = 32
"""Of a dynamic engine that names no largest batch of its own; what `accel export --batch dynamic` builds a plan for."""

KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}
"""`--device` → where Triton puts the instances."""


WARMUP = "golden-{}"
"""The file of an input's warm-up sample, by the input's position: its name is as the bundle's author wrote it."""


@dataclasses.dataclass(frozen=True)
class Platform:
    """How Triton runs a format.

    Attributes:
        platform, backend: Triton's names.
        file: what the backend opens where the configuration names no other.
        ordinal: tensors are known by their position.
        batches: a dynamic batch may be Triton's own.
        runtime: ours, that says what a device can run.
    """

    platform: str
    backend: str
    file: str
    runtime: str
    ordinal: bool = False
    batches: bool = True


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A model's folder before it is written: `files` are those around its versions."""

    entry: EngineEntry
    target: Path
    config: dict[str, Any]
    files: dict[str, bytes]


PLATFORMS: dict[str, Platform] = {
    "onnx": Platform("onnxruntime_onnx", "onnxruntime", "model.onnx", "onnxruntime"),
    "tensorrt": Platform("tensorrt_plan", "tensorrt", "model.plan", "tensorrt"),
    "torchscript": Platform("pytorch_libtorch", "pytorch", "model.pt", "torchscript", ordinal=True),
    "aoti": Platform("torch_aoti", "pytorch", "model.pt2", "aoti", ordinal=True, batches=False),
}
"""Our formats that Triton has a backend for."""


def write(request: Request) -> Packaged:
    """Write a folder for each engine, each whole or not at all.

    Options: `max_batch_size` and `dynamic_batching` of engines with a dynamic batch; `instances` a device; `device` `auto`, `cpu` or
    `cuda`; `model_version`, 1 by default, which is added beside others where all else is the same; `warmup` with a golden sample.

    Raises:
        UsageError: an option that no engine can have, a name that Triton cannot take, or something is there already.
        RuntimeUnavailable: the device does not run the engine. BundleMissing: there is no engine that Triton runs.
    """
    chosen = _supported(request)
    _demand_batches(chosen, request)
    version = int(request.options.get("model_version", 1))
    planned = [(entry, request.out / (request.name if len(chosen) == 1 else f"{request.name}-{entry.name}")) for entry in chosen]
    folders = [_describe(request, entry, target) for entry, target in planned]
    for folder in folders:
        _demand_room(folder, version, request.force)
    for folder in folders:
        _place(request, folder, version)
    return Packaged(tuple(_package(folder, version) for folder in folders), tuple(_notes(request, chosen)))


def _supported(request: Request) -> tuple[EngineEntry, ...]:
    chosen = tuple(entry for entry in request.engines if entry.format in PLATFORMS)
    refused = [entry.name for entry in request.engines if entry.format not in PLATFORMS]
    if refused and (request.named or not chosen):
        raise UsageError(f"Triton has no backend for {', '.join(refused)}", remedy=f"choose engines of: {', '.join(PLATFORMS)}")
    if not chosen:
        raise BundleMissing(f"{request.bundle.path} has no engines", remedy=f"accel export {request.bundle.name} --to onnx")
    return chosen


def _demand_batches(chosen: Sequence[EngineEntry], request: Request) -> None:
    asked = [name for name in ("max_batch_size", "dynamic_batching") if request.options.get(name)]
    if asked and not any(_batches(entry) for entry in chosen):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise UsageError(
            f"{flags} was given, and Triton can batch none of {', '.join(entry.name for entry in chosen)}",
            remedy=f"accel export {request.bundle.name} --to onnx --batch dynamic, and package that",
        )


def _batches(entry: EngineEntry) -> bool:
    return PLATFORMS[entry.format].batches and batch_of(entry) == "dynamic"


def _configure(request: Request, entry: EngineEntry, name: str) -> dict[str, Any]:
    """The ModelConfig of `entry`, as `triton_config.to_text` takes it."""
    row, options, bundle = PLATFORMS[entry.format], request.options, request.bundle
    largest = _max_batch(entry, options.get("max_batch_size"))
    batched = largest > 0
    inputs = triton_config.tensors(entry.inputs, _names(row, entry.inputs, "INPUT"), batched)
    outputs = triton_config.tensors(entry.outputs, _names(row, entry.outputs, "OUTPUT"), batched)
    for index in _labelled(bundle, entry):
        outputs[index]["label_filename"] = LABELS_FILE
    config: dict[str, Any] = {"name": name, "platform": row.platform, "backend": row.backend, "max_batch_size": largest}
    config |= {"input": inputs, "output": outputs}
    config["version_policy"] = {"latest": {"num_versions": 1}}
    config["instance_group"] = [{"count": int(options.get("instances", 1)), "kind": Word(_kind(entry, options.get("device", "auto")))}]
    if options.get("dynamic_batching") and batched:
        config["dynamic_batching"] = {}
    if options.get("warmup"):
        fed = [{"key": told["name"], "value": _sample(entry.inputs[i], WARMUP.format(i), batched)} for i, told in enumerate(inputs)]
        config["model_warmup"] = [{"name": "golden", "batch_size": 1, "inputs": fed}]
    about = {"bundle": bundle.name, "engine": entry.name, "preprocess": dict(bundle.preprocess)}
    config["parameters"] = [triton_config.parameter("accel", about)]
    return config


def _names(row: Platform, specs: Sequence[TensorSpec], prefix: str) -> list[str]:
    return [f"{prefix}__{index}" if row.ordinal else spec.name for index, spec in enumerate(specs)]


def _labelled(bundle: Bundle, entry: EngineEntry) -> list[int]:
    """The outputs that are N×classes with a label for each class."""
    shapes = [spec.shape for spec in entry.outputs]
    return [index for index, shape in enumerate(shapes) if bundle.labels and len(shape) == 2 and shape[1] == len(bundle.labels)]


def _max_batch(entry: EngineEntry, asked: int | None) -> int:
    """0 for an engine that Triton cannot batch; else what was asked, held against what a plan was built for.

    Raises:
        UsageError: more than that, or less than nothing.
    """
    if not _batches(entry):
        return 0
    profile: Mapping[str, Any] = json.loads(entry.toolchain.get("profile", "{}"))
    largest = min((shapes[-1][0] for shapes in profile.values()), default=None)
    wanted = (largest or DEFAULT_MAX_BATCH) if asked is None else asked
    if wanted < 0 or (largest is not None and wanted > largest):
        raise UsageError(f"--max-batch-size {wanted} for {entry.name}, which takes 0 to {largest}", remedy="accel export … --max-batch N")
    return wanted


def _kind(entry: EngineEntry, device: str) -> str:
    """Where the instances go: where the engine is tied to, else where the user says.

    Raises:
        UsageError: the engine is tied to another kind of device. RuntimeUnavailable: that kind of device does not run it.
    """
    if device not in KINDS:
        raise UsageError(f"--device {device} is no kind of device of Triton's", remedy=f"choose one of: {', '.join(KINDS)}")
    row = PLATFORMS[entry.format]
    tied = "cuda" if table.info(row.runtime).gpu_only else str(entry.target.get("device", "auto"))
    if device == "cpu":
        table.demand(Variant(row.runtime, entry.precision), "cpu")
    if "auto" not in (tied, device) and tied != device:
        raise UsageError(f"{entry.name} is made for {tied} and was asked for on {device}", remedy=f"--device {tied}, or leave it out")
    return KINDS[device if tied == "auto" else tied]


def _sample(spec: TensorSpec, file: str, batched: bool) -> dict[str, Any]:
    shape = spec.fixed(1)[1 if batched else 0 :]
    return {"data_type": Word(triton_config.DTYPES[spec.dtype]), "dims": list(shape), "input_data_file": file}


def _describe(request: Request, entry: EngineEntry, target: Path) -> _Folder:
    config = _configure(request, entry, target.name)
    files = {"config.pbtxt": triton_config.to_text(config).encode("ascii")}
    if _labelled(request.bundle, entry):
        files[LABELS_FILE] = "".join(" ".join(label.split()) + "\n" for label in request.bundle.labels).encode()
    if request.options.get("warmup"):
        golden = request.bundle.golden().inputs
        samples = zip((golden[spec.name] for spec in request.bundle.inputs), entry.inputs, strict=True)
        files |= {f"warmup/{WARMUP.format(i)}": _raw(sample[:1], spec) for i, (sample, spec) in enumerate(samples)}
    return _Folder(entry, target, config, files)


def _raw(sample: Array, spec: TensorSpec) -> bytes:
    """One golden sample in the engine's own dtype and size of batch."""
    if spec.dtype == "bfloat16":
        raise UsageError(f"--warmup: {spec.name} is bfloat16, which numpy cannot write", remedy="leave --warmup out")
    return np.repeat(sample, spec.fixed(1)[0], axis=0).astype(spec.dtype).tobytes()


def _demand_room(folder: _Folder, version: int, force: bool) -> None:
    """Refuse to write over a version, or to add one to a folder that says something else of its model.

    Raises:
        UsageError: names the file that differs.
    """
    if force or not folder.target.is_dir():
        demand_free(folder.target, force)
        return
    if (folder.target / str(version)).exists():
        raise UsageError(
            f"{folder.target} has a version {version}",
            remedy="add another with --model-version, or replace the model, versions and all, with --force",
        )
    for name, data in folder.files.items():
        if not (folder.target / name).is_file() or (folder.target / name).read_bytes() != data:
            raise UsageError(
                f"{folder.target} exists, and its {name} is not that of {folder.entry.name}",
                remedy="replace it, versions and all, with --force, or choose another --name",
            )


def _place(request: Request, folder: _Folder, version: int) -> None:
    if folder.target.is_dir() and not request.force:
        with placed(folder.target / str(version), outside=request.out) as made:
            _copy_engine(request.bundle, folder.entry, made)
        return
    with placed(folder.target, request.force, outside=request.out) as made:
        for name, data in folder.files.items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_bytes(data)
        _copy_engine(request.bundle, folder.entry, made / str(version))


def _copy_engine(bundle: Bundle, entry: EngineEntry, version_folder: Path) -> None:
    opened = bundle.file(entry).relative_to(bundle.path).as_posix()
    names = {name: version_folder / name.removeprefix(f"{entry.name}/") for name in entry.files}
    copy_files(bundle, entry.files, {**names, opened: version_folder / PLATFORMS[entry.format].file})


def _package(folder: _Folder, version: int) -> Package:
    row = PLATFORMS[folder.entry.format]
    size = folder_size(folder.target / str(version))
    return Package(folder.target.name, folder.entry.name, row.platform, folder.config["max_batch_size"], folder.target, size)


def _notes(request: Request, chosen: Sequence[EngineEntry]) -> list[str]:
    said = [f"{entry.name} was left out: Triton has no backend for it" for entry in request.engines if entry not in chosen]
    for entry in chosen:
        if entry.format not in trust.DATA_FORMATS:
            vouched = "" if trust.is_trusted(request.bundle) else ", and this user did not export it"
            said.append(f"{entry.name} is code: it was copied and not run{vouched}; the server will run it")
        if entry.target:
            tied = ", ".join(f"{key} {value}" for key, value in entry.target.items())
            said.append(f"{entry.name} is tied to {tied}, and the server has to fit that")
        if entry.parity.get("status") != "passed":
            said.append(f"{entry.name} was not held against the golden samples: {entry.parity.get('reason', 'parity failed')}")
        if request.options.get("max_batch_size") and not _batches(entry):
            said.append(f"{entry.name} is not batched by Triton: its max_batch_size is 0")
    return [*said, f"no server was run; tritonserver --model-repository {request.out} would load it"]
