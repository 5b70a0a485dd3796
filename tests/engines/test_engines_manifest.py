import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from resealed import reseal

from accel.engines import Bundle, Manifest, strict
from accel.engines.manifest import check_entry, parse_manifest, read_manifest, self_sha256
from accel.errors import AccelError, CorruptArtifact, IncompatibleArtifact


def edit(bundle: Bundle, change: Any) -> Path:
    """Apply `change` to the parsed accel.json and write it back."""
    file = bundle.path / "accel.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return file


def test_a_manifest_is_read_back_as_it_was_written(bundle: Bundle) -> None:
    manifest = read_manifest(bundle.path / "accel.json")
    assert manifest == bundle.manifest
    assert parse_manifest(manifest.to_text().encode(), "x") == manifest


def test_a_newer_schema_asks_for_an_upgrade(bundle: Bundle) -> None:
    file = edit(bundle, lambda data: data.update(schema_version=3, invented="later"))
    with pytest.raises(IncompatibleArtifact, match=r"schema_version 3; this accel reads up to 2\n.*--upgrade accel-engines"):
        read_manifest(file)


EDITS = {
    "lacks the key 'golden_sha256'": lambda data: data.pop("golden_sha256"),
    "has an unknown key 'extra'": lambda data: data.update(extra=1),
    "the key 'schema_version' has the value 0": lambda data: data.update(schema_version=0),
    "the key 'schema_version' has the value True": lambda data: data.update(schema_version=True),
    "the key 'labels' has the value [1]": lambda data: data.update(labels=[1]),
    "checkpoint lacks the key 'source_sha256'": lambda data: data["checkpoint"].pop("source_sha256"),
    "inputs[0]: the key 'dtype' has the value 'float33'": lambda data: data["inputs"][0].update(dtype="float33"),
    "inputs[0]: the key 'shape' has the value [0]": lambda data: data["inputs"][0].update(shape=[0]),
    "inputs: there must be one or more tensors": lambda data: data.update(inputs=[]),
    "engines[0] is a int": lambda data: data.update(engines=[3]),
    "engines[0] lacks the key 'files'": lambda data: data["engines"][0].pop("files"),
    "engines[0]: the key 'built_s' has the value -1": lambda data: data["engines"][0].update(built_s=-1),
    "engines[0]: the key 'files' has the value {}": lambda data: data["engines"][0].update(files={}),
    "engines[0]: the key 'name' has the value '../x'": lambda data: data["engines"][0].update(name="../x"),
    "engines[0]: the key 'name' has the value 'checkpoint'": lambda data: data["engines"][0].update(name="checkpoint"),
    "names 'onnx-fp32' twice": lambda data: data["engines"].append(data["engines"][0]),
}


@pytest.mark.parametrize("said", EDITS)
def test_an_edited_key_is_named(bundle: Bundle, said: str) -> None:
    file = edit(bundle, EDITS[said])
    with pytest.raises(CorruptArtifact) as caught:
        read_manifest(file)
    assert said in str(caught.value)
    assert "to mend it" in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "/etc/passwd",
        "onnx-fp32/../../x",
        "onnx-fp32/./x",
        "onnx-fp32//x",
        "onnx-fp32\\x",
        "C:/x",
        "other/x",
        "onnx-fp32",
        "onnx-fp32/",
        "onnx-fp32/x\0",
        "onnx-fp32/..",
        "onnx-fp32/x/..",
        "ONNX-fp32/x",
        "onnx-fp32/c:x",
        "onnx-fp32/nul",
        "onnx-fp32/COM1.onnx",
        "onnx-fp32/x.",
        "onnx-fp32/x ",
        "onnx-fp32/what?",
        "onnx-fp32/a\u202eb",
        "onnx-fp32/e\u0301",
        "onnx-fp32/" + "x" * 300,
        "onnx-fp32/" + "x/" * 600 + "x",
    ],
)
def test_a_path_that_leaves_its_folder_is_refused(bundle: Bundle, path: str) -> None:
    file = edit(bundle, lambda data: data["engines"][0].update(files={path: "0" * 64}))
    with pytest.raises(CorruptArtifact, match="not inside onnx-fp32/"):
        read_manifest(file)
    file = edit(bundle, lambda data: data.update(engines=[], checkpoint={**data["checkpoint"], "files": {path: "0" * 64}}))
    with pytest.raises(CorruptArtifact, match="not inside checkpoint/"):
        read_manifest(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "cannot be read"),
        (b"[]", "holds a list"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_no_json_object_is_corrupt(text: bytes, said: str) -> None:
    with pytest.raises(CorruptArtifact, match=said):
        parse_manifest(text, "accel.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": 1e999}', "1e999 is no number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a whole number of 5000 digits"),
        (b'{"a": 9223372036854775808}', "a whole number of 19 digits"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": ' + b"[" * 41 + b"]" * 41 + b"}", "nested more than 40 deep"),
    ],
    ids=["infinite", "digits", "65 bits", "half a character", "deep"],
)
def test_json_that_would_trip_what_reads_it_is_corrupt(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "accel.json").write_bytes(text)
    with pytest.raises(CorruptArtifact, match=said):
        read_manifest(tmp_path / "accel.json")


def test_a_file_that_is_larger_than_any_of_ours_is_not_read(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "LARGEST", 100)
    with pytest.raises(CorruptArtifact, match=r"bytes; 100 are the most"):
        Bundle.open(bundle.path)


def test_files_that_are_one_on_some_system_are_refused(bundle: Bundle) -> None:
    for names in (["onnx-fp32/a", "onnx-fp32/A"], ["onnx-fp32/stra\u00dfe", "onnx-fp32/STRASSE"], ["onnx-fp32/a", "onnx-fp32/a/b"]):
        file = edit(bundle, lambda data, names=names: data["engines"][0].update(files=dict.fromkeys(names, "0" * 64)))
        with pytest.raises(CorruptArtifact, match="are not two files on every system"):
            read_manifest(file)


def test_an_edit_that_leaves_a_good_manifest_is_found_by_its_own_hash(bundle: Bundle) -> None:
    before = (bundle.path / "accel.json").read_text()
    for change in ('"a",\n    "b"', '"b",\n    "a"'), ("0.5,", "0.25,"), ('"layout": "NC"', '"layout": "N"'):
        assert change[0] in before
        with pytest.raises(CorruptArtifact, match=r"accel\.json was changed since accel wrote it: its contents have SHA-256"):
            parse_manifest(before.replace(*change).encode(), "accel.json")
    # How it is spelled does not count.
    assert parse_manifest(json.dumps(json.loads(before)).encode(), "accel.json") == bundle.manifest


def test_the_order_of_an_engines_files_counts_since_the_first_is_opened(bundle: Bundle) -> None:
    file = reseal(bundle.path / "accel.json", lambda data: data["engines"][0]["files"].update({"onnx-fp32/weights": "0" * 64}))
    data = json.loads(file.read_text())
    files = data["engines"][0]["files"]
    data["engines"][0]["files"] = dict(reversed(files.items()))
    with pytest.raises(CorruptArtifact, match="was changed since"):
        parse_manifest(json.dumps(data).encode(), "accel.json")


def test_a_manifest_of_the_first_schema_is_read_and_written_in_the_second(bundle: Bundle) -> None:
    data = json.loads(bundle.manifest.to_text())
    del data["self_sha256"]
    found = parse_manifest(json.dumps({**data, "schema_version": 1}).encode(), "accel.json")
    assert found == bundle.manifest
    assert json.loads(found.to_text())["schema_version"] == 2
    with pytest.raises(CorruptArtifact, match="lacks the key 'self_sha256'"):
        parse_manifest(json.dumps(data).encode(), "accel.json")


def test_an_entry_that_could_not_be_read_back_is_not_written(bundle: Bundle) -> None:
    broken = dataclasses.replace(bundle.entries[0], precision_proof=[])  # type: ignore[arg-type]
    with pytest.raises(CorruptArtifact, match="precision_proof"):
        check_entry(broken)


def outcome(text: bytes) -> Manifest | AccelError:
    try:
        return parse_manifest(text, "accel.json")
    except AccelError as error:
        return error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_is_refused_in_our_words_or_reads_as_what_it_says(bundle: Bundle, data: st.DataObject) -> None:
    tree: Any = json.loads(bundle.manifest.to_text())
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(tree)[1:]))
        parent = tree
        for key in place[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[place[-1]] = data.draw(JSON)
        else:
            del parent[place[-1]]
    with contextlib.suppress(ValueError):  # NaN has no hash
        tree["self_sha256"] = self_sha256(tree)
    found = outcome(json.dumps(tree).encode())
    if isinstance(found, AccelError):
        assert found.exit_code == 5
        assert found.remedy
    else:
        assert parse_manifest(found.to_text().encode(), "accel.json") == found
        assert json.loads(found.to_text()) == tree


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
@example(at=0, byte=0, cut=True)
def test_any_damaged_byte_is_refused_in_our_words_or_reads(bundle: Bundle, at: int, byte: int, cut: bool) -> None:
    text = bytearray(bundle.manifest.to_text().encode())
    at %= len(text)
    text[at] = byte
    found = outcome(bytes(text[:at] if cut else text))
    assert isinstance(found, Manifest) or found.exit_code == 5
