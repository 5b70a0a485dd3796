"""A bundle packaged as an MLflow model is loaded back through mlflow.pyfunc and answers as accel.load does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import accel
from accel.engines import Bundle
from accel.errors import CorruptArtifact, UntrustedArtifact, UsageError
from accel.integrations import mlflow as ours
from accel.integrations.packaging import package

pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
pytest.importorskip("pandas", reason="the extra mlflow is not installed")
import mlflow.pyfunc


@pytest.fixture
def packaged(tiny: Path) -> Path:
    (made,) = package("tiny", "mlflow").packages
    return made.path


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 8, 8), dtype=np.float32)


def test_the_model_loaded_back_answers_bit_for_bit_as_accel_load(tiny: Path, packaged: Path) -> None:
    model = mlflow.pyfunc.load_model(str(packaged))
    with accel.load(tiny) as engine:
        for count in (1, 3):
            np.testing.assert_array_equal(model.predict(rows(count)), engine(rows(count)))


def test_the_signature_is_the_bundles_and_what_does_not_fit_it_is_refused(tiny: Path, packaged: Path) -> None:
    model = mlflow.pyfunc.load_model(str(packaged))
    (given,), (answered,) = model.metadata.signature.inputs.inputs, model.metadata.signature.outputs.inputs
    assert (given.shape, given.type, answered.shape) == ((-1, 3, 8, 8), np.dtype(np.float32), (-1, 10))
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        model.predict(np.zeros((1, 3, 9, 8), np.float32))
    with pytest.raises(mlflow.exceptions.MlflowException, match="float64"):
        model.predict(np.zeros((1, 3, 8, 8)))


def test_the_example_is_the_first_golden_sample_and_can_be_sent_to_a_server(tiny: Path, packaged: Path) -> None:
    model = mlflow.pyfunc.load_model(str(packaged))
    golden = Bundle.open(tiny).golden()
    example = model.input_example
    np.testing.assert_allclose(example, golden.inputs["input"][:1])
    np.testing.assert_allclose(model.predict(example), golden.outputs["output"][:1], atol=1e-5)
    sent = json.loads((packaged / "serving_input_example.json").read_text())
    np.testing.assert_allclose(sent["inputs"], example)


def test_nothing_of_it_is_a_pickle_and_the_bundle_is_whole(tiny: Path, packaged: Path) -> None:
    assert Bundle.open(packaged / "data" / "tiny.accel").manifest_sha256 == Bundle.open(tiny).manifest_sha256
    around = [path for path in packaged.rglob("*") if path.is_file() and "data" not in path.parts]
    assert sorted(path.suffix for path in around) == ["", ".json", ".json", ".txt", ".yaml", ".yaml"]
    # Every pickle since protocol 2 begins with this byte, and text never does.
    assert [path.name for path in around if path.read_bytes()[:1] == b"\x80"] == []


def test_it_asks_for_our_package_with_the_engines_extra_and_not_for_all_of_mlflow(packaged: Path) -> None:
    asked = (packaged / "requirements.txt").read_text().split()
    assert asked == [f"mlflow-skinny=={mlflow.__version__}", f"accel-engines[mlflow,ort]=={accel.__version__}"]


def test_one_engine_may_be_named_and_a_stranger_has_to_trust_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,) = package("tiny", "mlflow", engines=["torchscript-fp32"], name="scripted", out="models").packages
    assert (made.path, made.engine) == (Path("models/scripted"), "torchscript-fp32")
    assert "accel-engines[mlflow,train]" in (made.path / "requirements.txt").read_text()
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    with pytest.raises(UntrustedArtifact):
        mlflow.pyfunc.load_model(str(made.path))
    trusting = mlflow.pyfunc.load_model(str(made.path), model_config={"trusted": True, "threads": 1})
    assert str(trusting._model_impl.engine.variant) == "torchscript:fp32"
    with pytest.raises(UsageError, match="loads one engine, and onnx-fp32, onnx-fp16 were named"):
        package("tiny", "mlflow", engines=["onnx"])


def test_a_model_that_is_there_stays_unless_forced(tiny: Path, packaged: Path) -> None:
    with pytest.raises(UsageError, match=r"mlflow/tiny exists"):
        package("tiny", "mlflow")
    package("tiny", "mlflow", force=True)
    assert mlflow.pyfunc.load_model(str(packaged)).predict(rows(1)).shape == (1, 10)


def test_an_edited_bundle_is_not_packaged(tiny: Path) -> None:
    (tiny / "torchscript-fp16" / "model.ts").write_bytes(b"edited")
    with pytest.raises(CorruptArtifact, match="6 bytes"):
        package("tiny", "mlflow")
    assert not list(Path("mlflow").iterdir())


def test_a_link_in_a_bundle_brings_nothing_along(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of this user")
    (tiny / "notes").symlink_to(tmp_path / "secret")
    (tiny / ".tiny.old").mkdir()
    (made,) = package("tiny", "mlflow").packages
    inside = {path.name for path in (made.path / "data" / "tiny.accel").iterdir()}
    assert {"accel.json", "golden.npz", "onnx-fp32"} <= inside
    assert not {"notes", ".tiny.old"} & inside
    (tiny / "golden.npz").rename(tmp_path / "golden.npz")
    (tiny / "golden.npz").symlink_to(tmp_path / "golden.npz")
    with pytest.raises(CorruptArtifact, match="golden"):
        package("tiny", "mlflow", name="linked")


def test_several_inputs_go_by_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny)
    two = [spec.__class__(name, spec.shape) for spec in bundle.inputs for name in ("left", "right")]
    monkeypatch.setattr(Bundle, "inputs", tuple(two))
    assert [spec.name for spec in ours.signature(bundle).inputs] == ["left", "right"]
    assert set(ours.example(bundle)) == {"input"}


def test_a_table_or_parameters_are_refused() -> None:
    model = ours.Model(lambda given: given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="given a list"):
        model.predict([[1.0]])
    with pytest.raises(UsageError, match="no parameters and was given top_k"):
        model.predict(np.zeros(1), {"top_k": 3})
    assert model.predict(np.zeros(1)).shape == (1,)


def test_the_command_writes_the_model(tiny: Path, accel_cli: Callable[..., Any]) -> None:
    ran = accel_cli("package", "tiny", "--to", "mlflow")
    assert ran.code == 0, ran.err
    assert "mlflow.pyfunc.load_model('mlflow/tiny') loads it" in ran.err
    assert Path("mlflow/tiny/MLmodel").is_file()
