"""Pickles, tars and PNG sheets that are damaged or mean harm."""

from __future__ import annotations

import contextlib
import os
import pickle
import tarfile

import numpy as np
import pytest
from datasets_world import encode_png, pickle_batch, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import datasets
from accel.datasets.archive import read_members
from accel.datasets.npm import decode_sheet
from accel.datasets.pickles import read_batch
from accel.errors import CorruptArtifact

PLANES = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
GOOD = pickle_batch(PLANES, [3, 7], "labels")


class Evil:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def test_planes_become_pixels():
    batch = read_batch(GOOD, "labels", "a file")
    assert batch.images.shape == (2, 32, 32, 3)
    assert batch.images[1, 2, 3].tolist() == [PLANES[1, plane * 1024 + 2 * 32 + 3] for plane in range(3)]
    assert batch.labels.tolist() == [3, 7]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_re_pickled_batches_with_bytes_for_keys_are_read(protocol):
    data = pickle.dumps({b"data": PLANES, b"labels": [3, 7]}, protocol=protocol)
    assert np.array_equal(read_batch(data, "labels", "a file").images, read_batch(GOOD, "labels", "a file").images)


def test_a_python_2_batch_is_read():
    raw = PLANES.tobytes()
    data = b"".join([
        b"}(S'data'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nI3072\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR",
        b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nT", len(raw).to_bytes(4, "little"), raw, b"tbS'labels'\n(lp1\nI3\naI7\nau.",
    ])  # fmt: skip
    assert np.array_equal(read_batch(data, "labels", "a file").images, read_batch(GOOD, "labels", "a file").images)


@pytest.mark.parametrize(
    "payload", [Evil(os.system, "exit 1"), Evil(eval, "1+1"), Evil(os.getcwd), Evil(np.frombuffer, b"a"), os.path.join]
)
def test_a_pickle_that_names_any_function_is_refused_by_its_name(payload):
    data = pickle.dumps({"data": payload, "labels": []}, protocol=2)
    with pytest.raises(CorruptArtifact, match=r"its pickle asks for \w+"):
        read_batch(data, "labels", "a file")


def test_the_malicious_function_is_never_called(tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(CorruptArtifact):
        read_batch(pickle.dumps(Evil(os.mkdir, str(mark))), "labels", "a file")
    assert not mark.exists()


def test_a_decompressor_hidden_as_a_codec_is_refused():
    data = b"c_codecs\nencode\n(Vabc\nVzlib\ntR."
    with pytest.raises(CorruptArtifact, match="'zlib'"):
        read_batch(data, "labels", "a file")


@pytest.mark.parametrize("array", [np.array([{}], object), np.zeros((2, 3072), np.float32)])
def test_an_array_of_anything_but_bytes_is_refused(array):
    with pytest.raises(CorruptArtifact, match="uint8"):
        read_batch(pickle.dumps({"data": array, "labels": [0, 0]}, protocol=2), "labels", "a file")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1], "a list, not a dict"),
        ({"labels": [1]}, "no uint8 array"),
        ({"data": PLANES[:, :100], "labels": [1, 2]}, "no uint8 array"),
        ({"data": PLANES, "fine_labels": [1, 2]}, "it has .*fine_labels"),
        ({"data": PLANES, "labels": [1]}, "2 images and 1 labels"),
        ({"data": PLANES, "labels": [1, "x"]}, "whole numbers"),
        ({"data": PLANES, "labels": [1, 256]}, "whole numbers"),
    ],
)
def test_a_batch_that_lacks_something_is_told_what(content, complaint):
    with pytest.raises(CorruptArtifact, match=complaint):
        read_batch(pickle.dumps(content, protocol=2), "labels", "a file")


@pytest.mark.parametrize(
    "data",
    [b"\x96" + (1 << 62).to_bytes(8, "little") + b"x.", b"\x96" + bytes(8) + b".", b"Nr\xff\xff\xff\xff.", b"Np99999999999\n."],
    ids=["bytearray of 4 EiB", "bytearray", "memo of 4 G entries", "memo as text"],
)
def test_an_announced_size_is_never_allocated(data):
    with pytest.raises(CorruptArtifact):
        read_batch(data, "labels", "a file")


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_damaged_pickles_end_in_our_error_or_in_a_batch(position, junk):
    data = GOOD[:position] + junk + GOOD[position + len(junk) :]
    with contextlib.suppress(CorruptArtifact):
        read_batch(data, "labels", "a file")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    "bad",
    [
        member("../../etc/passwd"),
        member("/etc/passwd"),
        member("a/..\\..\\b"),
        member("cifar-10-batches-py/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("hard", tarfile.LNKTYPE, "/etc/passwd"),
        member("device", tarfile.CHRTYPE),
    ],
    ids=lambda bad: bad.name,
)
def test_an_archive_with_a_member_that_leaves_the_folder_is_refused(world, bad):
    with pytest.raises(CorruptArtifact, match="was refused"):
        datasets.fetch("cifar10", from_path=world.archive("cifar10", extra=(bad,)))
    assert not (world.cache / "datasets" / "cifar10").exists()


def test_a_truncated_archive_is_corrupt(world):
    path = world.archive("cifar10")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptArtifact):
        datasets.fetch("cifar10", from_path=path)


def test_a_file_that_is_no_archive_is_corrupt(world):
    path = world.root / "cifar-10-python.tar.gz"
    path.write_text("<html>not found</html>")
    with pytest.raises(CorruptArtifact, match=r"not a whole \.tar\.gz"):
        datasets.fetch("cifar10", from_path=path)


def test_missing_members_are_named(tmp_path):
    write_tar(tmp_path / "a.tar.gz", {"x": b"1"})
    with pytest.raises(CorruptArtifact, match=r"does not have y, z"):
        list(read_members(tmp_path / "a.tar.gz", {"x", "y", "z"}))


def test_a_sheet_is_read_whatever_pillows_limits_are_and_they_stay(monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1024, 3), dtype=np.uint8)
    sheet = decode_sheet(encode_png(pixels), 4, "a sheet")
    assert np.array_equal(sheet, pixels.reshape(4, 32, 32, 3))
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("shape", [(4, 1023, 3), (5, 1024, 3), (4, 1024)])
def test_a_sheet_of_another_size_or_mode_is_refused(shape):
    with pytest.raises(CorruptArtifact, match="not RGB"):
        decode_sheet(encode_png(np.zeros(shape, np.uint8)), 4, "a sheet")


@pytest.mark.parametrize("cut", [0, 10, 60, -30])
def test_a_truncated_sheet_is_corrupt(cut):
    png = encode_png(np.random.default_rng(0).integers(0, 256, (4, 1024, 3), dtype=np.uint8))
    with pytest.raises(CorruptArtifact):
        decode_sheet(png[:cut], 4, "a sheet")
