"""`accel export --embed-preprocess`: pixels in, for every engine of the bundle, with the answers of the model that was given floats."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest

import accel
from accel.api import export
from accel.checkpoint import read_checkpoint, write_checkpoint
from accel.engines import Bundle, embedding, identity
from accel.engines.module import build_module
from accel.errors import PrecisionError, UsageError
from accel.preprocess import Preprocess
from accel.types import Checkpoint, EngineSource, TensorSpec, Variant

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PREPARE = Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), nets.SIZE, nets.SIZE)
PLAIN = TensorSpec("input", ("batch", 3, nets.SIZE, nets.SIZE), "float32", "NCHW")
PIXELS = TensorSpec("input", ("batch", nets.SIZE, nets.SIZE, 3), "uint8", "NHWC")
Cli = Callable[..., Any]


def images(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, nets.SIZE, nets.SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny network with preprocessing and 64 images of its own."""
    folder = tmp_path_factory.mktemp("pixels") / "small"
    state = {name: tensor.numpy() for name, tensor in nets.trained().state_dict().items()}
    said = {"preprocess": PREPARE.to_dict(), "labels": tuple("abcdefghij")}
    write_checkpoint(Checkpoint(folder, "", "small", "nets:build", 10, PLAIN, TensorSpec("output", ("batch", 10)), **said), state)
    np.savez(folder / "golden.npz", images=images(64), labels=np.zeros(64, np.int64), indices=np.arange(64))
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> tuple[Path, Path]:
    """The checkpoint as a bundle that takes floats and as one that takes pixels."""
    made = []
    for name, embed in (("plain", False), ("pixels", True)):
        for precision in ("fp32", "fp16"):
            how = {"name": name, "out": checkpoint.parent, "device": "cpu", "embed_preprocess": embed, "trusted": True}
            (*_, done) = export(str(checkpoint), ["onnx", "torchscript"], precision=precision, **how)
        made.append(done.bundle)
    return made[0], made[1]


@pytest.fixture
def pixels(exported: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported[1], tmp_path / "pixels.accel"))


def test_the_bundle_takes_pixels_and_every_engine_of_it_was_held_against_the_samples(exported: tuple[Path, Path]) -> None:
    bundle = Bundle.open(exported[1])
    assert bundle.inputs == (PIXELS,)
    assert {entry.name: entry.parity["status"] for entry in bundle.entries} == dict.fromkeys(
        ("onnx-fp32", "onnx-fp16", "torchscript-fp32", "torchscript-fp16"), "passed"
    )
    assert {entry.inputs[0].dtype for entry in bundle.entries} == {"uint8"}
    assert {entry.outputs[0].dtype for entry in bundle.entries} == {"float32", "float16"}


def test_the_samples_are_the_same_pictures_with_bit_for_bit_the_same_answers(exported: tuple[Path, Path]) -> None:
    plain, embedded = (Bundle.open(path).golden() for path in exported)
    np.testing.assert_array_equal(embedded.inputs["input"][:64], plain.images)
    np.testing.assert_array_equal(embedded.outputs["output"][:64], plain.outputs["output"][:64])
    assert embedded.inputs["input"][64:].max() > 200


@pytest.mark.parametrize("variant", ["onnxruntime:fp32", "torchscript:fp32", "eager:fp32", "eager:fp32+fold", "eager:fp32+channels_last"])
def test_every_runtime_answers_pixels_as_the_other_bundle_answers_pictures(exported: tuple[Path, Path], variant: str) -> None:
    given = images(3, seed=7)
    with accel.load(exported[0], "eager:fp32", device="cpu") as plain, accel.load(exported[1], variant, device="cpu") as engine:
        wanted = plain.predict(given)
        np.testing.assert_allclose(engine(given), wanted, atol=1e-5)
        np.testing.assert_allclose(engine(torch.from_numpy(given)).numpy(), wanted, atol=1e-5)
        # predict fits, and leaves the rest to the engine.
        np.testing.assert_array_equal(engine.predict(given), engine(given))
        assert engine.golden is not None
        assert engine.golden["status"] == "passed"


def test_a_picture_of_another_size_is_fitted_in_first(exported: tuple[Path, Path]) -> None:
    pytest.importorskip("PIL")
    large = np.random.default_rng(3).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    with accel.load(exported[0], device="cpu") as plain, accel.load(exported[1], device="cpu") as engine:
        np.testing.assert_allclose(engine.predict([large, large]), plain.predict([large, large]), atol=1e-5)


def test_floats_are_refused_by_an_engine_that_takes_pixels(exported: tuple[Path, Path]) -> None:
    with accel.load(exported[1], device="cpu") as engine:
        for wrong in (PREPARE(images(1)), images(1).transpose(0, 3, 1, 2).astype(np.uint8)[:, :, :4], images(1).astype(np.int64)):
            with pytest.raises(UsageError, match=r"expected uint8 of shape \('batch', 8, 8, 3\)"):
                engine(wrong)


def test_fp16_begins_behind_the_normalisation(exported: tuple[Path, Path]) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(exported[1] / "onnx-fp16" / "model.onnx"))
    operators = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    assert operators[:6] == ["Cast", "Transpose", "Mul", "Sub", "Cast", "Conv"]
    (cast,) = (node for node in model.graph.node if node.op_type == "Cast" and node.input[0] == "input")
    assert next(item.i for item in cast.attribute if item.name == "to") == onnx.TensorProto.FLOAT


def test_half_does_not_round_the_constants_and_a_weight_in_float32_is_still_noticed(checkpoint: Path) -> None:
    from accel.exporters import torchscript

    module = build_module(embedding.embed(read_checkpoint(checkpoint)))
    exact = module.pixel_scale.clone()
    module = module.half()
    assert torch.equal(module.pixel_scale, exact)
    assert torchscript.prove(module, "fp16")["weights"].keys() == {"float16", "int64"}
    module.model[5].float()
    with pytest.raises(PrecisionError, match="2 weights of the TorchScript file are not"):
        torchscript.prove(module, "fp16")


def test_the_module_gives_the_bits_of_the_preprocessing_in_numpy(checkpoint: Path) -> None:
    given = images(5, seed=9)
    with torch.no_grad():
        module = embedding.with_pixels(torch.nn.Identity(), PREPARE)
        np.testing.assert_array_equal(module(torch.from_numpy(given)).numpy(), PREPARE(given))


def test_verification_predicts_and_times_with_pixels(pixels: Path, accel_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.bench import worker

    monkeypatch.chdir(tmp_path)
    given = images(40, seed=5)
    with accel.load(pixels, "eager:fp32", device="cpu") as engine:
        labels = engine(given).argmax(axis=1)
    np.savez(tmp_path / "test.npz", images=given, labels=labels.astype(np.int64))
    request = {"bundle": str(pixels), "variant": "onnxruntime:fp32", "device": "cpu", "batch": 1, "data": f"npz:{tmp_path / 'test.npz'}"}
    reply, arrays = worker.answer({**request, "mode": "verify"})
    assert (reply["n_test"], list(arrays["outputs"].argmax(axis=1))) == (40, list(labels))
    ran = accel_cli("evaluate", pixels, "--data", request["data"], "--device", "cpu", "--format", "json")
    assert ran.code == 0, ran.err
    assert "top-1 100.00 %" in ran.err
    plan = accel.bench.plan.MeasurementPlan.default("cpu", warmup=2, iterations=140, rounds=1, threads=1)
    reply, arrays = worker.answer({**request, "mode": "measure", "plan": plan.to_dict()})
    assert (reply["input_shape"], arrays["host_us"].size) == ([1, 8, 8, 3], 140)


def test_samples_that_are_floats_already_are_no_data_for_it(pixels: Path, tmp_path: Path) -> None:
    from accel.bench import worker

    np.savez(tmp_path / "test.npz", images=PREPARE(images(4)), labels=np.zeros(4, np.int64))
    request = {"bundle": str(pixels), "variant": "onnxruntime:fp32", "device": "cpu", "batch": 1, "data": f"npz:{tmp_path / 'test.npz'}"}
    with pytest.raises(UsageError, match="takes uint8 pixels: it normalises by itself"):
        worker.answer({**request, "mode": "verify"})


def test_predictions_of_files_are_those_of_the_other_bundle(exported: tuple[Path, Path], tmp_path: Path) -> None:
    image_of = pytest.importorskip("PIL.Image").fromarray
    image_of(np.random.default_rng(3).integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(tmp_path / "one.png")
    plain, embedded = (accel.predict(path, tmp_path / "one.png", device="cpu").pictures[0].top for path in exported)
    assert [guess.label for guess in embedded] == [guess.label for guess in plain]
    assert [guess.probability for guess in embedded] == pytest.approx([guess.probability for guess in plain], abs=1e-5)


@pytest.mark.parametrize("embed", [False, True])
def test_one_bundle_takes_one_kind_of_input(exported: tuple[Path, Path], checkpoint: Path, embed: bool) -> None:
    there = exported[0] if embed else exported[1]
    before = (there / "accel.json").read_bytes()
    how = {"name": there.stem, "out": there.parent, "device": "cpu"}
    with pytest.raises(UsageError, match="all engines of a bundle take the same") as caught:
        export(str(checkpoint), "onnx", embed_preprocess=embed, trusted=True, **how)
    assert "--name" in str(caught.value.remedy)
    assert (there / "accel.json").read_bytes() == before


def test_an_engine_is_added_to_a_bundle_of_pixels_without_saying_so_again(pixels: Path) -> None:
    (done,) = export(str(pixels), "onnx", batch="dynamic", device="cpu")
    assert (done.status, done.entry and done.entry.inputs[0].shape) == ("added", ("batch", 8, 8, 3))


def test_a_bundle_of_floats_that_was_named_stays_one_and_moved_it_may_become_another(exported: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes float32 NCHW, and an engine that takes uint8 NHWC"):
        export(str(exported[0]), "onnx", device="cpu", embed_preprocess=True)
    (done,) = export(str(exported[0]), "onnx", device="cpu", name="moved", out=tmp_path, embed_preprocess=True)
    assert Bundle.open(done.bundle).inputs == (PIXELS,)


def test_what_has_no_preprocessing_or_no_module_is_refused(tiny: Path, tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="says nothing of how a picture becomes its input"):
        export("nets:build", "onnx", weights=tiny_weights, input="1x3x8x8", name="other", out=tmp_path, embed_preprocess=True)
    copy = shutil.copyfile(tiny / "onnx-fp32" / "model.onnx", tmp_path / "alone.onnx")
    with pytest.raises(UsageError, match="has no PyTorch model"):
        export(str(copy), "onnx", out=tmp_path, embed_preprocess=True)


def test_what_is_embedded_is_a_part_of_the_identity_and_leaves_the_others_as_they_were(checkpoint: Path) -> None:
    plain = read_checkpoint(checkpoint)
    source = EngineSource(Variant("eager", "fp32"), "cpu", (PLAIN,), (plain.output,))
    one, other = (identity.variant_identity(source, item, "2.15", "CPU") for item in (plain, embedding.embed(plain)))
    assert one != other
    assert "embedded" not in identity._model(source, plain)


def test_the_command_line_has_it(accel_cli: Cli, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = accel_cli("export", checkpoint, "--trusted", "--to", "onnx", "--embed-preprocess", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "input uint8 batchx8x8x3 NHWC" in accel_cli("inspect", "small").out
    ran = accel_cli("export", checkpoint, "--trusted", "--to", "onnx", "--device", "cpu")
    assert ran.code == 2
    assert "takes uint8 NHWC, and an engine that takes float32 NCHW was asked for" in ran.err


def test_the_proof_of_a_compiled_package_leaves_the_constants_out(checkpoint: Path) -> None:
    from accel.exporters import aoti

    module = build_module(embedding.embed(read_checkpoint(checkpoint))).half()
    program = torch.export.export(module, (torch.from_numpy(images(1)),), strict=False)
    assert set(aoti.prove(program, "fp16")["weights"]) == {"float16"}
    with pytest.raises(PrecisionError, match="weights in float16"):
        aoti.prove(program, "fp32")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_takes_pixels_too(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    from accel import device

    pytest.importorskip("tensorrt")
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    how = {"precision": precision, "out": tmp_path, "device": "cuda", "embed_preprocess": True, "trusted": True}
    (done,) = export(str(checkpoint), "tensorrt", **how)
    assert done.entry is not None
    assert (done.entry.parity["status"], done.entry.inputs[0].dtype) == ("passed", "uint8")
    with accel.load(done.bundle, f"tensorrt:{precision}", device="cuda") as engine:
        golden = Bundle.open(done.bundle).golden()
        np.testing.assert_allclose(engine(golden.inputs["input"]), golden.outputs["output"], atol=2e-2)
