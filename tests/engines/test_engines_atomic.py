"""A writer that is killed, that fails, or that meets another one."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_samples import checkpoint_of, entry_of, golden_of

from accel import engines
from accel.engines import Bundle, commit, writing
from accel.errors import CorruptArtifact, DiskFull

STEPS = ["rename aside", "rename in", "accel.json", "remove old"]

KILLED = """
import os, sys
from pathlib import Path
from engine_samples import entry_of
from accel import engines, files
from accel.engines import commit

def die(*args): os._exit(9)

step, bundle, folder, name = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
count = {"rename aside": 0, "rename in": 1}
renamed = []
rename, replace = Path.rename, os.replace

def counted(self, target):
    if step in count and len(renamed) == count[step]:
        die()
    renamed.append(target)
    return rename(self, target)

def replaced(source, target):
    if step == "accel.json" and str(target).endswith("accel.json"):
        die()
    return replace(source, target)

Path.rename, os.replace = counted, replaced
if step == "remove old":
    commit._remove = die
engines.add(bundle, entry_of(folder, b"new", name=name), folder)
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_replacement_leaves_the_old_engine_or_the_new_one(bundle: Bundle, tmp_path: Path, step: str) -> None:
    before = tree(bundle.path)
    path = f"{Path(__file__).parent}{os.pathsep}{Path(engines.__file__).parents[2]}"
    command = [sys.executable, "-c", KILLED, step, str(bundle.path), str(tmp_path / "new"), "onnx-fp32"]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, timeout=60, check=False).returncode == 9
    opened = Bundle.open(bundle.path)
    assert opened.file(opened.entry("onnx", "fp32")).read_bytes() == (b"new" if step == "remove old" else b"old")
    assert not list(bundle.path.glob(".*.old"))
    opened = engines.add(bundle.path, entry_of(tmp_path / "again", b"again"), tmp_path / "again")
    assert opened.file(opened.entries[0]).read_bytes() == b"again"
    assert tree(bundle.path).keys() == before.keys()


@pytest.mark.parametrize("call", ["swap_in", "write_text", "sync_tree"])
@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-fp16"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_the_bundle_as_it_was(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, name: str, error: BaseException
) -> None:
    before = tree(bundle.path)
    entry = entry_of(tmp_path / "new", b"new", name=name)

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(writing if call == "write_text" else commit, call, fail)
    with pytest.raises(DiskFull if isinstance(error, OSError) else KeyboardInterrupt):
        engines.add(bundle.path, entry, tmp_path / "new")
    assert tree(bundle.path) == before
    assert {path.name for path in bundle.path.iterdir()} == {"accel.json", "checkpoint", "golden.npz", "onnx-fp32"}
    assert Bundle.open(bundle.path) == bundle


def test_a_full_disk_while_creating_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = checkpoint_of(tmp_path / "trained")
    monkeypatch.setattr(writing, "write_checkpoint", fail)
    with pytest.raises(DiskFull, match="nothing was changed"):
        engines.create(tmp_path / "tiny.accel", checkpoint, golden_of())
    assert {path.name for path in tmp_path.iterdir()} == {"trained", ".tiny.accel.lock"}


def test_a_killed_replacement_of_a_whole_bundle_is_undone(bundle: Bundle) -> None:
    bundle.path.rename(bundle.path.with_name(f".{bundle.path.name}.old"))
    assert Bundle.open(bundle.path) == bundle


@pytest.mark.parametrize("name", ["....old", "...old", "..old", ".checkpoint.old", ".golden.npz.old", ".Onnx.old"])
def test_a_strangers_leftovers_do_not_make_accel_remove_anything_else(bundle: Bundle, name: str) -> None:
    (bundle.path / name).mkdir()
    (bundle.path.parent / "mine").write_text("mine")
    before = tree(bundle.path.parent)
    assert Bundle.open(bundle.path) == bundle
    assert tree(bundle.path.parent) == before


def test_files_that_are_not_what_the_entry_says_are_not_added(bundle: Bundle, tmp_path: Path) -> None:
    entry = entry_of(tmp_path / "new", b"new")
    (tmp_path / "new/model.onnx").write_bytes(b"ne")
    with pytest.raises(CorruptArtifact, match="has SHA-256"):
        engines.add(bundle.path, entry, tmp_path / "new")
    (tmp_path / "new/model.onnx").unlink()
    with pytest.raises(CorruptArtifact, match="is missing; onnx-fp32 names it"):
        engines.add(bundle.path, entry, tmp_path / "new")
    assert Bundle.open(bundle.path) == bundle


def test_what_a_killed_writer_left_is_swept(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / ".onnx-fp32.99999.part").mkdir()
    (bundle.path / ".accel.json.99999.part").write_text("{")
    engines.add(bundle.path, entry_of(tmp_path / "new", b"new"), tmp_path / "new")
    assert not list(bundle.path.glob(".*"))


def test_two_exports_into_one_bundle_both_arrive(empty: Bundle, tmp_path: Path) -> None:
    names = [f"onnx-fp32-b{batch}" for batch in range(2, 6)]
    entries = [entry_of(tmp_path / name, name.encode(), name=name) for name in names]
    threads = [threading.Thread(target=engines.add, args=(empty.path, entry, tmp_path / entry.name)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    opened = Bundle.open(empty.path)
    assert sorted(entry.name for entry in opened.entries) == names
    assert [opened.file(entry).read_bytes().decode() for entry in opened.entries] == [entry.name for entry in opened.entries]


def test_a_second_process_waits_for_the_first(empty: Bundle, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from engine_samples import entry_of; from accel import engines;"
        "engines.add(Path(sys.argv[1]), entry_of(Path(sys.argv[2])), Path(sys.argv[2]))"
    )
    path = f"{Path(__file__).parent}{os.pathsep}{Path(engines.__file__).parents[2]}"
    with commit.locked(empty.path):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(empty.path), str(tmp_path / "new")],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr is not None
        assert "waiting for another process to finish its work on tiny.accel" in child.stderr.readline()
        assert child.poll() is None
    assert child.wait(60) == 0
    assert [entry.name for entry in Bundle.open(empty.path).entries] == ["onnx-fp32"]
