"""Kernels that kill their CUDA context, on a GPU: the process that runs them ends, this one's context lives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from accel import device
from accel.device import kernels, nvrtc
from accel.exporters.fused import apart, chains
from accel.exporters.fused.apart import Apart, Died
from accel.exporters.fused.chains import Part, Room
from accel.exporters.fused.generate import PARAMETERS
from accel.types import Kernel

SHARED = 57216
"""Bytes of the grid that was the first to be found so: it wrote 2 KB behind them."""

DEADLY = {
    "nowhere": "*reinterpret_cast<volatile unsigned*>(1ull << 52) = 1;",
    "misaligned": "*reinterpret_cast<volatile unsigned*>(arena + 2) = 1;",
    "outside": f'asm volatile("st.shared.u32 [%0], %1;" :: "r"(shared() + {SHARED + 4096}), "r"(1) : "memory");',
    "trap": "__trap();",
    "third": "if (blockIdx.x + threadIdx.x == 0 && atomicAdd(state + 8, 1u) >= 2) *reinterpret_cast<volatile unsigned*>(1ull << 52) = 1;",
}
SHARED_MEMORY = """
__device__ unsigned shared() {
    extern __shared__ unsigned memory[];
    return static_cast<unsigned>(__cvta_generic_to_shared(memory));
}
"""
BODY = "if (threadIdx.x < 10) logits[threadIdx.x] = 1.0f;"


def part(name: str, capability: str) -> Part:
    source = f'{SHARED_MEMORY}extern "C" __global__ void {name}({PARAMETERS}) {{ {BODY} {DEADLY.get(name, "")} }}'
    return Part((Kernel(name, 4, 256, SHARED),), nvrtc.compile(source, f"{name}.cu", capability).cubin, 0, b"weights")


@pytest.mark.parametrize("name", [*DEADLY, "right"])
def test_what_kills_compiles(name: str) -> None:
    assert part(name, "9.0").cubin


@pytest.fixture
def one() -> Iterator[Apart]:
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    found = Apart(Room((1, 3, 12, 12), "float16", 4096, 10), "cuda:0")
    try:
        yield found
    finally:
        found.close()


@pytest.mark.gpu
def test_what_kills_its_context_ends_its_process_alone(one: Apart, capfd: pytest.CaptureFixture[str]) -> None:
    capability = ".".join(map(str, kernels.limits("cuda:0").capability))
    stream = device.open_stream("cuda:0")
    one.add("right", part("right", capability))
    for name in DEADLY:
        if name == "third":  # in a replay
            one.add(name, part(name, capability))
            turns = one.compare([["right"], [name], ["right"]])
            assert [us < float("inf") for us in turns[0]] == [True, False, True]
        else:
            with pytest.raises(Died, match="CUDA_ERROR"):
                one.add(name, part(name, capability))
    assert [set(killed.keys) for killed in one.killed] == [{name} for name in DEADLY]
    assert len(one.compare([["right"], ["right"]])) == chains.TURNS
    # The context of this process, on the same GPU.
    values = np.arange(8, dtype=np.float32)
    assert np.array_equal(device.to_numpy(device.to_device(values, "float32", "cuda:0", stream), stream), values)
    device.close_stream(stream)
    assert "Exception ignored" not in capfd.readouterr().err


@pytest.mark.gpu
def test_what_does_not_end_is_ended(one: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    capability = ".".join(map(str, kernels.limits("cuda:0").capability))
    one.add("right", part("right", capability))
    monkeypatch.setattr(apart, "SILENT_S", 10.0)
    monkeypatch.setitem(DEADLY, "endless", "while (*reinterpret_cast<volatile unsigned*>(state + 16) == 0) {}")
    with pytest.raises(Died, match="nothing was heard"):
        one.add("endless", part("endless", capability))
    assert len(one.compare([["right"], ["right"]])) == chains.TURNS
