"""A generated program made into machine code: each kernel of it found again there, and what it uses read back."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence

from accel.device import nvrtc
from accel.engines.fused_plan import LOWEST_CAPABILITY
from accel.errors import AccelError, UsageError
from accel.exporters.fused.program import BEGINS_WITH, Program
from accel.types import Resources

_BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"
_DEFINED = re.compile(rf'extern\s+"C"\s+__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(')
_AT_LINE = re.compile(r"\((\d+)\)\s*: (?:error|catastrophic error)")
_ENTRY = re.compile(r"[Ee]ntry function '(\w+)'(?! for)")


def compile(program: Program, capability: str, name: str = "network") -> tuple[bytes, Mapping[str, Resources]]:
    """Compile the source of `program` for exactly `capability` (`9.0`); no GPU is needed.

    Args:
        name: of the network, for the compiler's messages.

    Returns:
        The cubin, and kernel → what it uses.

    Raises:
        AccelError: the compiler refuses it, naming the kernel with its layers and showing the log; or a kernel that is launched is not in
            the machine code. UsageError: GPUs of this capability have not what the schedule is made of. RuntimeUnavailable: NVRTC is
            absent or does not know the capability. MissingExtra: cuda-core is absent.
    """
    major, _, minor = capability.partition(".")
    if LOWEST_CAPABILITY <= (int(major), int(minor)) < (first := BEGINS_WITH[program.schedule]):
        raise UsageError(
            f"the schedule {program.schedule} begins with compute capability {'.'.join(map(str, first))}; {capability} was asked for",
            remedy="use the schedule chain, or another capability",
        )
    try:
        compiled = nvrtc.compile(program.source, f"{name}-{program.schedule}.cu", capability)
    except nvrtc.NotCompiled as error:
        names = culprits(program.source, error.log)
        layers = [layer for kernel in program.kernels if kernel.name in names for layer in kernel.layers]
        of = f" (layers {', '.join(layers)})" if layers else ""
        what = f"the kernel {' and '.join(names)}{of}" if names else "what the kernels share"
        raise AccelError(
            f"{what} in the schedule {program.schedule} is not compiled: {error.message}",
            remedy="report it with the model and this log; another format takes the model meanwhile",
        ) from error
    absent = [kernel.name for kernel in program.kernels if kernel.name not in compiled.kernels]
    if absent:
        raise AccelError(f"the schedule {program.schedule} launches {', '.join(absent)}, and its source has {', '.join(compiled.kernels)}")
    return compiled.cubin, {kernel.name: compiled.kernels[kernel.name] for kernel in program.kernels}


def culprits(source: str, log: str) -> tuple[str, ...]:
    """The kernels that `log` complains of: named by the assembler, or the last that begins before a line of an error.

    A line in what all kernels share, in front of the first of them, names none.
    """
    named = dict.fromkeys(_ENTRY.findall(log))
    begins = [(source.count("\n", 0, match.start()) + 1, match[1]) for match in _DEFINED.finditer(source)]
    for line in map(int, _AT_LINE.findall(log)):
        if (found := _before(begins, line)) is not None:
            named[found] = None
    return tuple(named)


def _before(begins: Sequence[tuple[int, str]], line: int) -> str | None:
    index = bisect.bisect_right([first for first, _ in begins], line) - 1
    return begins[index][1] if index >= 0 else None
