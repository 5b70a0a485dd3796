"""What of torch differs from machine to machine: the device, its global switches, and whether it can compile."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from accel.errors import ConfigError, DeviceUnavailable, UsageError
from accel.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from accel.trainers.recipe import Recipe

    Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

logger = logging.getLogger(__name__)


def resolve(device: str, recipe: Recipe) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a torch device that can run the recipe.

    Raises:
        UsageError: another spelling. DeviceUnavailable: no such GPU. ConfigError: it has not got the recipe's dtype.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda:0" if count else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise UsageError(f"{device!r} is not a device", remedy="use auto, cpu or cuda:N")
    if kind == "cuda" and int(index or 0) >= count:
        raise DeviceUnavailable(f"{device} was asked for; torch {torch.__version__} sees {count} GPUs", remedy="use --device cpu")
    if kind == "cpu":
        if recipe.amp == "fp16":
            raise ConfigError("amp = 'fp16' needs a GPU; the device is the CPU", remedy="use --no-amp, or amp = 'bf16'")
        return torch.device("cpu")
    chosen = torch.device("cuda", int(index or 0))
    torch.cuda.set_device(chosen)
    if recipe.amp == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"{torch.cuda.get_device_name(chosen)} has no bf16 units", remedy="set amp to 'fp16', or use --no-amp")
    return chosen


@contextlib.contextmanager
def settings(*, ieee: bool) -> Iterator[None]:
    """Let cuDNN search its algorithms; with `ieee` forbid TF32 in matrix products and convolutions. Restored afterwards.

    TF32 is left alone where autocast computes in 16 bits anyway: some versions of the compiler read the flag's old name,
    which torch forbids once the new one has been set.
    """
    import torch

    cudnn: Any = torch.backends.cudnn
    switches = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn] if ieee else []
    before = [switch.fp32_precision for switch in switches]
    benchmark = cudnn.benchmark
    cudnn.benchmark = True
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.benchmark = benchmark
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def compiled_or_eager(
    forward: Forward,
    module: nn.Module,
    example: Callable[[], tuple[Tensor, Tensor]],
    *,
    device: torch.device,
    mode: str | None,
    progress: Progress,
    stages: Sequence[Callable[[], None]] = (),
) -> tuple[Forward, dict[str, Any]]:
    """`forward` compiled, if that is wanted and works here; else itself.

    Compiles by steps whose traces are removed: gradients are cleared and BatchNorm's statistics put back. Three steps, because
    a mode that replays CUDA graphs warms up in the first and captures in the second.

    Args:
        example: makes a batch as those to come, only if it is needed.
        mode: of torch.compile; None does not compile.
        stages: what sets `module` up for each part of the run that needs a compilation of its own; none if all is one part.

    Returns:
        The function, and `used`, `reason` (None if compiled) and `compile_s`.
    """
    import torch

    def eager(reason: str) -> tuple[Forward, dict[str, Any]]:
        return forward, {"used": False, "reason": reason, "compile_s": 0.0}

    if mode is None:
        return eager("the recipe has compile = false")
    if device.type != "cuda":
        return eager("not compiled on a CPU")
    progress("compile", 0, 1)
    statistics = [buffer.clone() for buffer in module.buffers()]
    compiled: Forward = torch.compile(forward, dynamic=False, mode=mode)
    images, labels = example()
    started = time.monotonic()
    try:
        for begin in stages or (lambda: None,):
            begin()
            for _ in range(3):
                module.zero_grad(set_to_none=True)
                loss, _ = compiled(images, labels)
                loss.backward()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # Every failure of the compiler is a RuntimeError; one of the module's own comes again, unhidden, in the eager loop.
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        logger.warning("torch.compile failed, training runs eagerly: %s", reason)
        torch._dynamo.reset()
        return eager(reason)
    finally:
        module.zero_grad(set_to_none=True)
        for buffer, value in zip(module.buffers(), statistics, strict=True):
            buffer.copy_(value)
    progress("compile", 1, 1)
    return compiled, {"used": True, "reason": None, "compile_s": time.monotonic() - started}
