"""Errors say what was asked, what was found and what mends it, and carry the documented exit code."""

from __future__ import annotations

import inspect
import pickle
import re
import sys

import pytest

from accel import errors
from accel.errors import AccelError, MissingExtra, UnknownName
from accel.optional import installed, require, version_of

TREE = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AccelError)}


@pytest.mark.parametrize("name", TREE)
def test_the_tree_in_the_docstring_tells_the_exit_code(name: str) -> None:
    drawn = re.search(rf"{name}\s+(\d)", errors.__doc__ or "")
    assert drawn is not None
    assert int(drawn.group(1)) == TREE[name].exit_code


def test_the_remedy_is_part_of_what_a_person_reads() -> None:
    assert str(AccelError("asked and found", remedy="do this")) == "asked and found\n  to mend it: do this"
    assert str(AccelError("asked and found")) == "asked and found"


def test_an_unknown_name_lists_the_known_ones_in_order() -> None:
    assert "choose one of: a, b" in str(UnknownName("model", "x", ["b", "a"]))


@pytest.mark.parametrize(
    "error",
    [AccelError("it failed", remedy="try again"), UnknownName("planet", "Pluto", ["Mars", "Earth"]), MissingExtra("torch", "train")],
)
def test_an_error_reaches_another_process_whole(error: AccelError) -> None:
    error.told = True
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, again.remedy, again.told) == (str(error), (error.message,), error.remedy, True)


def test_a_missing_package_names_the_extra_that_installs_it() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'accel-engines\[onnx\]'") as caught:
        require("accel_no_such_package", extra="onnx")
    assert caught.value.exit_code == 4


def test_a_package_whose_own_dependency_is_absent_names_that_dependency(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "accel_broken_package.py").write_text("import accel_absent_dependency\n")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(MissingExtra, match="needs accel_absent_dependency"):
        require("accel_broken_package", extra="ort")
    assert "accel_broken_package" not in sys.modules


def test_installed_and_version_of_look_without_importing() -> None:
    assert installed("numpy")
    assert not installed("accel_no_such_package")
    assert version_of("accel-no-such-package", "numpy") is not None
    assert version_of("accel-no-such-package") is None
