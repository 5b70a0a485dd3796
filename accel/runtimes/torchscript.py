"""A TorchScript file, frozen by torch, and on a GPU optimised for inference too."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from accel.errors import AccelError, CorruptArtifact, RuntimeUnavailable
from accel.runtimes.torch_runtime import TorchRuntime

_LAST_PYTHON = (3, 13)
"""torch compiles and loads TorchScript up to here."""


class TorchScript(TorchRuntime):
    """No options."""

    warmup_calls = 4
    """The profiling executor specialises in its second call and compiles in its third."""

    def _load(self, torch: Any) -> Any:
        if sys.version_info[:2] > _LAST_PYTHON:
            raise RuntimeUnavailable(
                f"torchscript was asked for on Python {sys.version_info[0]}.{sys.version_info[1]}; torch supports it up to 3.13",
                remedy="use Python 3.13 or older, or run onnxruntime instead",
            )
        if self.source.file is None:
            raise AccelError(f"{self.source.variant} was given no file to run", remedy="resolve it with runtimes.engine_source")
        with warnings.catch_warnings():
            # Deprecated since 2.11, and said so in the docs; the notice would come with every load.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            try:
                module = torch.jit.load(str(self.source.file), map_location=self.source.device).eval()
            except RuntimeError as error:
                raise CorruptArtifact(
                    f"torch {torch.__version__} cannot read {self.source.file}: {str(error).splitlines()[0]}",
                    remedy="accel export MODEL --to torchscript",
                ) from error
            if self.source.device != "cpu":
                module = torch.jit.optimize_for_inference(module)
            elif not self.source.parity_only:
                # torch's further step for CPUs binds oneDNN's blocked kernels, which at batch 1 are slower than what a plain frozen graph
                # runs: both shipped models took 1.3 to 1.8 times as long.
                module = torch.jit.freeze(module)
        return module
