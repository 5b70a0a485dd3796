"""AOTInductor's package: what it is tied to, what is proven of it, and one that is really compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel import exporters, runtimes
from accel.engines import compat, processor
from accel.errors import PrecisionError, RuntimeUnavailable, UnsupportedOperator
from accel.exporters import ExportRequest, aoti
from accel.files import sha256_file
from accel.types import EngineSource, TensorSpec, Variant

torch = pytest.importorskip("torch")

INPUT = TensorSpec("input", ("batch", 3, 8, 8), "float32", "NCHW")
OUTPUT = TensorSpec("logits", ("batch", 4), "float32", "NC")


def net() -> Any:
    nn = torch.nn
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()


def request_of(folder: Path, **fields: Any) -> ExportRequest:
    folder.mkdir(exist_ok=True)
    return ExportRequest(**{"module": net(), "inputs": (INPUT,), "outputs": (OUTPUT,), "precision": "fp32", "folder": folder, **fields})


def fake_compiler(monkeypatch: pytest.MonkeyPatch, compile: Any) -> None:
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_package_of_any_batch_is_compiled_loaded_and_right(tmp_path: Path) -> None:
    request = request_of(tmp_path / "out", batch="dynamic")
    entry = exporters.export("aoti", request)
    file = request.folder / "model.pt2"
    assert entry.files == {"aoti-fp32-dynamic/model.pt2": sha256_file(file)}
    assert entry.precision_proof == {"weights": {"float32": 4}, "compute": {"float32": 2}}
    assert entry.toolchain["layout_optimization"] == "false"
    assert (entry.target["device"], entry.target["isa"]) == ("cpu", processor.machine())
    compat.check(entry, "cpu")
    for batch in (1, 3):
        runtime = runtimes.create(EngineSource(Variant("aoti", "fp32"), "cpu", (INPUT,), (OUTPUT,), batch, entry=entry, file=file))
        runtime.open(None)
        images = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8), dtype=np.float32)
        runtime.home.inputs["input"].owner[...] = images
        runtime.enqueue(runtime.home)
        found = runtime.output(runtime.home)["logits"].owner
        with torch.no_grad():
            np.testing.assert_allclose(found, request.module(torch.from_numpy(images)).numpy(), atol=1e-5)
        runtime.close()


STATIC = """#!/bin/sh
case " $* " in *" -shared "*) exec {compiler} "$@" -static-libstdc++;; esac
exec {compiler} "$@"
"""


EXPORT = """
import sys
from pathlib import Path
from accel import exporters
from accel.errors import RuntimeUnavailable
from test_aoti_export import request_of
try:
    exporters.export("aoti", request_of(Path(sys.argv[1])))
except RuntimeUnavailable as error:
    print(error.message, error.remedy, sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF only")
def test_a_library_with_its_own_c_plus_plus_is_refused(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"  # Inductor knows a compiler by its name
    compiler.write_text(STATIC.format(compiler=shutil.which("g++")))
    compiler.chmod(0o755)
    # In a process of its own: Inductor reads CXX once, when it is imported, and remembers what it found out about the compiler.
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "PYTHONPATH": here}
    ran = subprocess.run(
        [sys.executable, "-c", EXPORT, str(tmp_path / "out")], env=environment, capture_output=True, text=True, timeout=300
    )
    message, remedy = ran.stdout.splitlines()
    assert message.startswith(f"{compiler} put a C++ standard library of its own into the engine")
    assert "CXX=/usr/bin/g++" in remedy


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_handed_to_the_compiler_is_folded_cast_and_compiled_in_ieee(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    seen: dict[str, Any] = {}

    def compile(program: Any, package_path: str, inductor_configs: dict[str, Any]) -> None:
        seen.update(settings=inductor_configs, matmul=torch.backends.cuda.matmul.fp32_precision)
        seen["operators"] = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        with zipfile.ZipFile(package_path, "w") as archive:
            archive.writestr("model/wrapper.so", b"needs libstdc++.so.6")

    fake_compiler(monkeypatch, compile)
    before = torch.backends.cuda.matmul.fp32_precision
    entry = exporters.export("aoti", request_of(tmp_path / "out", precision=precision))
    dtype = {"fp32": "float32", "fp16": "float16"}[precision]
    assert entry.name == f"aoti-{precision}"
    assert entry.precision_proof == {"weights": {dtype: 4}, "compute": {dtype: 2}}
    assert (entry.inputs[0].dtype, entry.inputs[0].shape) == (dtype, (1, 3, 8, 8))
    assert not any("batch_norm" in name for name in seen["operators"])
    assert (seen["settings"], seen["matmul"]) == ({"layout_optimization": False}, "ieee")
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_a_program_in_another_precision_is_refused() -> None:
    program = torch.export.export(net(), (torch.zeros(1, 3, 8, 8),), strict=False)
    with pytest.raises(PrecisionError, match="fp16 was asked for; the exported program has weights in float32 and arithmetic in float32"):
        aoti.prove(program, "fp16")


def test_the_target_names_torch_the_processor_and_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "instructions", lambda: ("avx2", "avx512f"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    minor = ".".join(torch.__version__.split(".")[:2])
    found = aoti.target(torch, "cpu")
    assert found == {"device": "cpu", "torch_minor": minor, "isa": "x86_64", "simd": "avx2 avx512f"}
    assert aoti.target(torch, "cuda:1") == {**found, "device": "cuda", "compute_capability": "9.0"}
    assert aoti.inductor_settings("cuda:0") == {}


@pytest.mark.parametrize("name", ["InvalidCxxCompiler", "CppCompileError"])
def test_without_a_working_compiler_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def compile(*given: Any, **named: Any) -> None:
        try:
            raise type(name, (RuntimeError,), {})("No working C++ compiler\nand more")
        except RuntimeError as error:
            raise RuntimeError("lowering failed") from error

    fake_compiler(monkeypatch, compile)
    with pytest.raises(RuntimeUnavailable, match=f"{name}: No working C\\+\\+ compiler\n") as caught:
        exporters.export("aoti", request_of(tmp_path / "out"))
    assert "apt-get install g++" in str(caught.value.remedy)


def test_another_failure_is_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(*given: Any, **named: Any) -> None:
        raise RuntimeError("no lowering for that")

    fake_compiler(monkeypatch, compile)
    with pytest.raises(UnsupportedOperator, match="cannot be exported to aoti: no lowering for that"):
        exporters.export("aoti", request_of(tmp_path / "out"))
