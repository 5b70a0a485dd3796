"""What it costs on a GPU to run straight-line code once a launch, as the fused engine's kernels do: cycles by the size of the code.

    python benchmarks/fused_code_fetch.py --out code-fetch.json

One CTA an SM, 256 threads, whose warps run N FP32 multiply-adds in a row (16 bytes each, 8 registers in turn, so that nothing waits for a
result). Each warp reads `clock` of its SM in front of them and behind; a CTA's time is from the first warp's begin to the last one's end.
Cycles are medians over CTAs, then over repetitions; `most` (in the JSON) of the CTA with the most. An SM issues four instructions a cycle,
one a scheduler, so 8 warps need 2 · N cycles, and one warp N: what is beyond that is told for each KB of code.

* `new module`: its first launch after loading. `back to back`: the last of 20 launches of it. `behind another`: right behind a launch of
  another kernel of 128 KB, as is all that follows. `one CTA`: of one alone, so that no other SM asks the L2 for the same.
* `2nd pass`: the same code once more in the same launch, behind a barrier.
* `rolled`: as many multiply-adds in a loop of 32; what it takes beyond issuing is not the fetching of code.
* `ahead`: the last warp runs the code alone (`warp 7`), then the 7 others do (`others`).
* `skipping`: the same with code that can be skipped in pieces of 32 instructions (a branch each): the last warp skips them all, so that it
  touches a few bytes in 560, then the 7 others run them; `nobody skips` has the same code run by all.

The size of the code is read from the machine code and must be what it is said to be.
"""

from __future__ import annotations

import argparse
import dataclasses
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fused_launching import keep

from accel import device
from accel.device import driver, kernels, nvrtc
from accel.types import Array, Kernel

SIZES = (2, 4, 8, 16, 32, 64, 96, 128, 160)
"""KB of code."""
OTHER = 128
"""KB of the kernel in between."""
PIECE = 32
"""Instructions of a loop, and of what can be skipped."""
INSTRUCTION, KB = 16, 1024
WARPS, SCHEDULERS, PASSES = 8, 4, 2
SHARED = 208_640
"""As the grid of student_b: one CTA an SM, and its carve-out."""
IN_A_ROW, REPEATS, MODULES = 20, 7, 3
KERNELS = ("straight", "skippable", "rolled")
ALL, LAST, OTHERS = 0xFF, 0x80, 0x7F
MOST_SKIPPING = 4
"""Most instructions of a piece that can be skipped, beside its multiply-adds; sm_90 has 3 by NVRTC 13."""
AROUND = 4096
"""Most bytes of a kernel beside its multiply-adds."""

HEAD = """extern "C" __global__ void __launch_bounds__(256, 1)
NAME(unsigned int* out, unsigned long long running, unsigned long long skipping, unsigned long long passes, unsigned long long pieces) {
    const int warp = threadIdx.x / 32;
    float a = __int_as_float(threadIdx.x), b = a + 9;
    float v0 = a, v1 = a + 1, v2 = a + 2, v3 = a + 3, v4 = a + 4, v5 = a + 5, v6 = a + 6, v7 = a + 7;
    unsigned int begin, end;
#pragma unroll 1
    for (int pass = 0; pass < passes; pass++) {
        const bool runs = running >> (pass * 8 + warp) & 1, skips = skipping >> (pass * 8 + warp) & 1;
        __syncthreads();
        if (!runs) continue;
        asm volatile("mov.u32 %0, %clock;" : "=r"(begin) :: "memory");
"""
TAIL = """        asm volatile("mov.u32 %0, %clock;" : "=r"(end) :: "memory");
        if (threadIdx.x % 32 == 0) {
            unsigned int* const to = out + ((blockIdx.x * 2 + pass) * 8 + warp) * 2;
            to[0] = begin, to[1] = end;
        }
    }
    if (v0 + v1 + v2 + v3 + v4 + v5 + v6 + v7 == 1.5e30f) out[0] = 1;  // so that they are needed
}
"""


def piece(skippable: bool = False) -> str:
    """PIECE multiply-adds, as one statement."""
    adds = " ".join(f"fma.rn.f32 %{i % 8}, %{i % 8}, %8, %9;" for i in range(PIECE))
    code = f"{{.reg .pred p; setp.ne.u32 p, %10, 0; @p bra.uni OVER; {adds} OVER: }}" if skippable else adds
    values = ", ".join(f'"+f"(v{i})' for i in range(8))
    given = '"f"(a), "f"(b)' + (', "r"(static_cast<unsigned int>(skips))' if skippable else "")
    return f'asm volatile("{code}" : {values} : {given} : "memory");'


def source(kb: int) -> str:
    """Three kernels: `straight`, `skippable` and `rolled`, each of kb · 64 multiply-adds (`rolled`: as `pieces` says)."""
    bodies = {
        "straight": f"{piece()}\n" * pieces(kb),
        "skippable": f"{piece(skippable=True)}\n" * pieces(kb),
        "rolled": f"#pragma unroll 1\nfor (int i = 0; i < pieces; i++) {piece()}\n",
    }
    return "\n".join(HEAD.replace("NAME", name) + body + TAIL for name, body in bodies.items())


def text_bytes(cubin: bytes, kernel: str) -> int:
    """Bytes of machine code of a kernel: its section of the ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + index * size) for index in range(count)]
    (strings,) = [section[4] for index, section in enumerate(sections) if index == names]
    for name, *_, length in sections:
        start = strings + name
        if cubin[start : cubin.index(b"\0", start)] == f".text.{kernel}".encode():
            return int(length)
    raise SystemExit(f"the machine code has no section of {kernel}")


def compiled(kb: int, capability: str) -> bytes:
    """The three kernels, whose code is as large as they say.

    Raises:
        SystemExit: it is not.
    """
    cubin = nvrtc.compile(source(kb), f"code-{kb}.cu", capability).cubin
    straight = kb * KB
    bounds = {
        "straight": (straight, straight),
        "skippable": (straight + pieces(kb) * INSTRUCTION, straight + MOST_SKIPPING * pieces(kb) * INSTRUCTION),
        "rolled": (PIECE * INSTRUCTION, PIECE * INSTRUCTION),
    }
    for name, (least, most) in bounds.items():
        found = text_bytes(cubin, name)
        if not least <= found <= most + AROUND:
            raise SystemExit(f"{name} of {kb} KB has {found} bytes of machine code; {least} to {most + AROUND} were expected")
    return cubin


def pieces(kb: int) -> int:
    return kb * KB // INSTRUCTION // PIECE


def skipping(cubin: bytes, kb: int) -> int:
    """Instructions that a piece has beside its multiply-adds so that it can be skipped; told well by many pieces, as code is padded."""
    return round((text_bytes(cubin, "skippable") - text_bytes(cubin, "straight")) / pieces(kb) / INSTRUCTION)


@dataclasses.dataclass(frozen=True)
class Way:
    """A launch: the kernel, which warps run in each pass and which of them skip, and what is enqueued before it.

    Attributes:
        told: column → pass. before: `nothing`, `itself` or `another`. alone: one CTA on the whole GPU.
    """

    told: dict[str, int]
    kernel: str = "straight"
    running: tuple[int, ...] = (ALL,)
    skipping: int = 0
    before: str = "another"
    alone: bool = False


BEHIND = Way({"behind another": 0})
WAYS = (
    Way({"back to back": 0}, before="itself"),
    BEHIND,
    Way({"one CTA": 0}, alone=True),
    Way({"2nd pass": 1}, running=(ALL, ALL)),
    Way({"rolled": 0}, "rolled"),
    Way({"ahead: warp 7": 0, "ahead: others": 1}, running=(LAST, OTHERS)),
    Way({"skipping: warp 7": 0, "skipping: others": 1}, "skippable", (LAST, OTHERS), LAST),
    Way({"skippable": 0}, "skippable"),
)
FRESH = Way({"new module": 0}, before="nothing")
COLUMNS = [name for way in (FRESH, *WAYS) for name in way.told]
SHOWN = {
    "new module": "new|module",
    "back to back": "back|to back",
    "behind another": "behind|another",
    "one CTA": "one|CTA",
    "2nd pass": "2nd|pass",
    "rolled": "rolled|",
    "ahead: warp 7": "ahead:|warp 7",
    "ahead: others": "|others",
    "skipping: warp 7": "skips:|warp 7",
    "skipping: others": "|others",
    "skippable": "nobody|skips",
}


class Runner:
    """Launches on one stream, and what their warps kept."""

    def __init__(self, on: str) -> None:
        driver.activate(on)
        self.limits = kernels.limits(on)
        self._on, self.capability = on, ".".join(map(str, self.limits.capability))
        self._stream = device.open_stream(on)
        self._gate = device.Gate(self._stream)
        self._out = device.to_device(np.zeros(self.limits.sms * PASSES * WARPS * 2, np.uint32), "uint32", on, self._stream)
        other = compiled(OTHER, self.capability)
        self.extra = skipping(other, OTHER)
        self._other = self._launch(self.module(other), BEHIND, OTHER)
        self._other()

    def module(self, cubin: bytes) -> kernels.Module:
        return kernels.Module(cubin, self._on, "straight-line code")

    def warm(self, module: kernels.Module) -> None:
        """Every kernel once: a first launch may need what the driver cannot do behind a gate."""
        for name in KERNELS:
            self._launch(module, Way({}, name), SIZES[0])()
        device.synchronize(self._stream)

    def close(self) -> None:
        device.close_stream(self._stream)

    def run(self, module: kernels.Module, way: Way, kb: int) -> Array:
        """CTAs × passes × warps × (begin, end)."""
        launch = self._launch(module, way, kb)
        if way.before == "nothing":
            launch()
        else:
            with self._gate:
                if way.before == "another":
                    self._other()
                for _ in range(IN_A_ROW if way.before == "itself" else 1):
                    launch()
        device.synchronize(self._stream)
        return device.to_numpy(self._out, self._stream).view(np.uint32).reshape(-1, PASSES, WARPS, 2).copy()

    def _launch(self, module: kernels.Module, way: Way, kb: int) -> kernels.Launch:
        running = sum(mask << 8 * number for number, mask in enumerate(way.running))
        given = [self._out.ptr, running, way.skipping, len(way.running), pieces(kb)]
        return kernels.Launch(
            module, Kernel(way.kernel, 1 if way.alone else self.limits.sms, 256, SHARED), given, self._stream or 0, "another GPU"
        )


def cycles(kept: Array, way: Way, number: int) -> tuple[float, float]:
    """Of pass `number`: of the median CTA and of the one with the most, from the first of its warps to the last."""
    warps = [warp for warp in range(WARPS) if way.running[number] >> warp & 1]
    of = kept[: 1 if way.alone else None, number, warps]
    # From the first of the warps in each CTA: the counter goes round.
    apart = (of - of[:, :1, :1]).astype(np.uint32).view(np.int32).astype(np.int64)
    spans = apart[..., 1].max(1) - apart[..., 0].min(1)
    return float(np.median(spans)), float(spans.max())


def issuing(column: str, kb: int, extra: int) -> int:
    """Cycles that a column takes at least: those that its busiest scheduler issues. `extra`: of a piece that can be skipped."""
    way = next(way for way in (FRESH, *WAYS) if column in way.told)
    running = way.running[way.told[column]]
    added = extra * pieces(kb) if way.kernel == "skippable" else 0
    if running == way.skipping:
        return added
    # Warp w is of scheduler w % 4.
    warps = max(sum(running >> warp & 1 for warp in range(first, WARPS, SCHEDULERS)) for first in range(SCHEDULERS))
    return warps * (kb * KB // INSTRUCTION + added)


def measured(on: str, sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """A row a size: its code in bytes, and each column's cycles."""
    runner, found = Runner(on), []
    try:
        for kb in sizes:
            cubin = compiled(kb, runner.capability)
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COLUMNS}
            for _ in range(MODULES):
                module = runner.module(cubin)
                taken["new module"].append(cycles(runner.run(module, FRESH, kb), FRESH, 0))
            runner.warm(module)
            for _ in range(REPEATS):
                for way in WAYS:
                    kept = runner.run(module, way, kb)
                    for name, number in way.told.items():
                        taken[name].append(cycles(kept, way, number))
            columns = {name: _told(name, kb, of, runner.extra) for name, of in taken.items()}
            found.append({"kb": kb, "bytes": text_bytes(cubin, "straight"), "columns": columns})
    finally:
        runner.close()
    return found


def _told(column: str, kb: int, taken: Sequence[tuple[float, float]], extra: int) -> dict[str, float]:
    median, most = (float(np.median([one[index] for one in taken])) for index in (0, 1))
    issued = kb * KB // INSTRUCTION
    return {
        "cycles": round(median),
        "most": round(most),
        "cycles_an_instruction": round(median / issued, 3),
        "cycles_a_kb": round(median / kb, 1),
        "beyond_issue_a_kb": round((median - issuing(column, kb, extra)) / kb, 1),
    }


def report(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for key, title in (("cycles", "cycles"), ("beyond_issue_a_kb", "cycles a KB beyond what issuing takes")):
        heads = [SHOWN[name].partition("|")[::2] for name in COLUMNS]
        lines += [title, *(f"{'' if index == 0 else 'KB':>4}" + "".join(f"{head[index]:>8}" for head in heads) for index in range(2))]
        for row in rows:
            values = [row["columns"][name][key] for name in COLUMNS]
            lines.append(f"{row['kb']:>4}" + "".join(f"{value:>8}" for value in values))
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    on = device.parse(options.device)
    record: dict[str, Any] = {"gpu": device.describe(on).name, "rows": measured(on)}
    print(f"{record['gpu']}\n{report(record['rows'])}")
    keep(record, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
