"""What of torch differs from machine to machine: the device, its global switches, and whether it can compile."""

from __future__ import annotations

import contextlib
import logging
import os
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


WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""The variable by which cuBLAS is given a workspace of its own for every stream, without which its sums may be added in any order."""

REPEATABLE = (":4096:8", ":16:8")
"""Its values that torch takes for deterministic; the first is as large as what cuBLAS uses on Hopper anyway."""

HOST_FULL = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
"""What torch says, on Linux and on Windows, when the host's memory is not enough."""


def find(device: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a torch device.

    Raises:
        UsageError: another spelling. DeviceUnavailable: no such GPU.
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
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", int(index or 0))


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of the device, GPU or CPU, was not enough.

    A GPU has a class of its own for it; torch's allocator on a CPU raises a bare RuntimeError, numpy's a MemoryError.
    """
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in HOST_FULL)


def resolve(device: str, recipe: Recipe) -> torch.device:
    """What `find` finds, made the current device, if it can run the recipe.

    Raises:
        UsageError, DeviceUnavailable: as `find`. ConfigError: it has not got the recipe's dtype.
    """
    import torch

    chosen = find(device)
    if chosen.type == "cpu":
        if recipe.amp == "fp16":
            raise ConfigError("amp = 'fp16' needs a GPU; the device is the CPU", remedy="use --no-amp, or amp = 'bf16'")
        return chosen
    torch.cuda.set_device(chosen)
    if recipe.amp == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"{torch.cuda.get_device_name(chosen)} has no bf16 units", remedy="set amp to 'fp16', or use --no-amp")
    return chosen


@contextlib.contextmanager
def settings(*, ieee: bool) -> Iterator[None]:
    """Let cuDNN search its algorithms, unless they must be deterministic; with `ieee` forbid TF32 in products and convolutions.

    Restored afterwards.

    TF32 is left alone where autocast computes in 16 bits anyway: some versions of the compiler read the flag's old name,
    which torch forbids once the new one has been set.
    """
    import torch

    cudnn: Any = torch.backends.cudnn
    switches = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn] if ieee else []
    before = [switch.fp32_precision for switch in switches]
    benchmark = cudnn.benchmark
    cudnn.benchmark = not cudnn.deterministic  # what a search finds fastest differs from run to run
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.benchmark = benchmark
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """If `wanted`, forbid torch every algorithm whose result differs from run to run. Restored afterwards.

    Raises:
        ConfigError: the environment sets CUBLAS_WORKSPACE_CONFIG to what torch does not take for deterministic, or the run
            needs an operation that torch has no deterministic algorithm for.
    """
    if not wanted:
        yield
        return
    import torch

    cudnn: Any = torch.backends.cudnn
    workspace = os.environ.get(WORKSPACE)
    if workspace not in (None, *REPEATABLE):
        raise ConfigError(
            f"{WORKSPACE} = {workspace!r} is not deterministic",
            remedy=f"unset it, or set it to {' or '.join(REPEATABLE)}; or leave out --deterministic",
        )
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), cudnn.deterministic
    os.environ[WORKSPACE] = workspace or REPEATABLE[0]
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic = True
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        raise ConfigError(
            f"this run cannot be deterministic: {str(error).splitlines()[0]}", remedy="leave out --deterministic, or choose another model"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic = before[2]
        if workspace is None:
            del os.environ[WORKSPACE]


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
