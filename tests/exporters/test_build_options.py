"""How build options are spelled, and which format takes which."""

from __future__ import annotations

import pytest

from accel import exporters
from accel.errors import UnknownName, UsageError
from accel.exporters import FORMATS, BuildOptions
from accel.exporters.options import flag_of, parse_list, parse_size


def test_a_size_has_a_unit_or_is_bytes() -> None:
    assert [parse_size(text) for text in ("4GiB", "512m", "1 KB", "123")] == [4 * 2**30, 512 * 2**20, 1024, 123]
    for text in ("", "4 GiB more", "-1", "1.5GiB"):
        with pytest.raises(UsageError, match="no size"):
            parse_size(text)


def test_a_list_names_something() -> None:
    assert parse_list("8.6, 8.9,8.6") == ("8.6", "8.9")
    with pytest.raises(UsageError, match="names nothing"):
        parse_list(" ,")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"workspace": 0}, "0 bytes"),
        ({"optimization_level": 6}, "level 6"),
        ({"builds": 0}, "0 builds"),
        ({"builds": 2, "timing_cache": "mine.cache"}, r"2 builds share no timings, so that mine\.cache would be neither read nor written"),
        ({"compute_capabilities": ("86",)}, "'86' is no compute capability"),
        ({"min_batch": 4, "max_batch": 2}, "4, 4 and 2 are not in order"),
        ({"min_batch": 0}, "0, 1 and 32 are not in order"),
    ],
)
def test_a_value_that_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BuildOptions(**fields)  # type: ignore[arg-type]


def test_the_best_batch_follows_the_smallest_and_the_largest_the_best() -> None:
    assert BuildOptions().batches == (1, 1, 32)
    assert BuildOptions(min_batch=4).batches == (4, 4, 32)
    assert BuildOptions(opt_batch=64).batches == (1, 64, 64)


def test_only_what_was_typed_is_given() -> None:
    assert BuildOptions().given() == {}
    assert BuildOptions(builds=3, compute_capabilities=("8.6",)).given() == {"builds": 3, "compute_capabilities": ["8.6"]}
    assert flag_of("compute_capabilities") == "--compute-capability"


def test_every_option_is_some_formats() -> None:
    fields = set(BuildOptions.__dataclass_fields__)
    assert fields == {option for info in FORMATS.values() for option in info.options}


def test_trt_is_tensorrt_and_rtx_its_flavor() -> None:
    assert exporters.resolve("trt") == exporters.resolve("tensorrt") == "tensorrt"
    assert exporters.resolve("trt", "rtx") == "tensorrt-rtx"
    with pytest.raises(UsageError, match="tensorrt has no flavor 'lean'"):
        exporters.resolve("trt", "lean")
    with pytest.raises(UsageError, match="onnx has no flavor 'rtx'") as caught:
        exporters.resolve("onnx", "rtx")
    assert "--to tensorrt --flavor rtx" in str(caught.value)
    with pytest.raises(UnknownName, match="no export format called 'tflite'"):
        exporters.resolve("tflite")


def test_options_come_back_from_what_was_written_down() -> None:
    options = BuildOptions(workspace=1 << 20, tactic_sources=("jit-convolutions",), version_compatible=True)
    assert BuildOptions.of(options.given()) == options
