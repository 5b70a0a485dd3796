"""What the torch runtimes owe to the process and the thread that they live in, and how they fail."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_net import expected, some_images

from accel import device, runtimes
from accel.errors import AccelError, CorruptArtifact, RuntimeUnavailable, UsageError
from accel.runtimes import torch_process
from accel.types import EngineSource, TensorSpec

torch = pytest.importorskip("torch")
MakeSource = Callable[..., EngineSource]


def precisions() -> tuple[str, str, str]:
    return (*torch_process.arithmetic(torch), torch.backends.cudnn.rnn.fp32_precision)


def test_an_open_runtime_has_inference_mode_and_a_closed_one_gives_the_thread_back(make_source: MakeSource) -> None:
    runtime = runtimes.create(make_source("eager:fp32"))
    runtime.open(None)
    assert torch.is_inference_mode_enabled()
    runtime.close()
    assert not torch.is_inference_mode_enabled()


def test_a_suspended_runtime_enters_its_mode_only_for_a_call(make_source: MakeSource) -> None:
    runtime: Any = runtimes.create(make_source("eager:fp32"))
    runtime.open(None)
    runtime.suspend()
    assert not torch.is_inference_mode_enabled()
    with runtime.entered():
        assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()
    runtime.close()
    with pytest.raises(UsageError, match="not open"), runtime.entered():
        pass


def test_a_failed_open_leaves_nothing_behind(make_source: MakeSource) -> None:
    def broken() -> Any:
        raise AccelError("the weights are gone")

    source = EngineSource(**{**vars(make_source("eager:fp32")), "module": broken})
    runtime = runtimes.create(source)
    with pytest.raises(AccelError, match="the weights are gone"):
        runtime.open(None)
    assert not torch.is_inference_mode_enabled()


def test_opening_twice_is_refused(make_source: MakeSource) -> None:
    runtime = runtimes.create(make_source("eager:fp32"))
    runtime.open(None)
    with pytest.raises(UsageError, match="open already"):
        runtime.open(None)
    runtime.close()


def test_threads_are_set(make_source: MakeSource) -> None:
    before = torch.get_num_threads()
    runtime = runtimes.create(make_source("eager:fp32", threads=1))
    runtime.open(None)
    assert torch.get_num_threads() == 1
    runtime.close()
    torch.set_num_threads(before)


def test_several_outputs_come_by_name_and_a_wrong_number_is_an_error(make_source: MakeSource) -> None:
    class Two(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return {"b": x.sum((1, 2, 3)), "a": x.mean((1, 2, 3))}

    specs = tuple(TensorSpec(name, ("batch",)) for name in ("a", "b"))
    source = EngineSource(**{**vars(make_source("eager:fp32")), "module": Two, "outputs": specs})
    runtime = runtimes.create(source)
    runtime.open(None)
    outputs = device.Staging(runtime.home, None).run(runtime, {"images": some_images()})
    np.testing.assert_allclose(outputs["a"] * some_images().size, outputs["b"], rtol=1e-4)
    assert [spec.name for spec in runtime.outputs] == ["a", "b"]
    runtime.close()

    source = EngineSource(**{**vars(make_source("eager:fp32")), "outputs": specs})
    with pytest.raises(AccelError, match="returns 1 tensors, the bundle names 2: a, b"):
        runtimes.create(source).open(None)


def test_fp32_is_ieee_and_tf32_is_tf32_and_what_was_set_comes_back() -> None:
    before = precisions()
    with torch_process.cuda_settings(torch, "fp32"):
        assert precisions() == ("ieee", "ieee", "ieee")
        # The old flags can still be read: Inductor does.
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
        assert torch.backends.cudnn.benchmark
    with torch_process.cuda_settings(torch, "tf32"):
        assert precisions() == ("tf32", "tf32", "tf32")
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    assert precisions() == before
    assert not torch.backends.cudnn.benchmark


def test_fp32_and_tf32_cannot_share_a_process_but_fp16_goes_with_either() -> None:
    with torch_process.cuda_settings(torch, "fp16"), torch_process.cuda_settings(torch, "tf32"):
        assert precisions() == ("tf32", "tf32", "tf32")
        with torch_process.cuda_settings(torch, "fp16"):
            assert precisions() == ("tf32", "tf32", "tf32")
        with (
            pytest.raises(RuntimeUnavailable, match="fp32 was asked for, and torch is held to tf32"),
            torch_process.cuda_settings(torch, "fp32"),
        ):
            pass
    with torch_process.cuda_settings(torch, "fp32"):
        assert precisions() == ("ieee", "ieee", "ieee")


def test_a_truncated_torchscript_file_is_corrupt(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source("torchscript:fp32")
    assert source.file is not None
    broken = tmp_path / "model.ts"
    broken.write_bytes(source.file.read_bytes()[:500])
    with pytest.raises(CorruptArtifact, match="accel export MODEL --to torchscript"):
        runtimes.create(EngineSource(**{**vars(source), "file": broken})).open(None)


def test_torchscript_is_refused_where_torch_does_not_support_it(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accel.runtimes.torchscript._LAST_PYTHON", (3, 9))
    with pytest.raises(RuntimeUnavailable, match="run onnxruntime instead"):
        runtimes.create(make_source("torchscript:fp32")).open(None)


def test_a_source_without_its_engine_says_how_to_make_one(make_source: MakeSource) -> None:
    for spelling, missing in (("eager:fp32", {"module": None}), ("torchscript:fp32", {"file": None}), ("onnxruntime:fp32", {"file": None})):
        with pytest.raises(AccelError, match=r"runtimes\.engine_source"):
            runtimes.create(EngineSource(**{**vars(make_source(spelling)), **missing})).open(None)


def cheap_compile(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """torch.compile with another backend than Inductor, which takes seconds."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, dynamic, **how: real(module, backend=backend, dynamic=dynamic))


def test_a_backend_that_fails_leaves_eager_and_the_reason(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(graph: Any, examples: Any) -> Any:
        raise RuntimeError("no C compiler\nand more of it")

    cheap_compile(monkeypatch, failing)
    runtime = runtimes.create(make_source("compile:fp32"))
    runtime.open(None)
    images = some_images()
    logits = device.Staging(runtime.home, None).run(runtime, {"images": images})["logits"]
    np.testing.assert_allclose(logits, expected(images), atol=1e-5)
    assert runtime.facts["fallback"] == "torch.compile failed, so this is eager: RuntimeError: no C compiler"
    runtime.close()


def test_on_a_cpu_inductor_keeps_the_layout_and_says_so(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Mapping[str, Any]] = []
    real = torch.compile

    def compile(module: Any, **how: Any) -> Any:
        asked.append(how)
        return real(module, backend="eager", dynamic=how["dynamic"])

    monkeypatch.setattr(torch, "compile", compile)
    kept = {}
    for spelling in ("compile:fp32", "compile:fp32+max-autotune", "compile:fp32+channels_last", "compile:fp32+channels_last+freezing"):
        runtime = runtimes.create(make_source(spelling))
        runtime.open(None)
        kept[spelling] = runtime.facts.get("settings")
        runtime.close()
    assert asked[0] == {"dynamic": False, "options": {"layout_optimization": False}}
    assert asked[1]["options"].items() >= {"layout_optimization": False, "max_autotune": True}.items()
    assert asked[2] == {"dynamic": False, "mode": "default"}
    assert asked[3] == {"dynamic": False, "options": {"freezing": True}}
    assert list(kept.values()) == [{"layout_optimization": False}, {"layout_optimization": False}, None, {"freezing": True}]


def test_freezing_is_added_to_what_the_mode_sets(make_source: MakeSource) -> None:
    made: Any = runtimes.create(EngineSource(**{**vars(make_source("compile:fp16+freezing+reduce-overhead")), "device": "cuda:0"}))
    assert (made.mode, made.captures, made._inductor_options()) == ("reduce-overhead", True, {"freezing": True})
    assert "triton.cudagraphs" in torch._inductor.list_mode_options("reduce-overhead")
    assert "freezing" in torch._inductor.list_options()


@pytest.mark.slow
def test_inductor_really_freezes(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import freezing

    frozen: list[Any] = []
    real = freezing.freeze
    monkeypatch.setattr(freezing, "freeze", lambda *given: frozen.append(given) or real(*given))
    runtime = runtimes.create(make_source("compile:fp32+freezing"))
    # A graph that was compiled before would be taken from Inductor's cache.
    with torch._inductor.config.patch(force_disable_caches=True):
        runtime.open(None)
    images = some_images()
    logits = device.Staging(runtime.home, None).run(runtime, {"images": images})["logits"]
    np.testing.assert_allclose(logits, expected(images), atol=1e-5)
    assert len(frozen) == 1
    assert runtime.facts["settings"] == {"freezing": True, "layout_optimization": False}
    assert runtime.facts["recompiles"] == 0
    runtime.close()


def test_torchs_limit_of_compilations_is_not_passed_in_silence(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_compile(monkeypatch, "eager")
    first, second = (runtimes.create(make_source("compile:fp32", batch=batch)) for batch in (1, 2))
    with torch._dynamo.config.patch(recompile_limit=1):
        first.open(None)
        second.open(None)
    assert "fallback" not in first.facts
    assert "limit" in second.facts["fallback"]
    second.close()
    first.close()


@pytest.mark.slow
def test_compile_without_a_compiler_runs_eagerly_and_says_so(tmp_path: Path) -> None:
    script = """
import sys
sys.path[:0] = sys.argv[1:]
from tiny_net import INPUTS, OUTPUTS, build_net, expected, some_images
from accel import device, runtimes
from accel.types import EngineSource, Variant
runtime = runtimes.create(EngineSource(Variant.parse("compile:fp32"), "cpu", INPUTS, OUTPUTS, module=build_net))
runtime.open(None)
images = some_images()
logits = device.Staging(runtime.home, None).run(runtime, {"images": images})["logits"]
assert abs(logits - expected(images)).max() < 1e-5
print(runtime.facts["fallback"])
"""
    environment = {"PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    paths = [str(Path(__file__).parent), str(Path(runtimes.__file__).parents[2])]
    done = subprocess.run([sys.executable, "-c", script, *paths], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "this is eager" in done.stdout
    assert "no-such-compiler" in done.stdout


def test_a_recompilation_is_counted(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_compile(monkeypatch, "eager")
    runtime: Any = runtimes.create(make_source("compile:fp32"))
    runtime.open(None)
    try:
        runtime._call(torch.zeros(1, 3, 8, 8))
        assert runtime.facts["recompiles"] == 0
        runtime._call(torch.zeros(2, 3, 8, 8))
        assert runtime.facts["recompiles"] == 1
    finally:
        runtime.close()


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        ({"inductor": {"fxgraph_cache_hit": 1}, "aot_autograd": {"autograd_cache_hit": 1}}, True),
        ({"inductor": {"fxgraph_cache_hit": 1}, "aot_autograd": {"autograd_cache_miss": 1}}, True),
        ({"inductor": {"fxgraph_cache_hit": 1, "fxgraph_cache_miss": 1}}, False),
        ({"inductor": {"fxgraph_cache_bypass": 1}}, False),
        ({}, None),
    ],
)
def test_code_that_came_from_inductors_cache_is_told(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch, counted: dict[str, dict[str, int]], told: bool | None
) -> None:
    def backend(graph: Any, examples: Any) -> Any:
        for group, counts in counted.items():
            torch._dynamo.utils.counters[group].update(counts)
        return graph

    torch._dynamo.utils.counters["inductor"].update(fxgraph_cache_miss=7)  # of an engine opened before
    cheap_compile(monkeypatch, backend)
    runtime = runtimes.create(make_source("compile:fp32"))
    runtime.open(None)
    assert runtime.facts.get("build_cached") is told
    runtime.close()


def test_modes_follow_the_options(make_source: MakeSource) -> None:
    made: Any = runtimes.create(make_source("compile:fp32+max-autotune"))
    assert made.mode == "max-autotune"
    plain: Any = runtimes.create(make_source("compile:fp32"))
    assert plain.mode == "default"


def test_missing_torch_names_the_extra(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    from accel.errors import MissingExtra

    with pytest.raises(MissingExtra, match=r"accel-engines\[train\]"):
        runtimes.create(make_source("eager:fp32")).open(None)


def test_two_open_runtimes_on_one_thread_keep_their_numbers_apart(make_source: MakeSource) -> None:
    first, second = (runtimes.create(make_source(name)) for name in ("eager:fp32", "torchscript:fp32"))
    for runtime in (first, second):
        runtime.open(None)
    images = [some_images(seed=seed) for seed in (5, 6)]
    bindings = [r.prepare({"images": device.to_device(x, "float32", "cpu", None)}) for r, x in zip((first, second), images, strict=True)]
    for runtime, binding in zip((first, second), bindings, strict=True):
        runtime.enqueue(binding)
    for runtime, binding, given in zip((first, second), bindings, images, strict=True):
        np.testing.assert_allclose(device.to_numpy(runtime.output(binding)["logits"], None), expected(given), atol=1e-5)
    second.close()
    first.close()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("spelling", "instead"),
    [
        ("compile:fp16+reduce-overhead", "in compile's default mode"),
        ("compile:fp16+freezing+max-autotune", "in compile's default mode"),
        ("eager:fp16+graph", "without the option graph"),
    ],
)
def test_torchs_cuda_graphs_are_refused_off_the_main_thread(make_source: MakeSource, spelling: str, instead: str) -> None:
    source = EngineSource(**{**vars(make_source(spelling)), "device": "cuda:0"})
    caught: list[AccelError] = []

    def serve() -> None:
        try:
            runtimes.create(source).open(1)
        except AccelError as error:
            caught.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert "main thread only" in str(caught[0])
    assert instead in str(caught[0].remedy)
    assert caught[0].exit_code == 4
