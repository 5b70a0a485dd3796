import dataclasses
from pathlib import Path

import numpy as np
import pytest
from engine_samples import OUTPUT, checkpoint_of

from accel.engines import golden
from accel.engines.module import build_module, find_factory, source_sha256
from accel.engines.weights import read_weights
from accel.errors import CorruptArtifact, IncompatibleArtifact, MissingError, UsageError
from accel.files import sha256_file

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_module_comes_back_in_fp32_eval_mode_with_its_weights(tmp_path: Path, dtype: str) -> None:
    checkpoint = checkpoint_of(tmp_path / "c", dtype)
    module = build_module(checkpoint.path)
    assert not module.training
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    assert not any(tensor.requires_grad for tensor in module.parameters())
    np.testing.assert_array_equal(module[0].weight.numpy(), read_weights(checkpoint.weights)["0.weight"])
    assert module[1].num_batches_tracked == 7


def test_bfloat16_weights_are_upcast_exactly(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    values = torch.tensor([1.5, -3.25, 1e-3, 65536.0], dtype=torch.bfloat16)
    save_file({"w": values, "d": values.double()}, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert {name: array.dtype for name, array in found.items()} == {"w": np.float32, "d": np.float32}
    np.testing.assert_array_equal(found["w"], values.float().numpy())


def test_truncated_weights_are_corrupt(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "c")
    checkpoint.weights.write_bytes(checkpoint.weights.read_bytes()[:-5])
    with pytest.raises(CorruptArtifact, match=r"weights\.safetensors cannot be read"):
        read_weights(checkpoint.weights)
    with pytest.raises(CorruptArtifact, match="SHA-256"):
        build_module(checkpoint.path)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"factory": "engine_samples"}, UsageError, "names no factory"),
        ({"factory": "engine_samples:build()"}, UsageError, "names no factory"),
        ({"factory": "engine_samples:INPUT"}, MissingError, "has no callable INPUT"),
        (
            {"factory": "no_such_package.nets:build"},
            MissingError,
            r"No module named 'no_such_package'(.|\n)*install the package no_such_package",
        ),
        ({"factory": "engine_samples:build_number"}, UsageError, "built a int, not a torch.nn.Module"),
        ({"factory_args": {"depth": 3}}, UsageError, "cannot be called with"),
        ({"factory_args": {"num_classes": 5}}, IncompatibleArtifact, r"do not fit what engine_samples:build builds(.|\n)*size mismatch"),
    ],
)
def test_a_module_that_cannot_be_built_says_why(tmp_path: Path, fields: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        build_module(checkpoint_of(tmp_path / "c", **fields))


def test_the_source_hash_is_of_the_file_and_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "explosive.py"
    file.write_bytes(b"raise RuntimeError('imported')\r\n")
    monkeypatch.syspath_prepend(tmp_path)
    with_crlf = source_sha256("explosive:build")
    file.write_bytes(b"raise RuntimeError('imported')\n")
    assert source_sha256("explosive:build") == with_crlf == sha256_file(file)
    for absent in ("no_such_package:build", "no_such_package.nets:build", "sys:exit"):
        with pytest.raises(MissingError):
            source_sha256(absent)
    assert find_factory("engine_samples:checkpoint_of") is checkpoint_of


def test_golden_samples_are_images_then_seeded_noise_answered_one_by_one(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "c")
    module = build_module(checkpoint)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)

    def preprocess(batch: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2), dtype=np.float32) / 255

    made = golden.make(checkpoint, module, images, preprocess)
    assert made.inputs["input"].shape == (11, 3, 8, 8)
    np.testing.assert_array_equal(made.inputs["input"][:3], preprocess(images))
    with torch.no_grad():
        expected = module(torch.from_numpy(made.inputs["input"])).numpy()
    np.testing.assert_allclose(made.outputs["logits"], expected, rtol=1e-5, atol=1e-5)
    assert golden.make(checkpoint, module).images is None
    assert golden.make(checkpoint, module).sha256 == golden.make(checkpoint, module, noise=8, seed=0).sha256
    assert golden.make(checkpoint, module).sha256 != golden.make(checkpoint, module, seed=1).sha256


def test_golden_samples_do_not_depend_on_the_precision_that_the_process_allows(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "c")
    module = build_module(checkpoint)
    plain = golden.make(checkpoint, module)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert golden.make(checkpoint, module).sha256 == plain.sha256
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_golden_samples_are_answered_by_one_thread(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "c")
    seen, module, before = [], build_module(checkpoint), torch.get_num_threads()
    module.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(6)
    try:
        golden.make(checkpoint, module)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)


def test_golden_samples_refuse_what_they_cannot_mean(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "c")
    module = build_module(checkpoint)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="no preprocessing"):
        golden.make(checkpoint, module, images)
    with pytest.raises(UsageError, match="preprocessing made"):
        golden.make(checkpoint, module, images, lambda batch: np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(UsageError, match="takes int64"):
        golden.make(dataclasses.replace(checkpoint, input=dataclasses.replace(OUTPUT, dtype="int64")), module)
