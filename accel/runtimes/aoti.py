"""A package of AOTInductor: the model as compiled code, without torch's dispatcher above it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accel.device import driver
from accel.errors import AccelError, CorruptArtifact
from accel.optional import require
from accel.runtimes.torch_runtime import TorchRuntime


class Aoti(TorchRuntime):
    """Options: `graph` (the calls recorded as one CUDA graph)."""

    def _load(self, torch: Any) -> Any:
        if self.source.file is None:
            raise AccelError(f"{self.source.variant} was given no file to run", remedy="resolve it with runtimes.engine_source")
        inductor = require("torch._inductor", "train")
        index = -1 if self.source.device == "cpu" else driver.index_of(self.source.device)
        try:
            # Its lock and events around each call would serve other threads, which have packages of their own here.
            package = inductor.aoti_load_package(str(self.source.file), run_single_threaded=True, device_index=index)
        except RuntimeError as error:
            raise CorruptArtifact(
                f"torch {torch.__version__} cannot load {self.source.file}: {str(error).splitlines()[0]}",
                remedy="accel export MODEL --to aoti --force",
            ) from error
        return _Package(package.loader)


class _Package:
    """The compiled model as a callable from tensors to a list of tensors.

    torch's own wrapper parses the model's signature, a JSON text, in every call; inputs and outputs are plain tensors here.
    """

    def __init__(self, loader: Any) -> None:
        self._run = loader.boxed_run
        self._loader = loader

    def __call__(self, *inputs: Any) -> Any:
        return self._run(list(inputs))

    def parameters(self) -> Iterator[Any]:
        """None that torch could show: they are constants of the compiled code."""
        return iter(())
