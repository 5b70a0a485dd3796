"""Packed weights: unpacked once, whole or not at all, whoever else does it and whatever ends it; and those that accel ships."""

from __future__ import annotations

import json
import lzma
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from accel import packed, trainers
from accel.api import models
from accel.bench.results import read_rows
from accel.checkpoint import exported_sha256, read_checkpoint, write_checkpoint
from accel.errors import AccelError, CorruptArtifact, DiskFull, MissingError
from accel.files import sha256_bytes, sha256_file
from accel.report import trained
from accel.types import Checkpoint, TensorSpec

ROOT = Path(__file__).resolve().parents[1]
RUN = {"top1": 95.7, "val_top1": None, "train_s": 66.1, "device": "NVIDIA H200"}  # as of an accel that did not record exported_sha256
RECIPE = 'model = "resnet18"\nseed = 0\nsplit = "full"\nepochs = 80\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint folder as accel ships one, its weights packed; the cache is empty."""
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    draft = Checkpoint(
        path=tmp_path / "installed" / "resnet18",
        sha256="",
        name="resnet18",
        factory="accel.trainers.models.resnet18:build",
        num_classes=10,
        input=TensorSpec("input", ("batch", 3, 32, 32), "float32", "NCHW"),
        output=TensorSpec("logits", ("batch", 10), "float32", "NC"),
    )
    tensors = {"conv.weight": np.random.default_rng(3).standard_normal((64, 100)).astype(np.float16)}
    write_checkpoint(draft, tensors)
    (draft.path / "log.csv").write_text("epoch,loss\n1,2.3\n")
    (draft.path / "run.json").write_text(json.dumps(RUN))
    (draft.path / "recipe.toml").write_text(RECIPE)
    pack(draft.path)
    monkeypatch.setattr(trainers, "WEIGHTS", draft.path.parent)
    return draft.path


def pack(folder: Path) -> None:
    plain = folder / packed.WEIGHTS
    (folder / packed.PACKED).write_bytes(lzma.compress(plain.read_bytes()))
    plain.rename(folder.parent / "plain")


@pytest.fixture
def no_unpacking(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        monkeypatch.setattr(lzma, "LZMADecompressor", None)

    return forbid


def plain(folder: Path) -> bytes:
    return (folder.parent / "plain").read_bytes()


def cached(folder: Path) -> list[str]:
    """The names of all files of weights in the cache."""
    root = folder.parents[1] / "cache"
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_weights_are_unpacked_once_into_a_folder_like_the_one_that_was_packed(folder: Path, no_unpacking: Callable[[], None]) -> None:
    assert trainers.with_weights() == ["resnet18"]
    assert not (folder.parents[1] / "cache").exists()
    found = trainers.shipped("resnet18")
    assert found.is_absolute()
    assert found.is_relative_to(folder.parents[1] / "cache" / "weights")
    assert found.name == "resnet18"
    assert (found / "weights.safetensors").read_bytes() == plain(folder)
    for name in ("checkpoint.json", "log.csv", "run.json", "recipe.toml"):
        assert (found / name).read_bytes() == (folder / name).read_bytes()
    assert cached(folder) == ["checkpoint.json", "log.csv", "recipe.toml", "run.json", "weights.safetensors"]
    assert read_checkpoint(found).sha256 == sha256_bytes(plain(folder))
    no_unpacking()
    assert trainers.shipped("resnet18") == found


def test_plain_weights_are_taken_where_they_lie(folder: Path, no_unpacking: Callable[[], None]) -> None:
    no_unpacking()
    (folder / "weights.safetensors").write_bytes(plain(folder))
    assert trainers.shipped("resnet18") == folder
    (folder / packed.PACKED).unlink()
    assert trainers.shipped("resnet18") == folder
    (folder / "weights.safetensors").unlink()
    assert trainers.shipped("resnet18") == folder  # whoever reads it says what is missing
    assert not (folder.parents[1] / "cache").exists()


@pytest.mark.parametrize("spelled", ["", packed.WEIGHTS, packed.PACKED])
def test_a_packed_checkpoint_may_be_named_by_its_path(folder: Path, spelled: str) -> None:
    found = models.find(str(folder / spelled))
    assert found.path == trainers.shipped("resnet18")
    assert found.sha256 == sha256_bytes(plain(folder))


def test_the_folder_that_one_stands_in_has_its_name_in_the_cache_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = trainers.shipped("resnet18")
    monkeypatch.chdir(folder)
    assert packed.unpacked(Path()) == found


def test_another_accel_has_another_folder(folder: Path) -> None:
    older = trainers.shipped("resnet18")
    content = (older / "checkpoint.json").read_bytes()
    description = json.loads(content)
    (folder / "checkpoint.json").write_text(json.dumps({**description, "top1": 96.0}))
    newer = trainers.shipped("resnet18")
    assert (read_checkpoint(older).top1, read_checkpoint(newer).top1) == (None, 96.0)
    assert (older / "checkpoint.json").read_bytes() == content


@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoint.json", "log.csv"])
@pytest.mark.parametrize("how", ["cut", "edited", "gone"])
def test_a_damaged_copy_is_made_anew(folder: Path, name: str, how: str) -> None:
    found = trainers.shipped("resnet18")
    whole = (found / name).read_bytes()
    if how == "gone":
        (found / name).unlink()
    else:
        (found / name).write_bytes(whole[:-1] if how == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    assert trainers.shipped("resnet18") == found
    assert (found / name).read_bytes() == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from accel import packed
if sys.argv[2] == "written":  # whole, but without its name
    rename = os.replace
    os.replace = lambda old, new: os.kill(os.getpid(), signal.SIGKILL) if Path(new).name == packed.WEIGHTS else rename(old, new)
else:
    write = Path.write_bytes
    def half(path, data):
        if packed.WEIGHTS not in path.name:
            return write(path, data)
        write(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    Path.write_bytes = half
packed.unpacked(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("when", ["half", "written"])
def test_a_process_that_is_killed_leaves_nothing_that_is_taken(folder: Path, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, folder, when], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = (name for name in cached(folder) if packed.WEIGHTS in name)
    assert left.endswith(".part")
    found = trainers.shipped("resnet18")
    assert (found / "weights.safetensors").read_bytes() == plain(folder)
    assert cached(folder) == ["checkpoint.json", "log.csv", "recipe.toml", "run.json", "weights.safetensors"]


AT_ONCE = """
import lzma, sys, time
from pathlib import Path
from accel import packed
unpacked = []
real = lzma.LZMADecompressor
def slow(*arguments, **options):
    unpacked.append(1)
    time.sleep(1)
    return real(*arguments, **options)
lzma.LZMADecompressor = slow
print("ready", flush=True)
sys.stdin.readline()
print(packed.unpacked(Path(sys.argv[1])))
print(len(unpacked))
"""


def test_of_two_processes_at_once_one_unpacks_and_the_other_waits(folder: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    both = [subprocess.Popen([sys.executable, "-c", AT_ONCE, folder], **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (first, one), (second, other) = (out.splitlines() for out, _ in said)
    assert first == second == str(trainers.shipped("resnet18"))
    assert sorted([one, other]) == ["0", "1"]
    assert sum("waiting for another process to finish unpacking the weights of resnet18" in err for _, err in said) == 1
    assert (Path(first) / "weights.safetensors").read_bytes() == plain(folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "its end is missing"),
        (lambda data: b"", "its end is missing"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "not supported"),
        (lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:], "Corrupt input data"),
        (lambda data: data + b"x", "bytes follow its end"),
        (lambda data: lzma.compress(lzma.decompress(data)[::-1]), "checkpoint.json says"),
    ],
)
def test_damaged_packed_weights_are_said_and_nothing_is_kept(folder: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    file = folder / packed.PACKED
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptArtifact, match=said) as caught:
        trainers.shipped("resnet18")
    assert str(file) in caught.value.message
    assert "install accel-engines again" in str(caught.value.remedy)
    assert cached(folder) == []


def test_what_unpacks_to_more_than_can_be_weights_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGEST", 1000)
    with pytest.raises(CorruptArtifact, match="over 1000 bytes"):
        trainers.shipped("resnet18")


@pytest.mark.parametrize("text", ["{", "[]", "{}", None])
def test_a_broken_description_is_said(folder: Path, text: str | None) -> None:
    (folder / "checkpoint.json").unlink()
    if text is not None:
        (folder / "checkpoint.json").write_text(text)
    with pytest.raises(CorruptArtifact, match=r"checkpoint\.json cannot be read"):
        packed.unpacked(folder)


def test_a_cache_that_cannot_be_written_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(MissingError, match="cannot be unpacked into") as caught:
        trainers.shipped("resnet18")
    assert "ACCEL_CACHE_DIR" in str(caught.value.remedy)
    assert caught.value.exit_code == 4


UNPRIVILEGED = """
import ctypes, os, sys
from pathlib import Path
from accel import packed
from accel.errors import AccelError
if os.geteuid() == 0:  # who may write everywhere, as long as he has his capabilities
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
try:
    print(packed.unpacked(Path(sys.argv[1])))
except AccelError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_cache_that_may_only_be_read_serves_what_is_there(folder: Path) -> None:
    def ask() -> str:
        done = subprocess.run([sys.executable, "-c", UNPRIVILEGED, folder], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    cache = folder.parents[1] / "cache"
    cache.mkdir(mode=0o555)
    try:
        assert ask().startswith("MissingError")
        cache.chmod(0o755)
        found = trainers.shipped("resnet18")
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert ask() == str(found)
    finally:
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_said_as_everywhere(folder: Path) -> None:
    found = trainers.shipped("resnet18")
    (found / "weights.safetensors").unlink()
    part = found / f".weights.safetensors.{os.getpid()}.part"
    original = packed.replacing
    with pytest.MonkeyPatch.context() as patch:

        def full(path: Path) -> object:
            if path.name == "weights.safetensors":
                part.symlink_to("/dev/full")
            return original(path)

        patch.setattr(packed, "replacing", full)
        with pytest.raises(DiskFull):
            trainers.shipped("resnet18")
    assert not (found / "weights.safetensors").exists()
    assert (trainers.shipped("resnet18") / "weights.safetensors").read_bytes() == plain(folder)


def test_a_python_without_lzma_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(AccelError, match="built without lzma"):
        trainers.shipped("resnet18")


def test_a_report_names_packed_weights_as_it_did_plain_ones(folder: Path) -> None:
    (packed_run,) = trained.find([folder.parent])
    assert not (folder.parents[1] / "cache").exists()  # it only reads
    (folder / "weights.safetensors").write_bytes(plain(folder))
    assert trained.find([folder]) == [packed_run]
    assert packed_run.exported_sha256 == exported_sha256(load_file(folder / "weights.safetensors"))


def test_the_weights_that_are_shipped_packed_are_those_of_their_records() -> None:
    folders = [path.parent for path in trainers.WEIGHTS.glob(f"*/{packed.PACKED}")]
    assert [folder.name for folder in folders] == ["resnet18"]
    assert not (folders[0] / packed.WEIGHTS).exists()
    found = trainers.shipped("resnet18")
    assert found != folders[0]
    checkpoint = read_checkpoint(found)
    # Of the plain file, before it was packed.
    assert checkpoint.sha256 == "0670ff4520a582f5a0c3c32a953d48f8462b9449b6acc585be1f13108636ce56" == sha256_file(checkpoint.weights)
    row = read_rows(ROOT / "results/h200/resnet18-cuda0-20261129T171436Z")[0]
    assert exported_sha256(load_file(checkpoint.weights)) == row["weights_sha256"]
