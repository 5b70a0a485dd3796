"""A Triton model repository says of each engine what the bundle says, in Triton's own schema."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.engines import Bundle
from accel.errors import BundleMissing, CorruptArtifact, RuntimeUnavailable, UnknownName, UsageError
from accel.files import sha256_file
from accel.integrations import placing
from accel.integrations.packaging import package
from accel.integrations.triton import PLATFORMS
from accel.integrations.triton_config import DTYPES, LABELS_FILE, to_text
from accel.types import ITEMSIZE

ReadConfig = Callable[[Path], Any]


def write(engine: str, **options: Any) -> Path:
    """The folder of the one model of one engine."""
    (made,) = package("tiny", "triton", engines=[engine], **options).packages
    return made.path


def dims(tensors: Any) -> list[tuple[str, list[int]]]:
    return [(tensor.name, list(tensor.dims)) for tensor in tensors]


@pytest.mark.parametrize(
    ("engine", "platform", "file", "max_batch", "input", "output"),
    [
        ("onnx-fp32", "onnxruntime_onnx", "model.onnx", 0, ("input", [1, 3, 8, 8]), ("output", [1, 10])),
        ("onnx-fp16", "onnxruntime_onnx", "model.onnx", 0, ("input", [1, 3, 8, 8]), ("output", [1, 10])),
        ("onnx-fp32-dynamic", "onnxruntime_onnx", "model.onnx", 32, ("input", [3, 8, 8]), ("output", [10])),
        ("torchscript-fp32", "pytorch_libtorch", "model.pt", 0, ("INPUT__0", [1, 3, 8, 8]), ("OUTPUT__0", [1, 10])),
        ("aoti-fp32", "torch_aoti", "model.pt2", 0, ("INPUT__0", [1, 3, 8, 8]), ("OUTPUT__0", [1, 10])),
        ("tensorrt-fp32-dynamic", "tensorrt_plan", "model.plan", 16, ("input", [3, 8, 8]), ("output", [10])),
    ],
)
def test_names_types_and_shapes_are_those_of_the_engine(
    served: Path, read_config: ReadConfig, engine: str, platform: str, file: str, max_batch: int, input: Any, output: Any
) -> None:
    folder = write(engine)
    config = read_config(folder / "config.pbtxt")
    entry = next(entry for entry in Bundle.open(served).entries if entry.name == engine)
    assert (config.name, config.platform, config.max_batch_size) == ("tiny", platform, max_batch)
    assert (dims(config.input), dims(config.output)) == ([input], [output])
    names = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    found = [names[tensor.data_type].name for tensor in (*config.input, *config.output)]
    assert found == [DTYPES[spec.dtype] for spec in (*entry.inputs, *entry.outputs)]
    assert found[0] == ("TYPE_FP16" if "fp16" in engine else "TYPE_FP32")
    assert sha256_file(folder / "1" / file) == next(iter(entry.files.values()))
    assert sorted(path.name for path in (folder / "1").iterdir()) == [file]


def test_every_dtype_of_ours_is_one_of_tritons(read_config: ReadConfig, tmp_path: Path) -> None:
    assert set(DTYPES) == set(ITEMSIZE)
    (tmp_path / "config.pbtxt").write_text("".join(f"input {{ data_type: {name} }}\n" for name in DTYPES.values()))
    assert len(read_config(tmp_path / "config.pbtxt").input) == len(DTYPES)


def test_all_engines_become_a_model_each_with_instances_where_they_can_run(served: Path, read_config: ReadConfig) -> None:
    done = package("tiny", "triton", instances=3)
    configs = {made.engine: read_config(made.path / "config.pbtxt") for made in done.packages}
    assert {made.name for made in done.packages} == {f"tiny-{entry.name}" for entry in Bundle.open(served).entries}
    assert {made.path.name for made in done.packages} == {made.name for made in done.packages}
    kinds = {engine: config.instance_group[0].kind for engine, config in configs.items()}
    group = configs["onnx-fp32"].instance_group[0]
    assert kinds["onnx-fp32"] == group.KIND_AUTO
    assert kinds["aoti-fp32"] == group.KIND_CPU
    assert kinds["tensorrt-fp32-dynamic"] == group.KIND_GPU
    assert group.count == 3
    assert configs["onnx-fp32"].version_policy.latest.num_versions == 1


def test_what_is_code_or_tied_or_was_not_run_is_said(served: Path) -> None:
    notes = "\n".join(package("tiny", "triton").notes)
    assert "torchscript-fp32 is code: it was copied and not run, and this user did not export it; the server will run it" in notes
    assert "tensorrt-fp32-dynamic is tied to gpu NVIDIA H200" in notes
    assert "aoti-fp32 was not held against the golden samples: no GPU" in notes
    assert "no server was run" in notes
    assert "onnx-fp32 is" not in notes


def test_the_preprocessing_travels_and_labels_name_each_class(
    served: Path, read_config: ReadConfig, rewritten: Callable[..., None]
) -> None:
    preprocess = {"mean": [0.5], "std": [0.25], "height": 8, "width": 8, "resize": "none", "fill": [128, 128, 128]}
    labels = [f'class "{number}"\nof ten: ä' for number in range(10)]
    rewritten(served, labels=tuple(labels), preprocess=preprocess)
    folder = write("torchscript-fp32")
    config = read_config(folder / "config.pbtxt")
    assert config.output[0].label_filename == LABELS_FILE
    assert (folder / LABELS_FILE).read_text(encoding="utf-8").splitlines() == [f'class "{number}" of ten: ä' for number in range(10)]
    said = json.loads(config.parameters["accel"].string_value)
    assert said == {"bundle": "tiny", "engine": "torchscript-fp32", "preprocess": preprocess}


def test_a_golden_sample_warms_up_in_the_engines_own_type(served: Path, read_config: ReadConfig) -> None:
    folder = write("onnx-fp16", warmup=True)
    (warmup,) = read_config(folder / "config.pbtxt").model_warmup
    fed = warmup.inputs["input"]
    assert (warmup.batch_size, list(fed.dims), fed.input_data_file) == (1, [1, 3, 8, 8], "golden-0")
    sample = np.frombuffer((folder / "warmup" / "golden-0").read_bytes(), np.float16).reshape(fed.dims)
    np.testing.assert_array_equal(sample, Bundle.open(served).golden().inputs["input"][:1].astype(np.float16))


def test_a_dynamic_engine_batches_as_asked_and_a_fixed_one_says_that_it_does_not(served: Path, read_config: ReadConfig) -> None:
    config = read_config(write("onnx-fp32-dynamic", max_batch_size=8, dynamic_batching=True) / "config.pbtxt")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (8, True)
    done = package("tiny", "triton", engines=["onnx"], max_batch_size=8)
    assert [made.max_batch for made in done.packages] == [0, 0, 8]
    assert "onnx-fp16 is not batched by Triton: its max_batch_size is 0" in done.notes
    with pytest.raises(UsageError, match="--max-batch-size and --dynamic-batching was given, and Triton can batch none of onnx-fp32"):
        package("tiny", "triton", engines=["onnx-fp32"], max_batch_size=8, dynamic_batching=True)


def test_a_dynamic_engine_that_triton_shall_not_batch_keeps_its_first_dimension(served: Path, read_config: ReadConfig) -> None:
    config = read_config(write("onnx-fp32-dynamic", max_batch_size=0, force=True) / "config.pbtxt")
    assert (config.max_batch_size, dims(config.input)) == (0, [("input", [-1, 3, 8, 8])])


def test_a_batch_larger_than_the_plan_was_built_for_is_refused(served: Path) -> None:
    with pytest.raises(UsageError, match="--max-batch-size 17 for tensorrt-fp32-dynamic, which takes 0 to 16"):
        write("tensorrt", max_batch_size=17)


@pytest.mark.parametrize(
    ("engine", "device", "error", "said"),
    [
        ("onnx-fp16", "cpu", RuntimeUnavailable, "no FP16 kernels"),
        ("tensorrt", "cpu", RuntimeUnavailable, "NVIDIA GPUs only"),
        ("aoti", "cuda", UsageError, "made for cpu and was asked for on cuda"),
        ("onnx-fp32", "cuda:1", UsageError, "no kind of device"),
    ],
)
def test_a_device_that_cannot_run_the_engine_is_refused(served: Path, engine: str, device: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        write(engine, device=device)
    assert not Path("triton").exists()


def test_nothing_is_overwritten_and_one_clash_stops_all(served: Path) -> None:
    write("onnx-fp32", name="tiny-onnx-fp16")
    before = sorted(Path("triton").rglob("*"))
    with pytest.raises(UsageError, match="tiny-onnx-fp16 has a version 1") as caught:
        package("tiny", "triton", engines=["onnx-fp32", "onnx-fp16"])
    assert "--model-version" in str(caught.value)
    assert sorted(Path("triton").rglob("*")) == before


def test_a_new_version_joins_the_old_one_where_all_else_is_the_same(served: Path) -> None:
    folder = write("onnx-fp32")
    assert write("onnx-fp32", model_version=2) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "config.pbtxt"]
    with pytest.raises(UsageError, match=r"its config\.pbtxt is not that of onnx-fp16"):
        write("onnx-fp16", model_version=3)
    write("onnx-fp16", force=True)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt"]


def test_an_edited_engine_is_not_packaged_and_leaves_nothing(served: Path) -> None:
    file = served / "onnx-fp32" / "model.onnx"
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(CorruptArtifact, match=r"accel\.json says"):
        write("onnx-fp32")
    assert not list(Path("triton").iterdir())
    assert [path.name for path in Path().iterdir() if path.name.endswith(".part")] == []


def test_a_file_that_changes_while_it_is_copied_is_not_packaged(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tampering(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"other bytes")

    monkeypatch.setattr(placing.shutil, "copyfile", tampering)
    with pytest.raises(CorruptArtifact, match="changed while it was copied"):
        write("onnx-fp32")
    assert not list(Path("triton").iterdir())


def test_a_failed_replacement_leaves_the_old_model(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("onnx-fp32")
    before = sha256_file(folder / "1" / "model.onnx")
    rename = Path.rename

    def fails_at_the_last_step(self: Path, target: Path) -> Path:
        if self.name == "made":
            raise OSError("no more")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_at_the_last_step)
    with pytest.raises(OSError, match="no more"):
        write("onnx-fp16", force=True)
    assert sha256_file(folder / "1" / "model.onnx") == before


def test_what_is_not_whole_lies_outside_the_repository_that_a_server_watches(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(placing, "sync_tree", lambda folder: seen.append([path.name for path in Path("triton").iterdir()]))
    write("onnx-fp32")
    write("onnx-fp32", model_version=2)
    assert seen == [[], ["tiny"]]


def test_a_target_an_engine_or_an_option_that_is_not_there_is_named(served: Path) -> None:
    with pytest.raises(UnknownName, match="no package target called 'torchserve'"):
        package("tiny", "torchserve")
    with pytest.raises(BundleMissing, match=r"no engine 'caffe'; it has onnx-fp32,"):
        package("tiny", "triton", engines=["caffe"])
    with pytest.raises(UsageError, match="--warmup does not apply to mlflow"):
        package("tiny", "mlflow", warmup=True)
    with pytest.raises(UsageError, match="no name of a model"):
        package("tiny", "triton", engines=["onnx-fp32"], name="a/b")


@pytest.mark.parametrize("to", ["triton", "mlflow"])
def test_a_bundle_whose_name_is_a_path_is_not_written_there(served: Path, to: str, rewritten: Callable[..., None]) -> None:
    rewritten(served, name="../../elsewhere")
    with pytest.raises(UsageError, match=r"'\.\./\.\./elsewhere' is no name of a model"):
        package("tiny", to, engines=["onnx-fp32"])
    assert not Path(to).exists()


def test_a_format_without_a_backend_is_left_out_and_named_is_refused(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PLATFORMS, "aoti")
    done = package("tiny", "triton")
    assert "aoti-fp32 was left out: Triton has no backend for it" in done.notes
    assert "aoti-fp32" not in {made.engine for made in done.packages}
    with pytest.raises(UsageError, match="no backend for aoti-fp32"):
        package("tiny", "triton", engines=["aoti"])


def test_strings_survive_the_text_format(read_config: ReadConfig, tmp_path: Path) -> None:
    name = 'a "quoted" \\ name\n\x07 of ünïcode'
    (tmp_path / "config.pbtxt").write_text(to_text({"name": name, "input": [], "dynamic_batching": {}}), encoding="ascii")
    assert read_config(tmp_path / "config.pbtxt").name == name


def test_the_command_prints_a_row_a_model_and_its_notes(served: Path, accel_cli: Callable[..., Any]) -> None:
    ran = accel_cli("package", "tiny", "--to", "triton", "--engine", "onnx-fp32", "--out", "models", "--format", "json")
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)
    assert (row["name"], row["platform"], row["max_batch"], row["path"]) == ("tiny", "onnxruntime_onnx", 0, "models/tiny")
    assert "tritonserver --model-repository models" in ran.err
    assert accel_cli("package", "tiny", "--to", "triton", "--engine", "onnx-fp32", "--out", "models").code == 2


def test_the_repository_may_be_a_link_and_a_scratch_folder_of_a_killed_run_is_no_hindrance(served: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path("triton").symlink_to("elsewhere")
    (tmp_path / f".tiny.{os.getpid()}.part").mkdir()
    write("onnx-fp32")
    assert (tmp_path / "elsewhere" / "tiny" / "1" / "model.onnx").is_file()
    shutil.rmtree(tmp_path / "elsewhere" / "tiny")
    write("onnx-fp32")
