"""NVRTC without a GPU: what it makes, what it says of registers, and errors that name the kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from exporters.fused import handmade

from accel.device import nvrtc
from accel.errors import AccelError, RuntimeUnavailable
from accel.exporters.fused.compiling import compile, culprits
from accel.types import Resources

CHAIN = handmade.generate(handmade.network(), "chain")


@pytest.mark.parametrize("capability", ["8.0", "8.9", "9.0"])
@pytest.mark.parametrize("schedule", ["chain", "grid"])
def test_a_source_is_compiled_for_every_gpu_that_counts(schedule: Any, capability: str) -> None:
    program = handmade.generate(handmade.network(), schedule)
    cubin, used = compile(program, capability)
    assert cubin.startswith(b"\x7fELF")
    assert list(used) == [kernel.name for kernel in program.kernels]
    assert all(0 < of.registers <= 255 and of.spills == 0 for of in used.values())


def broken(old: str, new: str) -> Any:
    assert old in CHAIN.source
    return dataclasses.replace(CHAIN, source=CHAIN.source.replace(old, new))


def test_an_error_names_the_kernel_its_layers_and_shows_the_log() -> None:
    with pytest.raises(AccelError) as refused:
        compile(broken("    linear(weights, arena, logits);\n}\n", "    linear(weights);\n}\n"), "9.0", "net")
    said = str(refused.value)
    assert "the kernel fc (layers fc) in the schedule chain is not compiled: NVRTC" in said
    assert "net-chain.cu(" in said
    assert "too few arguments in function call" in said


def test_an_error_in_what_all_kernels_share_blames_none_of_them() -> None:
    with pytest.raises(AccelError, match="what the kernels share in the schedule chain is not compiled"):
        compile(broken("float sum = 0;", "float sum = nothing;"), "9.0")


def test_what_the_assembler_refuses_names_the_kernel_too() -> None:
    with pytest.raises(AccelError, match=r"the kernel mean \(layers mean\).*is not compiled") as refused:
        compile(broken("mean(PARAMETERS) {", "mean(PARAMETERS) { __shared__ volatile int much[99999]; much[threadIdx.x] = 1;"), "9.0")
    assert "too much shared data" in str(refused.value)


def test_a_kernel_that_is_launched_and_not_there_is_refused() -> None:
    kernels = (*CHAIN.kernels, dataclasses.replace(CHAIN.kernels[0], name="more"))
    with pytest.raises(AccelError, match="the schedule chain launches more, and its source has"):
        compile(dataclasses.replace(CHAIN, kernels=kernels), "9.0")


def test_a_gpu_that_nvrtc_does_not_know_is_refused_with_those_that_it_does() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"compiles for no GPU of compute capability 3\.5") as refused:
        compile(CHAIN, "3.5")
    assert "9.0" in str(refused.value.remedy)


def test_a_library_that_is_not_there_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = pytest.importorskip("cuda.bindings.nvrtc")

    def absent() -> Any:
        raise RuntimeError("libnvrtc.so.13: not found")

    monkeypatch.setattr(bindings, "nvrtcVersion", absent)
    with pytest.raises(RuntimeUnavailable, match="NVRTC's library was not found") as refused:
        nvrtc.version()
    assert refused.value.remedy == "pip install 'accel-engines[fused]'"


LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
ptxas         .     80 bytes stack frame, 24 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 80 bytes cumulative stack size, 256 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 21.102 ms
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 1 barriers
"""


def test_registers_spills_and_static_shared_memory_are_read_from_the_log() -> None:
    assert nvrtc.used(LOG) == {"two": Resources(255, 64, 256), "one": Resources(14, 0, 0)}


def test_the_line_of_an_error_leads_to_the_kernel_before_it() -> None:
    source = 'int a;\nextern "C" __global__ void __launch_bounds__(32) one(int* p) {\n}\nextern "C" __global__\nvoid two(int* p) {\n}\n'
    assert culprits(source, "x.cu(3): error: no") == ("one",)
    assert culprits(source, "x.cu(5): error: no\nx.cu(2): error: no") == ("two", "one")
    assert culprits(source, "x.cu(1): error: no\nx.cu(3): warning: no") == ()
    assert culprits(source, "ptxas info : Compiling entry function 'one' for 'sm_90'\nptxas error : Entry function 'two' uses") == ("two",)
