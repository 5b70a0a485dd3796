"""An MLflow model: the bundle as it is, with a signature, an example and what has to be installed; no pickle.

    NAME/MLmodel   NAME/data/NAME.accel/…   NAME/requirements.txt   NAME/input_example.json

Its loader is this module: `mlflow.pyfunc.load_model` calls `_load_pyfunc` with the bundle. MLflow (skinny will do) and pandas, which its
pyfunc module imports, come with the extra `mlflow`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accel import __version__, runtimes, tracking
from accel.api.loading import load
from accel.engines import Bundle
from accel.errors import UsageError
from accel.integrations.packaging import Package, Packaged, Request, folder_size
from accel.integrations.placing import placed
from accel.optional import require, version_of
from accel.runtimes.loaded import LoadedEngine
from accel.types import EngineEntry, TensorSpec

EXTRA = "mlflow"
LOADER = "accel.integrations.mlflow"
DATA_FORMAT = "onnx"
"""What a stranger's machine runs without trust; the extra of its runtime is what the model requires where no engine was named."""

SETTINGS: dict[str, Any] = {"runtime": "auto", "device": "auto", "trusted": False, "threads": None}
"""What `accel.load` is told, in MLmodel's `config`: MLflow lets whoever loads the model change the keys that are there, and no others."""


def write(request: Request) -> Packaged:
    """Write the model's folder, whole or not at all.

    Raises:
        UsageError: several engines were named, or something is there already. MissingExtra: MLflow or pandas is absent.
        CorruptArtifact: a file of the bundle is not what accel.json names.
    """
    tracking.set_limits()
    pyfunc = require("mlflow.pyfunc", extra=EXTRA)
    engine = _only(request)
    bundle, target = request.bundle, request.out / request.name
    chosen = {} if engine is None else {"runtime": f"{_runtime(engine)}:{engine.precision}"}
    with placed(target, request.force, outside=request.out) as made:
        # MLflow wants to make the folder itself, and copies what it is given under its own name.
        copy = made / bundle.path.name
        shutil.copytree(bundle.path, copy, ignore=_no_part)
        _check(Bundle.open(copy))
        pyfunc.save_model(
            made / "model",
            loader_module=LOADER,
            data_path=copy,
            signature=signature(bundle),
            input_example=example(bundle),
            pip_requirements=requirements(engine),
            model_config={**SETTINGS, **chosen},
            metadata={"accel_bundle": bundle.name, "accel_json_sha256": bundle.manifest_sha256},
        )
        shutil.rmtree(copy)
        for path in (made / "model").iterdir():
            path.rename(made / path.name)
        (made / "model").rmdir()
    name = "auto" if engine is None else engine.name
    package = Package(target.name, name, f"pyfunc of {LOADER}", None, target, folder_size(target))
    return Packaged((package,), (f"nothing was run; mlflow.pyfunc.load_model({str(target)!r}) loads it",))


def signature(bundle: Bundle) -> Any:
    """The public inputs and outputs as MLflow's tensor schemas, -1 for a dynamic size; one that is alone has no name."""
    models, types = require("mlflow.models", extra=EXTRA), require("mlflow.types", extra=EXTRA)

    def schema(specs: tuple[TensorSpec, ...]) -> Any:
        named = len(specs) > 1
        shapes = [tuple(-1 if isinstance(size, str) else size for size in spec.shape) for spec in specs]
        return types.Schema(
            [types.TensorSpec(np.dtype(spec.dtype), shape, spec.name if named else None) for spec, shape in zip(specs, shapes, strict=True)]
        )

    return models.ModelSignature(schema(bundle.inputs), schema(bundle.outputs))


def example(bundle: Bundle) -> Any:
    """The first golden sample: an array, or arrays by name where there are several inputs."""
    sample = {name: array[:1] for name, array in bundle.golden().inputs.items()}
    return sample if len(bundle.inputs) > 1 else next(iter(sample.values()))


def requirements(engine: EngineEntry | None) -> list[str]:
    """What `pip install` needs for the engine, or for ONNX Runtime."""
    runtime = _runtime(engine) if engine is not None else next(n for n, row in runtimes.RUNTIMES.items() if row.format == DATA_FORMAT)
    # Without the first MLflow would ask for its whole distribution, server and all.
    return [
        f"mlflow-skinny=={version_of('mlflow-skinny', 'mlflow')}",
        f"accel-engines[{runtimes.info(runtime).extra},{EXTRA}]=={__version__}",
    ]


class Model:
    """What `mlflow.pyfunc` calls: an engine that was loaded from the bundle in the model's folder."""

    def __init__(self, engine: LoadedEngine) -> None:
        self.engine = engine

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """What the engine answers: an array, or arrays by name; MLflow has held the input against the signature.

        Args:
            data: an array, or arrays by name, as the bundle's inputs.
            params: none are known.

        Raises:
            UsageError: parameters, a table in the place of arrays, or what the engine raises.
        """
        if params:
            raise UsageError(f"the model takes no parameters and was given {', '.join(params)}", remedy="pass the input alone")
        if not isinstance(data, np.ndarray | Mapping):
            raise UsageError(f"the model takes arrays and was given a {type(data).__name__}", remedy="pass a numpy array")
        return self.engine(data)


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> Model:
    """MLflow's hook; `mlflow.pyfunc.load_model(path, model_config={"device": "cuda"})` changes what `accel.load` is told.

    Args:
        model_config: SETTINGS, changed; a model that was packaged with one engine names its variant as `runtime`.
    """
    return Model(load(data_path, **(model_config or {})))


def _only(request: Request) -> EngineEntry | None:
    if not request.named:
        return None
    if len(request.engines) > 1:
        found = ", ".join(entry.name for entry in request.engines)
        raise UsageError(f"an MLflow model loads one engine, and {found} were named", remedy="name one with --engine, or none for the best")
    return request.engines[0]


def _runtime(entry: EngineEntry) -> str:
    return next(name for name, row in runtimes.RUNTIMES.items() if row.format == entry.format)


def _no_part(folder: str, names: list[str]) -> list[str]:
    """What is no part of a bundle: what an interrupted export left, and links, which would bring along what they point at."""
    return [name for name in names if name.startswith(".") or (Path(folder) / name).is_symlink()]


def _check(bundle: Bundle) -> None:
    """Hold every file of the copy against its hash."""
    bundle.golden()
    if bundle.has_checkpoint:
        _ = bundle.checkpoint
    for entry in bundle.entries:
        bundle.file(entry)
