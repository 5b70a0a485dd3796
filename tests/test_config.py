"""The settings: flags > ACCEL_* > file > defaults, and errors that name the key and the line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from accel import config
from accel.config.schema import SCHEMA
from accel.errors import ConfigError


def write(folder: Path, text: str, name: str = "accel.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def resolved(folder: Path, flags: dict[str, object] | None = None, **environ: str) -> config.Settings:
    return config.resolve(flags, environ=environ, folder=folder)


def test_without_anything_every_value_is_a_default(tmp_path: Path) -> None:
    settings = resolved(tmp_path)
    assert settings["device"] == "auto"
    assert settings["engines_dir"] == "engines"
    assert {settings.source(key) for key in settings} == {"default"}


def test_each_level_outranks_the_one_below(tmp_path: Path) -> None:
    write(tmp_path, "[bench]\niterations = 30\nrounds = 4\nwarmup = 5\n")
    settings = resolved(tmp_path, {"bench.iterations": 10, "bench.rounds": None}, ACCEL_BENCH_ITERATIONS="20", ACCEL_BENCH_ROUNDS="2")
    assert (settings["bench.iterations"], settings.source("bench.iterations")) == (10, "flag")
    assert (settings["bench.rounds"], settings.source("bench.rounds")) == (2, "ACCEL_BENCH_ROUNDS")
    assert (settings["bench.warmup"], settings.source("bench.warmup")) == (5, "accel.toml:4")
    assert settings["bench.threads"] is None


def test_the_file_is_searched_upward(tmp_path: Path) -> None:
    write(tmp_path, 'device = "cpu"\n')
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert resolved(deep)["device"] == "cpu"


def test_a_pyproject_counts_only_with_our_table(tmp_path: Path) -> None:
    write(tmp_path, 'device = "cpu"\n')
    inner = tmp_path / "project"
    inner.mkdir()
    write(inner, "[tool.ruff]\n", "pyproject.toml")
    assert resolved(inner)["device"] == "cpu"
    write(inner, '[tool.accel]\ndevice = "cuda:1"\n[tool.accel.bench]\nrounds = 7\n', "pyproject.toml")
    settings = resolved(inner)
    assert settings["device"] == "cuda:1"
    assert settings.source("bench.rounds") == "pyproject.toml:4"


def test_paths_of_a_file_are_relative_to_it_and_command_names_stay(tmp_path: Path) -> None:
    write(tmp_path, 'engines_dir = "out"\n[bench.python]\ntensorrt = "envs/trt/bin/python"\neager = "python3.12"\n')
    inner = tmp_path / "inner"
    inner.mkdir()
    settings = resolved(inner)
    assert settings["engines_dir"] == str(tmp_path / "out")
    assert settings.table("bench.python") == {"tensorrt": str(tmp_path / "envs/trt/bin/python"), "eager": "python3.12"}


def test_an_interpreter_can_be_named_in_the_environment(tmp_path: Path) -> None:
    settings = resolved(tmp_path, ACCEL_BENCH_PYTHON_TENSORRT="/opt/py310/bin/python")
    assert settings.table("bench.python") == {"tensorrt": "/opt/py310/bin/python"}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("# settings\n\n[bench]\niteratons = 5\n", 4, "did you mean bench.iterations?"),
        ("iterations = 5\n", 1, "did you mean bench.iterations?"),
        ('[bench]\nrounds = 3\niterations = "many"\n', 3, "must be an integer or auto, not 'many'"),
        ("bench.iterations = true\n", 1, "must be an integer or auto, not True"),
        ("[bench]\n\niterations = 0\n", 3, "must be at least 1, not 0"),
        ('bench = { rounds = "x" }\n', 1, "must be an integer, not 'x'"),
        ("nonsense = 1\n", 1, "accel config lists every setting"),
        ("[train]\nlr = '0.1'\n", 2, "must be a number, not '0.1'"),
    ],
)
def test_a_mistake_in_the_file_names_the_key_and_the_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path)
    assert f"{path}, line {line}: " in caught.value.message
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_no_toml_names_the_line(tmp_path: Path) -> None:
    write(tmp_path, "device = \n")
    with pytest.raises(ConfigError, match="line 1"):
        resolved(tmp_path)


def test_a_table_of_ours_that_is_no_table_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "[tool]\naccel = 3\n", "pyproject.toml")
    with pytest.raises(ConfigError, match=r"line 2: tool\.accel must be a table, not 3"):
        resolved(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCEL_BENCH_ITERATIONS", "lots", "ACCEL_BENCH_ITERATIONS must be an integer or auto, not 'lots'"),
        ("ACCEL_OFFLINE", "maybe", "ACCEL_OFFLINE must be true or false, not 'maybe'"),
        ("ACCEL_VERIFY_MAX_DROP", "nan", "ACCEL_VERIFY_MAX_DROP must be a number, not nan"),
        ("ACCEL_BENCH_ITERATION", "5", "did you mean ACCEL_BENCH_ITERATIONS?"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path, name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path, **{name: value})
    assert said in str(caught.value)


def test_iterations_may_be_auto_wherever_they_are_set(tmp_path: Path) -> None:
    assert resolved(tmp_path, ACCEL_BENCH_ITERATIONS="auto")["bench.iterations"] == "auto"
    write(tmp_path, '[bench]\niterations = "auto"\nmax_rounds = 7\n')
    assert (resolved(tmp_path)["bench.iterations"], resolved(tmp_path)["bench.max_rounds"]) == ("auto", 7)
    assert resolved(tmp_path, {"bench.iterations": 600})["bench.iterations"] == 600


def test_variables_of_other_programs_are_none_of_ours(tmp_path: Path) -> None:
    assert resolved(tmp_path, ACCEL_SOMEBODY_ELSE="1", ACCEL_DEBUG="1")["device"] == "auto"


def test_booleans_are_read_as_people_write_them(tmp_path: Path) -> None:
    assert [resolved(tmp_path, ACCEL_OFFLINE=text)["offline"] for text in ("1", "TRUE", "no", "0", "")] == [True, True, False, False, False]


def test_an_unknown_flag_is_our_own_mistake_and_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no setting 'bench\.iteration'"):
        resolved(tmp_path, {"bench.iteration": 3})


def test_settings_are_saved_with_their_sources(tmp_path: Path) -> None:
    path = resolved(tmp_path, {"bench.rounds": 1}).save(tmp_path / "run")
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["bench.rounds"] == {"value": 1, "source": "flag"}
    assert list(saved)[: len(SCHEMA)] == [setting.key for setting in SCHEMA]


def test_settings_of_a_file_reach_what_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", "/before")
    monkeypatch.setenv("ACCEL_OFFLINE", "0")  # so that it is not there afterwards: what was never there is not taken away
    monkeypatch.delenv("ACCEL_OFFLINE")
    write(tmp_path, 'cache_dir = "cache"\noffline = true\n')
    config.apply_environment(resolved(tmp_path))
    assert os.environ["ACCEL_CACHE_DIR"] == str(tmp_path / "cache")
    assert os.environ["ACCEL_OFFLINE"] == "1"


def test_every_setting_has_help_and_a_default_of_its_kind() -> None:
    for setting in SCHEMA:
        assert setting.help
        if setting.default is not None:
            assert setting.check(setting.default, setting.key) == setting.default
