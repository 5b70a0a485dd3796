"""A package of AOTInductor: the model as compiled code, without torch's dispatcher above it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accel.device import driver
from accel.errors import AccelError, CorruptArtifact
from accel.runtimes.torch_runtime import TorchRuntime

MODEL = "model"
"""The name that torch gives the one model of a package."""


class Aoti(TorchRuntime):
    """Options: `graph` (the calls recorded as one CUDA graph)."""

    def _load(self, torch: Any) -> Any:
        if self.source.file is None:
            raise AccelError(f"{self.source.variant} was given no file to run", remedy="resolve it with runtimes.engine_source")
        index = -1 if self.source.device == "cpu" else driver.index_of(self.source.device)
        try:
            # Not by torch._inductor.aoti_load_package: to warn of another processor, which was refused before this, it asks Inductor for
            # this one's instructions, and Inductor compiles a program for each and starts a process that imports torch to run it: 1.5 s of
            # a load on a CPU (torch 2.15), where the loader alone takes 0.01 s. Single-threaded: locks and events around each call would
            # serve other threads, which have packages of their own here.
            loader = torch._C._aoti.AOTIModelPackageLoader(str(self.source.file), MODEL, True, 1, index)
        except RuntimeError as error:
            raise CorruptArtifact(
                f"torch {torch.__version__} cannot load {self.source.file}: {str(error).splitlines()[0]}",
                remedy="accel export MODEL --to aoti --force",
            ) from error
        return _Package(loader)


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
