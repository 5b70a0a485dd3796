"""`accel compare`: what a user's CI calls."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel.bench.results import append_rows, row

Cli = Callable[..., Any]
HERE = {"model": "tiny", "device": "cpu", "cpu_model": "Some CPU", "input_sha256": "aa", "batch": 1, "latency_kind": "host_us", "flags": []}


def write(path: Path, variants: dict[str, list[float]], **changes: Any) -> Path:
    for variant, medians in variants.items():
        given = {**HERE, "set_id": path.stem, "variant": variant, "precision": variant[-4:], "verdict": "OK", "top1": 95.0, **changes}
        append_rows(path, [row(**{**given, "round": number, "p50_us": p50}) for number, p50 in enumerate(medians)])
    return path


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write(tmp_path / "before.jsonl", {"eager:fp32": [100, 101, 100], "ort:fp32": [50, 50.2, 50]})


def test_inside_a_set_the_baseline_is_eager_fp32(accel_cli: Cli, before: Path) -> None:
    write(before, {"ort:fp16": [100, 101.1, 100.1]})
    ran = accel_cli("compare", before, "--format", "json")
    assert ran.code == 0, ran.err
    first, second = json.loads(ran.out)
    assert (first["variant"], first["against"], first["precisions"], first["verdict"]) == ("ort:fp32", "eager:fp32", "fp32", "FASTER")
    assert (first["ratio"], first["p50_us"], first["against_p50_us"]) == (pytest.approx(0.499, abs=1e-3), 50, 100)
    # Ratios across precisions come last and say so.
    assert (second["variant"], second["precisions"], second["verdict"]) == ("ort:fp16", "fp32 → fp16", "SAME")


def test_another_baseline_and_one_that_is_not_there(accel_cli: Cli, before: Path) -> None:
    assert json.loads(accel_cli("compare", before, "--baseline", "ort:fp32", "--format", "json").out)[0]["verdict"] == "SLOWER"
    ran = accel_cli("compare", before, "--baseline", "trt:fp16")
    assert (ran.code, ran.out) == (2, "")
    assert "--baseline with one of: eager:fp32, ort:fp32" in ran.err


def test_two_files_compare_like_with_like_and_say_what_is_missing(accel_cli: Cli, before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after.jsonl", {"eager:fp32": [100, 101.1, 100.1], "trt:fp32": [10, 10, 10]})
    ran = accel_cli("compare", before, after, "--format", "csv")
    (found,) = csv.DictReader(io.StringIO(ran.out))
    assert (found["variant"], found["verdict"], found["rounds"], found["set_id"]) == ("eager:fp32", "SAME", "3", "after")
    assert f"in {before} and not in {after}: ort:fp32 of tiny" in ran.err
    assert f"in {after} and not in {before}: trt:fp32 of tiny" in ran.err
    assert ran.code == 0


class TestTwoModels:
    """Their variants are paired where both were timed in one session, and nowhere else."""

    def folder(self, path: Path, model: str, variants: dict[str, list[float]], session: str | None, **changes: Any) -> Path:
        path.mkdir()
        write(path / "results.jsonl", variants, model=model, set_id=path.name, **changes)
        (path / "set.json").write_text(json.dumps({"set_id": path.name, "session": session}))
        return path

    @pytest.fixture
    def teacher(self, tmp_path: Path) -> Path:
        return self.folder(tmp_path / "teacher", "resnet", {"eager:fp32": [100, 101, 100], "ort:fp32": [50, 50.2]}, "s")

    def test_of_one_session_are_held_against_each_other(self, accel_cli: Cli, teacher: Path, tmp_path: Path) -> None:
        variants = {"eager:fp32": [40, 40.4, 40], "ort:fp32": [20, 20.1, 20], "trt:fp16": [5, 5, 5]}
        student = self.folder(tmp_path / "student", "tiny", variants, "s")
        ran = accel_cli("compare", teacher, student, "--format", "json")
        assert ran.code == 0, ran.err
        first, second = json.loads(ran.out)
        assert (first["model"], first["variant"], first["against"]) == ("tiny", "eager:fp32", "eager:fp32 of resnet")
        assert (first["ratio"], first["verdict"], first["rounds"]) == (pytest.approx(0.4), "FASTER", 3)
        assert (second["against"], second["rounds"]) == ("ort:fp32 of resnet", 2)
        assert "timed side by side, in one session" in ran.err
        assert "not measured together" not in ran.err
        assert f"in {student} and not in {teacher}: trt:fp16 of tiny" in ran.err
        assert "ort:fp32 against ort:fp32 of resnet: 2 rounds are paired, 1 have no partner" in ran.err

    @pytest.mark.parametrize("session", ["another", None])
    def test_of_two_sessions_are_refused_with_the_command_that_times_them(
        self, accel_cli: Cli, teacher: Path, tmp_path: Path, session: str | None
    ) -> None:
        student = self.folder(tmp_path / "student", "tiny", {"eager:fp32": [40, 40.4, 40]}, session)
        ran = accel_cli("compare", teacher, student)
        assert (ran.code, ran.out) == (2, "")
        assert "is of resnet and" in ran.err
        assert "not timed side by side" in ran.err
        assert "accel bench resnet tiny" in ran.err

    def test_a_limit_is_not_passed_by_a_variant_that_failed(self, accel_cli: Cli, teacher: Path, tmp_path: Path) -> None:
        student = self.folder(tmp_path / "student", "tiny", {"eager:fp32": [40, 40.4, 40]}, "s")
        write(student / "results.jsonl", {"ort:fp32": [20, 20]}, model="tiny", set_id="student", verdict="INVALID", reason="wrong answers")
        ran = accel_cli("compare", teacher, student, "--fail-if", "p50>+5%")
        assert ran.code == 3
        assert "ort:fp32 of tiny: has no good runs" in ran.err


def test_a_crossed_limit_is_exit_3_and_says_who_and_how_much(accel_cli: Cli, before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after.jsonl", {"eager:fp32": [107, 108.07, 107], "ort:fp32": [50, 50.2, 50]})
    ran = accel_cli("compare", before, after, "--fail-if", "p50>+5%", "--fail-if", "p50>500us", "--fail-if", "top1<-0.1")
    assert ran.code == 3
    assert "1 limit was crossed\n  eager:fp32: p50 +7 %, allowed is at most +5 %" in ran.err
    assert "SLOWER" in ran.out
    assert accel_cli("compare", before, after, "--fail-if", "p50>+8%").code == 0


def test_a_malformed_limit_is_exit_2_and_shows_the_grammar(accel_cli: Cli, before: Path) -> None:
    ran = accel_cli("compare", before, "--fail-if", "p50>fast")
    assert (ran.code, ran.out) == (2, "")
    assert "METRIC OP LIMIT" in ran.err
    assert "Traceback" not in ran.err


def test_an_invalid_variant_never_enters_and_passes_no_limit(accel_cli: Cli, before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after.jsonl", {"eager:fp32": [100, 101, 100]})
    write(after, {"ort:fp32": [5, 5, 5]}, verdict="INVALID", reason="top-1 fell by 3 points")
    ran = accel_cli("compare", before, after, "--format", "json")
    assert [found["variant"] for found in json.loads(ran.out)] == ["eager:fp32"]
    assert f"ort:fp32 of tiny is left out of {after}: INVALID: top-1 fell by 3 points" in ran.err
    assert ran.code == 0
    ran = accel_cli("compare", before, after, "--fail-if", "p50>+5%")
    assert ran.code == 3
    assert "ort:fp32 of tiny: has no good runs" in ran.err


def test_nothing_in_common_is_an_error_with_the_reasons(accel_cli: Cli, before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after.jsonl", {"eager:fp32": [1], "ort:fp32": [1]}, verdict="UNVERIFIED")
    ran = accel_cli("compare", before, after)
    assert (ran.code, ran.out) == (2, "")
    assert "no variant in common" in ran.err
    assert "UNVERIFIED" in ran.err


def test_another_machine_is_refused_and_named_when_asked_for(accel_cli: Cli, before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after.jsonl", {"eager:fp32": [80, 81, 80]}, cpu_model="Other CPU")
    ran = accel_cli("compare", before, after)
    assert (ran.code, ran.out) == (2, "")
    assert "cpu_model: Some CPU | Other CPU" in ran.err
    ran = accel_cli("compare", before, after, "--across-machines", "--format", "json")
    assert ran.code == 0
    assert json.loads(ran.out)[0]["differs"] == ["cpu_model: Some CPU | Other CPU"]
    assert "accel: differs: cpu_model: Some CPU | Other CPU" in ran.err


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("driver", "590", "driver: not known | 590"),
        ("input_sha256", "bb", "input_sha256: aa | bb"),
        ("device", "cuda:0", "device: cpu | cuda"),
    ],
)
def test_other_drivers_inputs_and_devices_are_refused_too_and_no_gate_passes_by_it(
    accel_cli: Cli, before: Path, tmp_path: Path, column: str, value: str, said: str
) -> None:
    after = write(tmp_path / "after.jsonl", {"eager:fp32": [200, 201, 200]}, **{column: value})
    ran = accel_cli("compare", before, after, "--fail-if", "p50>+5%")
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "--across-machines" in ran.err
    ran = accel_cli("compare", before, after, "--fail-if", "p50>+5%", "--across-machines")
    assert ran.code == 3
    assert f"accel: differs: {said}" in ran.err


def test_inside_one_file_what_was_measured_elsewhere_is_refused_too(accel_cli: Cli, before: Path) -> None:
    write(before, {"trt:fp32": [10, 10, 10]}, cpu_model="Other CPU")
    ran = accel_cli("compare", before)
    assert (ran.code, ran.out) == (2, "")
    assert "cpu_model: Some CPU | Other CPU" in ran.err


def test_rounds_without_a_partner_are_said(accel_cli: Cli, before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after.jsonl", {"eager:fp32": [100, 101]})
    ran = accel_cli("compare", before, after, "--format", "json")
    assert json.loads(ran.out)[0]["rounds"] == 2
    assert "eager:fp32 against eager:fp32: 2 rounds are paired, 1 have no partner" in ran.err


def test_the_floor_comes_from_aa_rounds_or_the_record_or_the_default(accel_cli: Cli, before: Path, tmp_path: Path) -> None:
    def floor(path: Path, *more: Any) -> float:
        return float(json.loads(accel_cli("compare", path, "--format", "json", *more).out)[0]["floor_pct"])

    assert floor(before) == pytest.approx(1.138, abs=1e-3)
    noisy = write(tmp_path / "aa.jsonl", {"eager:fp32": [100, 110] * 10})
    assert floor(before, "--aa", noisy) == pytest.approx(10)  # once in four, three rounds have the same sign
    recorded = write(tmp_path / "recorded.jsonl", {"eager:fp32": [100, 101], "ort:fp32": [50, 50]}, aa_floor_pct=2.5)
    assert floor(recorded) == pytest.approx(2.5)
    ran = accel_cli("compare", before, "--aa", before)
    assert ran.code == 2
    assert "at least 10 pairs" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.jsonl",), "nowhere.jsonl is not there"),
        (("before.jsonl", "--kind", "p50"), "no latency kind called 'p50'"),
        (("before.jsonl", "before.jsonl", "--baseline", "eager:fp32"), "a baseline was named for two files"),
        (("before.jsonl", "--kind", "device_us"), "device_us was not measured"),
    ],
)
def test_bad_requests_are_exit_2(
    accel_cli: Cli, before: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(before.parent)
    ran = accel_cli("compare", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
