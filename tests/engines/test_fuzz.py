"""Bundles that an accident or a stranger has changed: an error of ours or the right answer, never a crash, a hang or a wrong answer.

A worker process checks and loads what hypothesis makes of a real bundle; one that dies or is silent for LIMIT_S seconds is a failure with
the change that did it. The examples are the same in every run; with FUZZ_TIMES=40 FUZZ_SEED=1 in the environment
there are forty times as many others.

A wrong answer is looked for by all golden samples. An ONNX file whose hash in accel.json was made anew along with accel.json's own is an
honest export to every check of hashes: there the two golden samples of a strict load are what refuses it.
"""

from __future__ import annotations

import collections
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutations
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from resealed import reseal

from accel.engines import Bundle, archive, signing
from accel.engines.manifest import self_sha256
from accel.files import sha256_file

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
SEED = os.environ.get("FUZZ_SEED")
LIMIT_S = 10.0
ONNX, SCRIPT = "onnx-fp32/model.onnx", "torchscript-fp32/model.ts"
VARIANTS = {ONNX: "onnxruntime:fp32", SCRIPT: "torchscript:fp32"}
OURS = (2, 4, 5)
"""Exit codes of errors about the request, the machine and the artifact."""

GOLDEN = 3
"""That of an engine that a strict load found to disagree with the golden samples."""


class Worker:
    """The process of fuzz_worker, started anew after each death."""

    def __init__(self, whole: Path, cache: Path) -> None:
        self.whole = whole
        # A stranger's bundle: this user has exported nothing.
        self.environment = {**os.environ, "ACCEL_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, path: Path, variant: str, strict: bool = True) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, str(Path(__file__).with_name("fuzz_worker.py")), str(self.whole)]
            self.process = subprocess.Popen(command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self.line(60) == b"ready\n"
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"path": str(path), "variant": variant, "strict": strict}).encode() + b"\n")
        self.process.stdin.flush()
        line = self.line(LIMIT_S)
        if line:
            return dict(json.loads(line))
        how = f"silent for {LIMIT_S} s" if line is None else f"died with {self.process.wait()}"
        self.close()
        return {"checked": {"end": how}, "loaded": {"end": how}}

    def line(self, limit_s: float) -> bytes | None:
        """The next line; None after `limit_s` seconds of silence, empty if the process is gone."""
        assert self.process is not None
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], limit_s)[0]:
            return None
        return self.process.stdout.readline()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    stream.close()
            self.process = None


class World:
    """A whole bundle, and a copy of it that is changed and put right again."""

    def __init__(self, whole: Path, folder: Path) -> None:
        self.whole, self.path = whole, folder / "changed.accel"
        shutil.copytree(whole, self.path)
        self.bytes = {str(path.relative_to(whole)): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
        self.tree: dict[str, Any] = json.loads(self.bytes["accel.json"])
        self.archive = archive.pack(Bundle.open(whole), folder / "whole.accel.zip")
        self.packed = self.archive.read_bytes()
        self.worker = Worker(whole, folder / "cache")
        self.signature = self.signed(folder / "signed.accel", folder / "key.pem")
        self.touched: set[str] = set()
        self.seen: collections.Counter[str] = collections.Counter()

    def signed(self, copy: Path, key: Path) -> bytes:
        shutil.copytree(self.whole, copy)
        signing.generate(key)
        signing.sign(copy, Bundle.open(copy).manifest_sha256, key)
        return (copy / "accel.sig").read_bytes()

    def write(self, name: str, data: bytes) -> Path:
        """Change a file until `restore`."""
        path = self.take(name)
        path.write_bytes(data)
        return path

    def take(self, name: str) -> Path:
        """Take a file away until `restore`."""
        self.touched.add(name)
        path = self.path / name
        path.unlink(missing_ok=True)
        return path

    def restore(self) -> None:
        for name in self.touched:
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            if name in self.bytes:
                path.write_bytes(self.bytes[name])
        self.touched.clear()


@pytest.fixture(scope="module")
def world(tiny_exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pytest.importorskip("cryptography")
    folder = tmp_path_factory.mktemp("fuzz")
    whole = Path(shutil.copytree(tiny_exported, folder / "tiny.accel"))
    reseal(whole / "accel.json", lambda data: data.update(engines=[entry for entry in data["engines"] if entry["precision"] == "fp32"]))
    shutil.rmtree(whole / "onnx-fp16")
    shutil.rmtree(whole / "torchscript-fp16")
    world = World(whole, folder)
    yield world
    world.worker.close()
    print(f"\n{dict(sorted(world.seen.items()))}")


def order(text: bytes) -> str | None:
    """What the JSON says, in its order; None if it is none, or ambiguous."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    try:
        return json.dumps(json.loads(text.decode(), object_pairs_hook=once))
    except (ValueError, RecursionError):
        return None


def refused(found: dict[str, Any], *codes: int) -> None:
    assert found["end"] == "refused", found
    assert found["exit_code"] in codes, found
    assert "to mend it: " in found["said"], found


def refused_or(found: dict[str, Any], good: str) -> None:
    if found["end"] != good:
        refused(found, *OURS)


def manifest_bytes(world: World, draw: Callable[..., Any]) -> None:
    text = draw(mutations.byte_changes(len(world.bytes["accel.json"])))(world.bytes["accel.json"])
    hold_manifest(world, text)


def manifest_json(world: World, draw: Callable[..., Any]) -> None:
    tree, twice = draw(mutations.json_changes(world.tree))(json.loads(world.bytes["accel.json"]))
    hold_manifest(world, mutations.spelled(tree, twice))


def hold_manifest(world: World, text: bytes) -> None:
    """A change of what accel.json says is refused; one of how it is spelled changes nothing."""
    world.write("accel.json", text)
    found = world.worker.ask(world.path, VARIANTS[ONNX])
    if order(text) == order(world.bytes["accel.json"]):
        assert found == {"checked": {"end": "whole"}, "loaded": {"end": "right"}}
    else:
        refused(found["checked"], 5)
        refused(found["loaded"], 5)


def manifest_json_resealed(world: World, draw: Callable[..., Any]) -> None:
    """By somebody who writes accel.json's own hash anew: another bundle, which may be a good one; its files are those that were there."""
    tree, _ = draw(mutations.json_changes(world.tree))(json.loads(world.bytes["accel.json"]))
    try:
        plain = json.loads(mutations.spelled(tree))
        plain["self_sha256"] = self_sha256(plain)
        text = json.dumps(plain).encode()
    except (ValueError, RecursionError):
        text = mutations.spelled(tree)  # what has no hash
    world.write("accel.json", text)
    found = world.worker.ask(world.path, VARIANTS[ONNX])
    refused_or(found["checked"], "whole")
    refused_or(found["loaded"], "right")


def file_bytes(world: World, draw: Callable[..., Any]) -> None:
    """Any file that accel.json vouches for: the whole bundle is refused, and so is the engine whose file it is."""
    name = draw(st.sampled_from(["golden.npz", *sorted(Bundle.open(world.whole).manifest.files)]))
    data = draw(mutations.byte_changes(len(world.bytes[name])))(world.bytes[name])
    world.write(name, data)
    changed = data != world.bytes[name]
    variant = VARIANTS[name if name in VARIANTS and changed else ONNX]  # a whole TorchScript file would import torch
    found = world.worker.ask(world.path, variant)
    if not changed:
        assert found["checked"] == {"end": "whole"}
    elif name == "golden.npz":
        # Its hash is over names, shapes and values: a changed time in the zip file changes nothing.
        refused_or(found["checked"], "whole")
    else:
        refused(found["checked"], 5)
    if name in VARIANTS and changed:
        refused(found["loaded"], 5)
    elif name == "golden.npz":
        # A strict load holds the engine against them.
        refused_or(found["loaded"], "right")
    else:
        assert found["loaded"] == {"end": "right"}


def onnx_bytes_rehashed(world: World, draw: Callable[..., Any]) -> None:
    """With the file's hash made anew, ONNX Runtime sees what was damaged."""
    rehash(world, draw(mutations.byte_changes(len(world.bytes[ONNX])))(world.bytes[ONNX]))
    found = world.worker.ask(world.path, VARIANTS[ONNX])
    refused_or(found["checked"], "whole")
    world.seen[f"re-hashed: {found['loaded']['end']}"] += 1
    if found["loaded"]["end"] != "right":
        refused(found["loaded"], *OURS, GOLDEN)


def rehash(world: World, data: bytes) -> None:
    """Put `data` in the place of the ONNX file, and its hash into accel.json."""
    file = world.write(ONNX, data)
    world.touched.add("accel.json")

    def change(tree: dict[str, Any]) -> None:
        next(entry for entry in tree["engines"] if entry["name"] == "onnx-fp32")["files"] = {ONNX: sha256_file(file)}

    reseal(world.path / "accel.json", change)


def folder(world: World, draw: Callable[..., Any]) -> None:
    """A file that is gone, or is no file any more, or another one's."""
    name = draw(st.sampled_from(["accel.json", "golden.npz", ONNX, SCRIPT, "checkpoint/checkpoint.json"]))
    path, kind = world.take(name), draw(st.sampled_from(["gone", "folder", "link", "pipe", "empty", "another"]))
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(world.whole / name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another":
        path.write_bytes(world.bytes[draw(st.sampled_from(sorted(other for other in world.bytes if other != name)))])
    found = world.worker.ask(world.path, VARIANTS.get(name, VARIANTS[ONNX]))
    refused(found["checked"], 5)
    (refused if name in {"accel.json", *VARIANTS} else refused_or)(found["loaded"], 5 if name in {"accel.json", *VARIANTS} else "right")


def signature_bytes(world: World, draw: Callable[..., Any]) -> None:
    text = draw(mutations.byte_changes(len(world.signature)))(world.signature)
    world.write("accel.sig", text)
    found = world.worker.ask(world.path, "")
    if order(text) == order(world.signature):
        assert found["checked"] == {"end": "whole"}
    else:
        refused(found["checked"], 5)


def archive_bytes(world: World, draw: Callable[..., Any]) -> None:
    """What is unpacked is what was packed."""
    data = draw(mutations.byte_changes(len(world.packed)))(world.packed)
    path = world.path.with_name("changed.accel.zip")
    path.write_bytes(data)
    found = world.worker.ask(path, VARIANTS[ONNX])
    if data != world.packed:
        refused_or(found["checked"], "whole")
        refused_or(found["loaded"], "right")
        world.seen[f"archive: {found['checked']['end']}"] += 1


MUTATIONS = {
    manifest_bytes: 70,
    manifest_json: 120,
    manifest_json_resealed: 80,
    file_bytes: 90,
    onnx_bytes_rehashed: 100,
    folder: 40,
    signature_bytes: 30,
    archive_bytes: 60,
}
"""Kind → how many: 500 of accel.json and of the files, and 90 of what goes with them."""


@pytest.mark.parametrize("kind", MUTATIONS, ids=lambda kind: kind.__name__)
def test_a_changed_bundle_is_refused_or_answers_rightly(world: World, kind: Callable[..., None]) -> None:
    @settings(
        max_examples=MUTATIONS[kind] * TIMES,
        derandomize=SEED is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=st.data())
    def hold(data: st.DataObject) -> None:
        world.seen[kind.__name__] += 1
        try:
            kind(world, data.draw)
        finally:
            world.restore()

    (seed(int(SEED))(hold) if SEED else hold)()
    assert world.seen[kind.__name__] >= MUTATIONS[kind]


def test_the_worker_tells_a_right_answer_a_wrong_one_a_death_and_a_hang(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzz could otherwise pass by seeing nothing."""
    assert world.worker.ask(world.path, VARIANTS[ONNX]) == {"checked": {"end": "whole"}, "loaded": {"end": "right"}}
    weights = world.bytes[ONNX].rindex(b"5.bias") + len(b"5.bias") + 2  # the name, the field's tag and its length
    rehash(world, world.bytes[ONNX][:weights] + b"\x44" * 40 + world.bytes[ONNX][weights + 40 :])
    assert world.worker.ask(world.path, VARIANTS[ONNX], strict=False)["loaded"] == {"end": "wrong"}
    refused(world.worker.ask(world.path, VARIANTS[ONNX])["loaded"], GOLDEN)
    world.restore()
    assert world.worker.process is not None
    world.worker.process.kill()
    assert world.worker.ask(world.path, VARIANTS[ONNX])["loaded"] == {"end": "died with -9"}
    assert world.worker.ask(world.path, VARIANTS[ONNX])["loaded"] == {"end": "right"}
    world.worker.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(sys.modules[__name__], "LIMIT_S", 0.1)
    assert world.worker.ask(world.path, VARIANTS[ONNX])["loaded"] == {"end": "silent for 0.1 s"}
