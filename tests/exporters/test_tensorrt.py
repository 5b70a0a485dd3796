"""The TensorRT exporter over a library that imitates 8.6, 10 and 11: flags by name, refusals, what is recorded, Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
from pathlib import Path
from typing import Any

import onnx_samples
import pytest
from trt.ctrl_c import pressed
from trt.fake_trt import DATA_TYPE, Layer, Tensor, World

from accel import exporters, interrupts
from accel.device.select import Gpu
from accel.errors import DeviceUnavailable, PrecisionError, UnknownName, UnsupportedOperator, UsageError
from accel.exporters import BuildOptions, ExportRequest, tensorrt, tensorrt_build, tensorrt_cache
from accel.files import cache_dir
from accel.types import TensorSpec

pytest.importorskip("onnx")

INPUT = TensorSpec("x", ("batch", 3, 8, 8), "float32", "NCHW")
OUTPUT = TensorSpec("y", ("batch", 4), "float32", "NC")
VERSIONS = ["8.6.0", "10.13.0", "11.4.0"]
SAMPLES = {"fp32": ("Float", "FP32"), "fp16": ("Half", "FP16")}


def world_of(version: str, precision: str = "fp16", batch: int = 1, **fields: Any) -> World:
    """A network of one convolution and one classifier, and an engine that computes both in `precision`."""
    kind = {"fp16": DATA_TYPE.HALF, "fp32": DATA_TYPE.FLOAT}[precision]
    x, a, y = (Tensor(name, (batch, *shape), kind) for name, shape in (("x", (3, 8, 8)), ("a", (8, 8, 8)), ("y", (4,))))
    d = Tensor("d", (batch, 8), kind)
    layers = [
        Layer("/conv/Conv", "CONVOLUTION", [x], [a]),
        Layer("/relu/Relu", "ACTIVATION", [a], [a]),
        Layer("/fc/Gemm", "FULLY_CONNECTED" if version < "9" and len(version) == 5 else "MATRIX_MULTIPLY", [d], [y], num_output_channels=4),
    ]
    short, long = SAMPLES[precision]
    engine = [
        {
            "Name": "/conv/Conv + /relu/Relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": f"Row major linear {long} format"}],
            "Outputs": [{"Name": "a", "Format/Datatype": f"Channel major {long} format where channel % 8 == 0"}],
        },
        {
            "Name": "/fc/Gemm",
            "LayerType": "gemm",
            "Inputs": [{"Name": "d", "Format/Datatype": short}],
            "Outputs": [{"Name": "y", "Format/Datatype": short}],
        },
    ]
    return World(version, **{"layers": layers, "inputs": [x], "outputs": [y], "engine": engine, **fields})


@pytest.fixture(autouse=True)
def h200(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = Gpu("NVIDIA H200", "9.0", "13.0")
    for module, name in ((tensorrt, "describe_gpu"), (tensorrt_cache, "describe")):
        monkeypatch.setattr(module, name, lambda device: gpu)
        monkeypatch.setattr(module, "driver_version", lambda: "580.1")
    monkeypatch.setattr(tensorrt_build.driver, "activate", lambda device: None)
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def run(world: World, precision: str = "fp16", *, file: dict[str, Any] | None = None, **fields: Any) -> Any:
        library = world.library()
        monkeypatch.setattr(tensorrt, "load", lambda flavor: library)
        onnx = onnx_samples.write(tmp_path / "in" / "model.onnx", **{"precision": precision, **(file or {})})
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        request = ExportRequest(None, (INPUT,), (OUTPUT,), precision, folder, onnx=onnx, **{"device": "cuda:0", "model": "tiny", **fields})
        return exporters.export("tensorrt", request), request

    return run


@pytest.mark.parametrize(
    ("version", "creation", "flags"),
    [
        ("8.6.0", ["EXPLICIT_BATCH"], "FP16,OBEY_PRECISION_CONSTRAINTS,TF32"),
        ("10.13.0", ["STRONGLY_TYPED"], "TF32"),
        ("11.4.0", ["STRONGLY_TYPED"], "TF32"),
    ],
)
def test_fp16_is_a_flag_on_8_and_the_files_types_from_10_on(build: Any, version: str, creation: list[str], flags: str) -> None:
    world = world_of(version)
    entry, _ = build(world)
    assert world.called("create_network") == [creation]
    assert set(entry.toolchain["flags"].split(",")) == set(flags.split(","))
    assert entry.toolchain["typing"] == ("weak" if version == "8.6.0" else "strong")


def test_on_8_every_layer_that_multiplies_is_tied_to_fp16(build: Any) -> None:
    # Seen on an H200: with the flag alone TensorRT 8.6 built a small convolution in FP32, because that ran faster while it built.
    world = world_of("8.6.0")
    world.layers[-1].outputs[0].is_network_output = True
    build(world)
    half = DATA_TYPE.HALF
    tied = {layer.kind: (layer.precision, layer.output_types) for layer in world.layers}
    assert tied == {"CONVOLUTION": (half, {0: half}), "ACTIVATION": (None, {}), "FULLY_CONNECTED": (half, {})}
    free = world_of("8.6.0")
    build(free, options=BuildOptions(allow_mixed=True))
    assert "OBEY_PRECISION_CONSTRAINTS" not in free.flags
    assert {layer.precision for layer in free.layers} == {None}


@pytest.mark.parametrize("version", ["10.13.0", "11.4.0"])
def test_a_typed_network_is_tied_to_nothing(build: Any, version: str) -> None:
    world = world_of(version)
    build(world)
    assert {layer.precision for layer in world.layers} == {None}


@pytest.mark.parametrize("version", VERSIONS)
def test_fp32_is_ieee(build: Any, version: str) -> None:
    entry, _ = build(world_of(version, "fp32"), "fp32")
    assert entry.toolchain["flags"] == "none"
    assert (entry.precision_proof["share"], entry.precision_proof["proven"]) == (1.0, True)
    assert entry.inputs[0].dtype == "float32"


def test_the_entry_says_what_was_built_from_what_and_for_what(build: Any) -> None:
    options = BuildOptions(
        workspace=2**30, optimization_level=2, tactic_sources=("edge-mask-convolutions", "jit-convolutions"), hardware_compatible=True
    )
    world = world_of("8.6.0")
    entry, request = build(world, options=options)
    assert entry.name == "tensorrt-fp16"
    assert list(entry.files) == ["tensorrt-fp16/model.plan", "tensorrt-fp16/layers.json"]
    assert (request.folder / "model.plan").read_bytes() == world.plan
    assert entry.target == {
        "tensorrt": "8.6.0.0",
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "device": "cuda",
        "hardware_compatible": "AMPERE_PLUS",
    }
    facts = {key: entry.toolchain[key] for key in ("workspace", "optimization_level", "tactic_sources", "profile")}
    assert facts == {
        "workspace": str(2**30),
        "optimization_level": "2",
        "tactic_sources": "edge-mask-convolutions,jit-convolutions",
        "profile": "{}",
    }
    assert json.loads(entry.toolchain["options"])["workspace"] == 2**30
    assert len(entry.toolchain["onnx_sha256"]) == 64
    assert (entry.inputs[0].shape, entry.inputs[0].dtype, entry.inputs[0].layout) == ((1, 3, 8, 8), "float16", "NCHW")
    layers = json.loads((request.folder / "layers.json").read_text())
    assert [(layer["name"], layer["macs"]) for layer in layers["network"]] == [("/conv/Conv", 8 * 64 * 27), ("/fc/Gemm", 32)]
    assert len(layers["engine"]) == 2
    assert world.config.profiling_verbosity.name == "DETAILED"
    assert world.config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert world.config.max_aux_streams == 0
    assert entry.toolchain["driver"] == "580.1"


def test_version_compatibility_is_a_flag_and_recorded(build: Any) -> None:
    entry, _ = build(world_of("10.13.0"), options=BuildOptions(version_compatible=True))
    assert "VERSION_COMPATIBLE" in entry.toolchain["flags"]
    assert entry.target["version_compatible"] is True


def test_fp32_built_where_fp16_was_asked_for_cannot_pass(build: Any, tmp_path: Path) -> None:
    world = world_of("8.6.0")
    world.engine = world_of("8.6.0", "fp32").engine
    with pytest.raises(PrecisionError, match=r"0\.0 % .* /conv/Conv \(float\)") as caught:
        build(world)
    assert caught.value.exit_code == 3
    entry, _ = build(world, options=BuildOptions(allow_mixed=True))
    assert (entry.precision_proof["share"], entry.precision_proof["types"]) == (0.0, {"float": 2})
    assert entry.precision_proof["proven"] is False


@pytest.mark.parametrize(("version", "opset", "taken"), [("8.6.0", 18, "7 to 17"), ("11.4.0", 8, "9 to 25"), ("11.4.0", 26, "9 to 25")])
def test_an_opset_that_is_not_parsed_is_refused_before_parsing(build: Any, version: str, opset: int, taken: str) -> None:
    world = world_of(version)
    with pytest.raises(UsageError, match=f"is of opset {opset}; TensorRT {version} takes the opsets {taken}") as caught:
        build(world, file={"opset": opset})
    assert caught.value.remedy == "accel export tiny --to onnx --opset 17 --fp16 --force"
    with pytest.raises(UsageError, match="is of opset") as caught:
        build(world, file={"opset": opset, "batch": "N"}, batch="dynamic")
    assert caught.value.remedy == "accel export tiny --to onnx --opset 17 --fp16 --batch dynamic --force"
    with pytest.raises(UsageError, match="is of opset") as caught:
        build(world, file={"opset": opset}, model="mine.onnx")
    assert "version_converter.convert_version(model, 17)" in str(caught.value)
    assert world.calls == []


def test_an_fp32_file_becomes_fp16_only_where_the_builder_can(build: Any) -> None:
    world = world_of("8.6.0")
    world.inputs[0].dtype = DATA_TYPE.FLOAT
    entry, _ = build(world, file={"precision": "fp32"})
    assert "FP16" in entry.toolchain["flags"]
    assert entry.inputs[0].dtype == "float32"
    other = world_of("10.13.0")
    with pytest.raises(UsageError, match=r"computes in the types of the ONNX file; model\.onnx is FP32") as caught:
        build(other, file={"precision": "fp32"})
    assert "float16.convert_float_to_float16" in str(caught.value)
    assert "modelopt.onnx.autocast" in str(caught.value)
    assert other.calls == []


def test_fp16_weights_do_not_become_fp32(build: Any) -> None:
    with pytest.raises(UsageError, match=r"the weights of model\.onnx are float16"):
        build(world_of("8.6.0", "fp32"), "fp32", file={"precision": "fp16"})


@pytest.mark.parametrize("version", VERSIONS)
def test_a_parser_error_names_node_operator_and_reason(build: Any, version: str) -> None:
    world = world_of(version, errors=[(1, "/relu/Relu", "Relu", "no importer registered")])
    with pytest.raises(UnsupportedOperator, match=r"cannot parse model\.onnx: node /relu/Relu \(Relu\): no importer registered"):
        build(world)


def test_no_plan_is_an_error_with_what_was_logged(build: Any) -> None:
    with pytest.raises(UnsupportedOperator, match=r"built nothing .*Could not find any implementation for node /conv/Conv"):
        build(world_of("8.6.0", said=["Could not find any implementation for node /conv/Conv"]))


def test_a_plan_that_cannot_be_read_back_is_an_error(build: Any) -> None:
    with pytest.raises(UnsupportedOperator, match="cannot read the plan that it built"):
        build(world_of("10.13.0", readable=False))


def test_without_a_gpu_nothing_is_started(build: Any) -> None:
    world = world_of("8.6.0")
    with pytest.raises(DeviceUnavailable, match="builds on the GPU") as caught:
        build(world, device="cpu")
    assert "--flavor rtx --compute-capability" in str(caught.value)
    assert world.calls == []
    with pytest.raises(DeviceUnavailable, match="cannot start: CUDA initialization failure"):
        build(world_of("8.6.0", no_gpu=True))


def test_an_unknown_tactic_source_names_the_known_ones(build: Any) -> None:
    with pytest.raises(UnknownName, match="edge-mask-convolutions"):
        build(world_of("8.6.0"), options=BuildOptions(tactic_sources=("winograd",)))


def test_tactic_sources_that_are_refused_are_no_choice_of_the_builders(build: Any) -> None:
    with pytest.raises(UsageError, match=r"TensorRT 8\.6\.0 refuses the tactic sources jit-convolutions"):
        build(world_of("8.6.0", no_sources=True), options=BuildOptions(tactic_sources=("jit-convolutions",)))


def test_the_thread_that_builds_is_on_the_gpu_that_was_asked_for(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(tensorrt_build.driver, "activate", lambda device: seen.append((threading.current_thread().name, device)))
    build(world_of("8.6.0"), device="cuda:1")
    assert seen == [("TensorRT build", "cuda:1")]


def test_a_dynamic_batch_gets_a_profile_and_the_formats_of_its_best_shape(build: Any) -> None:
    world = world_of("8.6.0", batch=-1)
    entry, _ = build(world, file={"batch": "N"}, batch="dynamic", options=BuildOptions(opt_batch=4, max_batch=16))
    assert world.called("set_shape") == [("x", (1, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8))]
    assert world.called("set_input_shape") == [("x", (4, 3, 8, 8))]
    assert json.loads(entry.toolchain["profile"]) == {"x": [[1, 3, 8, 8], [4, 3, 8, 8], [16, 3, 8, 8]]}
    assert entry.name == "tensorrt-fp16-dynamic"
    assert (entry.inputs[0].shape[0], entry.outputs[0].shape) == ("batch", ("batch", 4))
    assert entry.precision_proof["macs"] == 4 * (8 * 64 * 27 + 32)


def test_a_dynamic_file_is_built_for_the_one_batch_that_was_asked_for(build: Any) -> None:
    world = world_of("8.6.0", batch=-1)
    entry, _ = build(world, file={"batch": "N"}, batch=2)
    assert world.called("set_shape") == [("x", *[(2, 3, 8, 8)] * 3)]
    assert (entry.name, entry.inputs[0].shape[0]) == ("tensorrt-fp16-b2", 2)


@pytest.mark.parametrize(("batch", "said"), [(2, "batch 2 was asked for"), ("dynamic", "batch dynamic was asked for")])
def test_a_file_of_one_batch_is_not_built_for_another(build: Any, batch: int | str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"the fixed shape \(1, 3, 8, 8\); {said}"):
        build(world_of("8.6.0"), batch=batch)


def test_an_open_size_beside_the_batch_is_refused(build: Any) -> None:
    world = world_of("8.6.0")
    world.inputs[0].shape = (1, 3, -1, -1)
    with pytest.raises(UsageError, match="more than its batch is dynamic"):
        build(world)


def test_timings_are_kept_by_version_gpu_and_driver(build: Any) -> None:
    world = world_of("8.6.0")
    build(world)
    (path,) = (cache_dir() / "timing").iterdir()
    for word in ("tensorrt", "8.6.0", "NVIDIA_H200", "9.0"):
        assert word in path.name
    build(world)
    assert world.called("create_timing_cache") == [b"", b"+timings"]


@pytest.mark.parametrize("what", ["version", "gpu", "compute capability", "driver"])
def test_timings_of_another_machine_have_another_file(build: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    build(world_of("8.6.0"))
    gpu = {"gpu": Gpu("NVIDIA H100", "9.0", "13.0"), "compute capability": Gpu("NVIDIA H200", "10.0", "13.0")}.get(what)
    if gpu is not None:
        monkeypatch.setattr(tensorrt_cache, "describe", lambda device: gpu)
    if what == "driver":
        monkeypatch.setattr(tensorrt_cache, "driver_version", lambda: "590.2")
    other = world_of("8.6.1" if what == "version" else "8.6.0")
    build(other)
    assert other.called("create_timing_cache") == [b""]
    assert len(list((cache_dir() / "timing").iterdir())) == 2


@pytest.mark.parametrize("broken", [b"broken", b"foreign"])
def test_timings_of_another_gpu_are_not_used(build: Any, tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "mine.cache"
    path.write_bytes(broken)
    world = world_of("8.6.0")
    build(world, options=BuildOptions(timing_cache=str(path)))
    assert world.called("create_timing_cache")[-1] == b""
    assert path.read_bytes() == b"+timings"


def test_timings_can_be_left_out_or_shared_by_nobody(build: Any) -> None:
    world = world_of("8.6.0")
    entry, _ = build(world, options=BuildOptions(timing_cache="off"))
    assert world.called("create_timing_cache") == []
    entry, request = build(world, options=BuildOptions(builds=2))
    assert "tensorrt-fp16/timing.cache" in entry.files
    assert (request.folder / "timing.cache").read_bytes() == b"+timings"
    assert not (cache_dir() / "timing").exists()


def test_the_builders_monitor_fills_a_bar(build: Any) -> None:
    told: list[tuple[float, float | None]] = []
    build(world_of("10.13.0"), progress=lambda step, done, total=None: told.append((done, total)))
    shares = [done for done, _ in told]
    assert {total for _, total in told} == {100}
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert 0 < shares[0] < 50


def test_without_a_monitor_the_seconds_are_told(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "TICK_S", 0.01)
    told: list[tuple[str, float, float | None]] = []
    went_on = threading.Event()

    def heard(step: str, done: float, total: float | None = None) -> None:
        told.append((step, done, total))
        went_on.set()

    build(world_of("8.6.0", during=lambda step: went_on.wait(5)), progress=heard)
    assert told[0][0] == "build tensorrt-fp16"
    assert told[0][2] is None


@pytest.mark.parametrize("version", ["8.6.0", "10.13.0"])
def test_ctrl_c_stops_the_build_and_is_raised_when_it_has_ended(build: Any, version: str, caplog: pytest.LogCaptureFixture) -> None:
    with pressed() as press:
        world = world_of(version, during=press.hold)
        with pytest.raises(KeyboardInterrupt):
            build(world)
        # 8.6 cannot be told to stop; it is waited for all the same, so that nothing runs on behind the caller's back.
        assert bool(world.called("cancelled")) == (version != "8.6.0")
        assert bool(world.called("built")) == (version == "8.6.0")
        assert ("8.6.0 cannot be stopped: its build is waited for" in caplog.text) == (version == "8.6.0")
        assert not [thread for thread in threading.enumerate() if thread.name == "TensorRT build"]


def test_a_second_ctrl_c_does_not_wait_for_a_build_that_cannot_be_stopped(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    main, over = threading.main_thread().ident or 0, threading.Event()
    left: list[threading.Thread] = []

    def during(step: int) -> None:
        if not over.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            over.wait(20)

    def press_again(*told: object) -> None:
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()

    monkeypatch.setattr(interrupts, "abandon", left.append)
    monkeypatch.setattr(tensorrt_build.logger, "warning", press_again)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(world_of("8.6.0", during=during))
    finally:
        signal.signal(signal.SIGINT, before)
    assert [(thread.name, thread.is_alive()) for thread in left] == [("TensorRT build", True)]
    over.set()
    left[0].join(20)


def test_an_engine_is_current_for_the_same_file_options_and_machine(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, request = build(world_of("8.6.0"))
    assert exporters.is_current(entry, request)
    assert exporters.is_current(entry, dataclasses.replace(request, options=BuildOptions(timing_cache="off")))
    assert not exporters.is_current(entry, dataclasses.replace(request, options=BuildOptions(optimization_level=1)))
    newer = world_of("10.13.0").library()
    monkeypatch.setattr(tensorrt, "load", lambda flavor: newer)
    assert not exporters.is_current(entry, request)
    older = world_of("8.6.0").library()
    monkeypatch.setattr(tensorrt, "load", lambda flavor: older)
    assert exporters.is_current(entry, request)
    with monkeypatch.context() as patch:
        patch.setattr(tensorrt, "describe_gpu", lambda device: Gpu("NVIDIA H100", "9.0", "13.0"))
        assert not exporters.is_current(entry, request)
    onnx_samples.write(request.onnx, precision="fp16", seed=1)
    assert not exporters.is_current(entry, request)
