"""The final table: who is kept, dropped or refined, what is not measured, and which training belongs to which engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from report_sets import section, write_set

from accel.errors import CorruptArtifact, UsageError
from accel.report import final, final_table, trained
from accel.report.final import BASE, DROP, KEEP, REFINE, Row
from accel.report.sections import Section, open_sections

Cli = Callable[..., Any]

LIGHT: dict[str, dict[str, Any]] = {
    "eager:fp32": {"host_us": 1000},
    "eager:fp16": {"host_us": 800},
    "compile:fp16": {"host_us": 200},
    "eager:fp32+channels_last": {"host_us": 1005},
}


def of(model: str, variants: dict[str, dict[str, Any]], **common: Any) -> dict[str, dict[str, Any]]:
    return {name: {"model": model, **values, **common} for name, values in variants.items()}


def training(folder: Path, model: str = "mobilenetv3_small", *, run: dict[str, Any] | None = None, **recipe: Any) -> Path:
    """A folder as `accel train` leaves it, without weights."""
    values = {"model": model, "epochs": 200, "lr": 0.4, "split": "full", "seed": 0, "train_fraction": 1.0, "teacher": "", **recipe}
    facts: dict[str, Any] = {"top1": 93.14, "val_top1": None, "train_s": 117.08, "device": "NVIDIA H200", "peak_mib": 5120}
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    (folder / "run.json").write_text(json.dumps({**facts, **(run or {})}))
    return folder


def by_label(rows: list[Row]) -> dict[tuple[str, str], Row]:
    return {(row.role.label, row.role.model): row for row in rows}


def decided(tmp_path: Path, **changes: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Label → decision and reason of the light model's rows, with some variants changed (None: left out)."""
    variants = {name: {**values, **changes.get(name, {})} for name, values in LIGHT.items() if changes.get(name, {}) is not None}
    rows = final.rows([section(tmp_path / "light", of("mobilenetv3_small", variants))], [])
    return {row.role.label: (row.decision, row.why) for row in rows if row.role.model == "mobilenetv3_small"}


def test_an_engine_is_kept_only_if_it_is_faster_than_its_parent(tmp_path: Path) -> None:
    assert decided(tmp_path) == {
        "B1": (BASE, ""),
        "O1": (KEEP, "FASTER than eager:fp32"),
        "O2": (KEEP, "FASTER than eager:fp16"),
        "O3": (DROP, "the SAME as eager:fp32"),
        "best": (KEEP, "FASTER than eager:fp32"),
    }


def test_a_slower_one_is_dropped(tmp_path: Path) -> None:
    found = decided(tmp_path, **{"eager:fp16": {"host_us": 1100}})
    assert found["O1"] == (DROP, "SLOWER than eager:fp32")


def test_a_failed_gate_drops_and_a_void_measurement_does_not(tmp_path: Path) -> None:
    failed = {"verdict": "INVALID", "reason": "12 % of predictions changed", "refusals": ["CORRECTNESS"]}
    found = decided(tmp_path, **{"eager:fp16": failed})
    assert found["O1"] == (DROP, "its gate failed: 12 % of predictions changed")
    # Its child cannot be held against it.
    assert found["O2"] == (REFINE, "not compared: eager:fp16 is INVALID in this set")
    void = {"verdict": "INVALID", "reason": "another process was on the GPU", "refusals": ["OTHER_PROCESS"]}
    assert decided(tmp_path, **{"eager:fp16": void})["O1"] == (REFINE, "the measurement is void: another process was on the GPU")


def test_what_was_not_measured_is_to_be_refined_and_shows_no_number(tmp_path: Path) -> None:
    absent = {"host_us": None, "verdict": "MISSING", "reason": "no compiler"}
    variants = {name: dict(values) for name, values in LIGHT.items() if name != "eager:fp32+channels_last"}
    variants["compile:fp16"] = {key: value for key, value in absent.items() if value is not None}
    rows = by_label(final.rows([section(tmp_path / "light", of("mobilenetv3_small", variants))], []))
    assert (rows["O2", "mobilenetv3_small"].decision, rows["O2", "mobilenetv3_small"].why) == (REFINE, "not measured: MISSING in light")
    assert rows["O3", "mobilenetv3_small"].why == "not measured: no set has it"
    assert rows["B2", "resnet18"].decision == BASE
    assert rows["best", "alexnet"].line is None
    text = final_table.body([], [])
    assert (
        "| O3 | B1 + channels\\_last | `mobilenetv3_small` | `eager:fp32+channels_last` |"
        + " not measured |" * 7
        + " refine |"
        + " not on record |" * 4
        + " none |"
        in text
    )


def test_one_round_decides_nothing(tmp_path: Path) -> None:
    (row,) = [
        row
        for row in final.rows([section(tmp_path / "light", of("mobilenetv3_small", LIGHT), rounds=1)], [])
        if (row.role.label, row.role.model) == ("O2", "mobilenetv3_small")
    ]
    assert (row.decision, row.why) == (REFINE, "AMBIGUOUS against eager:fp16")


def test_a_rows_parent_is_of_its_own_set(tmp_path: Path) -> None:
    whole = section(tmp_path / "light-h200", of("mobilenetv3_small", {"eager:fp32": {"host_us": 1000}}))
    # Another machine: its engine has a parent nowhere but in the first set.
    alone = section(tmp_path / "light-h100", of("mobilenetv3_small", {"eager:fp16": {"host_us": 10}}, gpu_name="NVIDIA H100"))
    row = by_label(final.rows([whole, alone], []))["O1", "mobilenetv3_small"]
    assert (row.section, row.decision, row.why) == (alone, REFINE, "not compared: this set has no eager:fp32")


class TestAStudentBesideItsTeacher:
    """D1 is held against the teacher's FP32 where one session has both."""

    def session(self, tmp_path: Path, model: str, variants: dict[str, dict[str, Any]], named: str | None, **more: Any) -> Section:
        folder = write_set(tmp_path / model, of(model, variants, **more))
        (folder / "set.json").write_text(json.dumps({"set_id": folder.name, "session": named}))
        return open_sections([folder])[0]

    def d1(self, *sections: Section) -> Row:
        return by_label(final.rows(list(sections), []))["D1", "student_a"]

    STUDENT: ClassVar = {"eager:fp32": {"host_us": 300}, "eager:fp16": {"host_us": 400}}
    TEACHER: ClassVar = {"eager:fp32": {"host_us": 1000}}

    def test_it_is_kept_if_it_is_faster_than_the_teacher(self, tmp_path: Path) -> None:
        sections = [self.session(tmp_path, "student_a", self.STUDENT, "s"), self.session(tmp_path, "resnet18", self.TEACHER, "s")]
        row = self.d1(*sections)
        assert (row.decision, row.why, row.parent) == (KEEP, "FASTER than eager:fp32 of resnet18", "eager:fp32 of resnet18")
        assert row.judged is not None
        assert row.judged.estimate.ratio == pytest.approx(0.4)
        (line,) = [
            line for line in final_table.body(sections, []).splitlines() if line.startswith("| D1 | distilled student, FP16 | `student_a`")
        ]
        assert "| FASTER: 0.400 (0.400 to 0.400) of `eager:fp32` of `resnet18` | keep |" in line

    def test_means_of_one_session_are_not_said_to_be_of_several(self, tmp_path: Path) -> None:
        fast = {"eager:fp32": {"host_us": 300}, "compile:fp16": {"host_us": 100}}
        for named, said in (("s", False), ("another", True)):
            sections = [
                self.session(tmp_path / named, "student_a", fast, "s", top1=92.0),
                self.session(tmp_path / named, "resnet18", {**fast, "compile:fp16": {"host_us": 200}}, named, top1=95.0),
            ]
            line = final_table.body(sections, []).splitlines()[2]
            assert "for a higher top-1" in line
            assert ("different sessions" in line) == said

    @pytest.mark.parametrize("named", ["another", None])
    def test_of_another_session_it_is_held_against_itself(self, tmp_path: Path, named: str | None) -> None:
        row = self.d1(self.session(tmp_path, "student_a", self.STUDENT, named), self.session(tmp_path, "resnet18", self.TEACHER, "s"))
        assert (row.decision, row.why) == (DROP, "SLOWER than eager:fp32")
        alone = self.session(tmp_path / "x", "student_a", self.STUDENT, None), self.session(tmp_path / "x", "resnet18", self.TEACHER, None)
        assert self.d1(*alone).parent == "eager:fp32"

    def test_a_teacher_whose_measurement_is_void_or_of_other_inputs_is_none(self, tmp_path: Path) -> None:
        student = self.session(tmp_path, "student_a", self.STUDENT, "s")
        for number, changes in enumerate(({"verdict": "INVALID", "reason": "flips"}, {"input_sha256": "cd"})):
            void = self.session(tmp_path / str(number), "resnet18", {"eager:fp32": {"host_us": 1000, **changes}}, "s")
            assert self.d1(student, void).parent == "eager:fp32"

    def test_the_set_beside_the_teacher_is_shown_before_one_with_more_rounds(self, tmp_path: Path) -> None:
        beside = self.session(tmp_path / "beside", "student_a", self.STUDENT, "s")
        more = section(tmp_path / "more", of("student_a", self.STUDENT), rounds=5)
        teacher = self.session(tmp_path, "resnet18", self.TEACHER, "s")
        assert self.d1(more, beside, teacher).section is beside


class TestOfSeveralSets:
    """Which one a row is from; the numbers say which set: 1, 2, …"""

    def sets(self, tmp_path: Path, *given: dict[str, Any], model: str = "mobilenetv3_small") -> list[Section]:
        found = []
        for number, changes in enumerate(given, 1):
            rounds, variants = changes.pop("rounds", 3), changes.pop("variants", LIGHT)
            named = of(model, variants, timestamp_utc=f"2026-11-0{number}T00:00:00Z", **changes)
            found.append(section(tmp_path / str(number), named, rounds=rounds))
        return found

    def shown(self, sections: list[Section], label: str) -> tuple[str, str | None]:
        """Name of the set and variant of the one row that `label` has."""
        (row,) = [row for row in final.rows(sections, []) if row.role.label == label and row.role.model == sections[0].model]
        assert row.section is not None
        return row.section.name, row.variant

    def test_the_newest_of_equals(self, tmp_path: Path) -> None:
        assert self.shown(self.sets(tmp_path, {}, {}), "O1") == ("2", "eager:fp16")

    def test_one_without_doubts_before_a_newer_one(self, tmp_path: Path) -> None:
        assert self.shown(self.sets(tmp_path, {}, {"flags": ["UNSTABLE"]}), "O1")[0] == "1"
        assert self.shown(self.sets(tmp_path / "noisy", {}, {"flags": ["NOISY"]}), "best")[0] == "1"

    def test_more_rounds_before_one_without_doubts(self, tmp_path: Path) -> None:
        assert self.shown(self.sets(tmp_path, {"flags": ["UNSTABLE"]}, {"rounds": 2}), "O1")[0] == "1"

    def test_one_that_has_all_of_the_models_rows_before_one_with_more_rounds(self, tmp_path: Path) -> None:
        few = {name: LIGHT[name] for name in ("eager:fp32", "eager:fp16")}
        sections = self.sets(tmp_path, {"rounds": 2}, {"variants": few})
        assert {self.shown(sections, label)[0] for label in ("B1", "O1", "O2", "O3")} == {"1"}

    def test_the_fastest_engine_is_one_that_is_kept_and_its_set_is_not_the_one_with_the_smallest_mean(self, tmp_path: Path) -> None:
        def timed(fp16: float, variant: str = "compile:fp16", **more: Any) -> dict[str, Any]:
            return {"variants": {"eager:fp32": {"host_us": 1000}, variant: {"host_us": fp16}}, **more}

        # Set 3's engine is the fastest, and one round keeps nothing; of the other engine's sets the older has the smaller mean.
        given = [timed(190), timed(200), timed(100, "tensorrt:fp16", rounds=1), timed(300, "onnxruntime:fp16")]
        sections = self.sets(tmp_path, *given, model="alexnet")
        assert self.shown(sections, "best") == ("2", "compile:fp16")
        # Where none is kept, it is the smallest mean of all.
        assert self.shown([sections[2]], "best") == ("3", "tensorrt:fp16")

    def test_the_table_numbers_what_it_shows_and_names_the_others(self, tmp_path: Path) -> None:
        sections = self.sets(tmp_path, {}, {}, {"rounds": 1})
        lines = final_table.body(sections, []).splitlines()
        assert [line.partition(";")[0] for line in lines if line.startswith("* [")] == ["* [1] `2`"]
        (further,) = [line for line in lines if line.startswith("* no row is from")]
        assert further.startswith("* no row is from: `1`, `3`. Where several sets have a row's engine, one is shown:")
        assert "no row is from" not in final_table.body(sections[:1], [])


def test_the_chosen_are_kept_and_no_other_is_both_faster_and_as_right(tmp_path: Path) -> None:
    def timed(name: str, model: str, fp16: float, top1: float, **more: Any) -> Any:
        variants: dict[str, dict[str, Any]] = {"eager:fp32": {"host_us": 1000}, "compile:fp16": {"host_us": fp16, **more}}
        return section(tmp_path / name, of(model, variants, top1=top1))

    sections = [
        timed("slow-and-right", "resnet18", 300, 95.7),
        timed("between", "mobilenetv2", 200, 94.0),
        timed("beaten", "alexnet", 250, 93.9),
        timed("fast", "student_a", 100, 92.0),
        timed("failed", "student_b", 10, 94.9, verdict="INVALID", reason="flips", refusals=["CORRECTNESS"]),
        timed("ambiguous", "naivenet", 990, 99.0, flags=["UNSTABLE"]),
    ]
    rows = final.rows(sections, [])
    assert [(row.role.model, row.section.name if row.section else None) for row in final.candidates(rows)] == [
        ("student_a", "fast"),
        ("mobilenetv2", "between"),
        ("resnet18", "slow-and-right"),
    ]
    said = final_table.body(sections, []).splitlines()[2]
    assert said.startswith(
        "chosen, the smallest mean of all that are kept: best (`student_a` `compile:fp16`), 101.0 µs, top-1 92.00 %; for a"
    )
    assert said.endswith("no ratio is taken.")
    assert final_table.body([], []).splitlines()[2] == "chosen: none, because none is kept."
    assert final_table.body(sections[3:4], []).splitlines()[2].endswith("top-1 92.00 %.")


def test_a_model_that_was_not_timed_and_has_two_trainings_says_that_there_are_several(tmp_path: Path) -> None:
    for device in ("NVIDIA H100", "NVIDIA H200"):
        training(tmp_path / "runs" / device, "alexnet", run={"device": device})
    training(tmp_path / "runs" / "one", "naivenet")
    trainings = trained.find([tmp_path / "runs"])
    rows = by_label(final.rows([], trainings))
    assert [(rows["best", name].several, rows["best", name].training is None) for name in ("alexnet", "naivenet", "student_c")] == [
        (True, True),
        (False, False),
        (False, True),
    ]
    (line,) = [line for line in final_table.body([], trainings).splitlines() if line.startswith("| best | fastest engine | `alexnet`")]
    assert line.endswith("| refine |" + " several, below |" * 4 + " none |")


def test_the_winner_is_judged_as_the_reports_sentence_judges_it(tmp_path: Path) -> None:
    found = section(tmp_path / "light", of("mobilenetv3_small", {"eager:fp32": {"host_us": 100}, "eager:fp16": {"host_us": 300}}))
    best = by_label(final.rows([found], []))["best", "mobilenetv3_small"]
    assert (best.variant, best.decision, best.why) == ("eager:fp32", BASE, "no engine of this set is faster than eager:fp32")


def test_a_row_names_the_training_of_the_weights_that_were_timed(tmp_path: Path) -> None:
    for seed, name in ((0, "aa"), (1, "bb")):
        training(tmp_path / "runs" / f"s{seed}", seed=seed, run={"exported_sha256": name, "train_s": 100.0 + seed})
    trainings = trained.find([tmp_path / "runs"])
    timed = section(tmp_path / "light", of("mobilenetv3_small", LIGHT, weights_sha256="bb"))
    rows = by_label(final.rows([timed], trainings))
    assert rows["O1", "mobilenetv3_small"].training == trainings[1]
    unknown = section(tmp_path / "other", of("mobilenetv3_small", LIGHT, weights_sha256="cc"))
    assert by_label(final.rows([unknown], trainings))["O1", "mobilenetv3_small"].training is None
    # Nothing was timed: the model's training with seed 0.
    assert by_label(final.rows([], trainings))["O1", "mobilenetv3_small"].training == trainings[0]


def test_where_nobody_recorded_the_memory_of_a_training_another_seeds_is_shown_and_named(tmp_path: Path) -> None:
    def cell() -> str:
        told = final_table.body([timed], trained.find([tmp_path / "runs"])).splitlines()
        (line,) = [line for line in told if line.startswith("| O1 ")]
        return line.split(" | ")[-3]

    training(tmp_path / "runs" / "s0", run={"exported_sha256": "aa", "peak_mib": None})
    # Of another kind of GPU, of another share of the images and of another recipe: three that say nothing of it.
    training(tmp_path / "runs" / "h100", seed=1, run={"device": "NVIDIA H100"})
    training(tmp_path / "runs" / "half", train_fraction=0.5)
    training(tmp_path / "runs" / "longer", epochs=300)
    timed = section(tmp_path / "light", of("mobilenetv3_small", LIGHT, weights_sha256="aa"))
    assert cell() == "not on record"
    training(tmp_path / "runs" / "s3", seed=3, run={"peak_mib": 2003})
    training(tmp_path / "runs" / "s2", seed=2, run={"peak_mib": 2002})
    assert cell() == "2,002 (seed 2)"


def test_the_tables_say_what_was_measured(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed, top1 in ((0, 93.0), (1, 93.2), (2, 93.1)):
        training(runs / f"s{seed}", seed=seed, run={"top1": top1, "exported_sha256": f"{seed}{seed}", "train_s": 100.0 + seed})
    training(runs / "tune", split="45k/5k", run={"top1": None, "val_top1": 92.5})
    # By another recipe: no value for this line.
    training(runs / "tune-lr", split="45k/5k", lr=0.1, run={"top1": None, "val_top1": 99.0})
    training(runs / "tenth", "resnet18", epochs=80, train_fraction=0.1, run={"top1": 61.5, "train_s": 9.6})
    training(runs / "whole", "resnet18", epochs=80, run={"top1": 95.7, "train_s": 66.1})
    training(runs / "elsewhere", "resnet18", epochs=80, train_fraction=0.5, run={"top1": 91.0, "train_s": 40.0, "device": "NVIDIA H100"})
    training(runs / "trial", limit=512, run={"top1": 12.0})
    noisy = {**LIGHT, "eager:fp16": {"host_us": 800, "flags": ["NOISY"]}}
    timed = section(tmp_path / "light-h200", of("mobilenetv3_small", noisy, weights_sha256="00"))
    lines = final_table.body([timed], trained.find([runs])).splitlines()
    assert lines[0] == (
        "keep: O1 (`mobilenetv3_small` `eager:fp16`), O2 (`mobilenetv3_small` `compile:fp16`), best (`mobilenetv3_small` `compile:fp16`); "
        "drop: O3 (`mobilenetv3_small` `eager:fp32+channels_last`); to refine: 12 of 18 rows."
    )
    assert (
        "| O1 | B1 + FP16 | `mobilenetv3_small` | `eager:fp16` | 95.20 | 808.0 | 841.9 | 1.020 (3) NOISY | 44.7 | passed | "
        "FASTER: 0.800 (0.800 to 0.800) of `eager:fp32` | keep | 100 | NVIDIA H200 | 5,120 | 200 | [1] |" in lines
    )
    assert "* drop, the SAME as eager:fp32: O3 (`mobilenetv3_small` `eager:fp32+channels_last`) [1]" in lines
    assert "| `mobilenetv3_small` | 200 | 93.00 | 93.10 ± 0.10 (3) | 92.50 | 100, 101, 102 | 5,120 | NVIDIA H200 | – |" in lines
    assert "| `resnet18` | NVIDIA H200 | 80 | 61.50 %, 0.4 M, 10 s | not measured | not measured | 95.70 %, 4 M, 66 s |" in lines
    assert "| `resnet18` | NVIDIA H100 | 80 | not measured | not measured | 91.00 %, 2 M, 40 s | not measured |" in lines
    assert "| `naivenet` |" + " not measured |" * 6 in lines
    (set_line,) = [line for line in lines if line.startswith("* [1] ")]
    assert set_line.startswith("* [1] `light-h200`; machine NVIDIA H200, driver 580.1")


def test_seeds_of_several_gpus_are_one_line_unless_two_trained_the_same(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed, device in ((2, "NVIDIA H200"), (0, "NVIDIA H100"), (1, "NVIDIA H100")):
        facts = {"top1": 93.0 + seed, "train_s": 100.0 + seed, "device": device, "peak_mib": 2000 + seed}
        training(runs / f"s{seed}", seed=seed, run=facts)

    def lines() -> list[str]:
        told = final_table.body([], trained.find([runs])).splitlines()
        return [line for line in told if line.startswith("| `mobilenetv3_small` | 200")]

    assert lines() == [
        "| `mobilenetv3_small` | 200 | 93.00 | 94.00 ± 1.00 (3) | not measured | 100, 101, 102 | 2,002 | "
        "NVIDIA H100 (seeds 0, 1), NVIDIA H200 (seed 2) | – |"
    ]
    # Another recipe's seeds are not of this mean.
    training(runs / "longer", epochs=300, seed=3, run={"device": "NVIDIA H200"})
    assert len(lines()) == 1
    training(runs / "again", seed=1, run={"top1": 95.0, "device": "NVIDIA H200"})
    apart = {line.split(" | ")[-2]: line.split(" | ")[3] for line in lines()}
    assert apart == {"NVIDIA H100": "93.50 ± 0.71 (2)", "NVIDIA H200": "95.00 ± 0.00 (2)"}


def test_two_trainings_of_one_cell_are_refused_and_copies_of_one_are_not(tmp_path: Path) -> None:
    training(tmp_path / "a" / "run")
    training(tmp_path / "b" / "copy")
    assert len(trained.find([tmp_path / "a", tmp_path / "b" / "copy"])) == 1
    training(tmp_path / "c" / "again", run={"top1": 93.2})
    with pytest.raises(UsageError, match="claim one cell: run and again"):
        final_table.body([], trained.find([tmp_path / "a", tmp_path / "c"]))


def test_a_folder_without_trainings_or_with_a_damaged_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no training"):
        trained.find([tmp_path])
    (training(tmp_path / "run") / "run.json").write_text("{")
    with pytest.raises(CorruptArtifact, match="run cannot be read"):
        trained.find([tmp_path])


class TestTheCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_set(tmp_path / "light", of("mobilenetv3_small", LIGHT))

    def test_makes_the_file_and_later_replaces_what_is_between_its_markers(self, accel_cli: Cli, folder: Path, tmp_path: Path) -> None:
        path, runs = tmp_path / "h200" / "table.md", training(tmp_path / "run").parent
        assert accel_cli("report", folder, "--final", path, "--training", runs / "run").code == 0
        made = path.read_text()
        assert made.startswith("# The final table\n\n<!-- accel:results final-h200 -->\n\nkeep: O1 (`mobilenetv3_small` `eager:fp16`)")
        path.write_text(made + "\nWhy this one.\n")
        assert accel_cli("report", folder, "--final", path, "--training", runs / "run", "--check").code == 0
        ran = accel_cli("report", folder, "--final", path, "--check")
        assert (ran.code, "table.md" in ran.err) == (3, True)
        assert accel_cli("report", folder, "--final", path).code == 0
        assert path.read_text().endswith("\nWhy this one.\n")
        assert "117" not in path.read_text()

    def test_shows_it_in_a_readme_that_has_the_markers(self, accel_cli: Cli, folder: Path, tmp_path: Path) -> None:
        readme, path = tmp_path / "README.md", tmp_path / "h200" / "table.md"
        own = "<!-- accel:results light -->\n<!-- /accel:results -->\n"
        readme.write_text(own)
        assert accel_cli("report", folder, "--update", readme, "--final", path).code == 0
        assert "keep: O1" not in readme.read_text()
        markers = "<!-- accel:results {} -->\nold\n<!-- /accel:results -->\n"
        readme.write_text(own + markers.format("final-h100") + markers.format("final-h200"))
        assert accel_cli("report", folder, "--update", readme, "--final", path).code == 0
        assert readme.read_text().count("keep: O1") == 1
        # That of another machine is another call's.
        assert "<!-- accel:results final-h100 -->\nold\n" in readme.read_text()

    def test_shows_it_in_every_file_to_update_that_has_the_markers(self, accel_cli: Cli, folder: Path, tmp_path: Path) -> None:
        markers = "<!-- accel:results {} -->\nold\n<!-- /accel:results -->\n"
        texts = {"README.md": ["final-h200"], "sets.md": ["light", "final-h200"], "more.md": ["light"]}
        for name, regions in texts.items():
            (tmp_path / name).write_text("".join(map(markers.format, regions)))
        named = [word for name in texts for word in ("--update", tmp_path / name)]
        assert accel_cli("report", folder, *named, "--final", tmp_path / "h200" / "table.md").code == 0
        assert [(tmp_path / name).read_text().count("keep: O1") for name in texts] == [1, 1, 0]

    def test_refuses_a_file_without_markers_and_trainings_for_nothing(self, accel_cli: Cli, folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "table.md"
        path.write_text("mine\n")
        ran = accel_cli("report", folder, "--final", path)
        assert (ran.code, path.read_text()) == (2, "mine\n")
        assert "has no markers for the final table" in ran.err
        assert accel_cli("report", folder, "--training", tmp_path).code == 2
