"""`benchmarks/train_all.py`: which trainings there are, their order, deadline, resuming, and what is carried home."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import pytest
from trainable_net import pictures

from accel import datasets
from accel.errors import ConfigError, CorruptArtifact, UnknownName
from accel.trainers import WEIGHTS, default_recipe, read_recipe, train, with_weights
from benchmarks import collecting, scheduling, train_all, trainings

HERE = Path(__file__).parent
FAKE = (sys.executable, str(HERE / "fake_trainer.py"))

TABLE = """
carry = ["pupil-*", "teacher-s1"]
[[job]]
name = "teacher"
model = "resnet18"
groups = { teachers = [0, 1], all = [0, 1] }
recipe = { epochs = 2 }
seconds = 100
bar = 95.0
[[job]]
name = "pupil"
model = "student_a"
groups = { all = [0] }
teachers = ["teacher-s0", "teacher-s1"]
recipe = { epochs = 2 }
seconds = 50
bar = 90.0
[[job]]
name = "other"
model = "naivenet"
groups = { all = [0] }
recipe = { epochs = 2, split = "45k/5k" }
seconds = 120
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.toml"
    path.write_text(TABLE)
    return path


@pytest.fixture
def jobs(table):
    return trainings.read_table(table)[0]


def run(table, out, *words):
    return train_all.main(
        ["run", *(words or ["all"]), "--table", str(table), "--out", str(out), "--gpus", "cpu", "--trainer", shlex.join(FAKE)]
    )


def rows(out):
    return {row["job"]: row for row in json.loads((out / "summary.json").read_text())["jobs"]}


def begun(out):
    return [line for path in sorted(out.glob("*.log")) for line in path.read_text().splitlines() if line.startswith("$ ")]


def host(jobs, out, **given):
    options = {"gpus": ("cpu",), "trainer": FAKE, "out": out, **given}
    clock = {name: options.pop(name) for name in ("now", "wait") if name in options}
    return scheduling.Host(jobs, scheduling.Options(**options), **clock)


class TestTheTable:
    def test_holds_every_model_with_the_bars_of_the_issue(self):
        found, _ = trainings.read_table()
        final = {job.model: job for job in found if "final" in job.groups and job.seed == 0}
        assert {name: job.bar for name, job in final.items()} == {
            "resnet18": 95.5,
            "mobilenetv3_small": 93.0,
            "shufflenetv2_x1": 92.5,
            "mobilenetv2": 94.0,
            "efficientnet_b0": 94.0,
            "alexnet": 90.0,
            "naivenet": 91.0,
            "student_a": 92.0,
            "student_b": 94.0,
            "student_c": 95.0,
        }
        three = sorted(job.model for job in found if "final" in job.groups and job.seed == 2)
        assert three == ["mobilenetv3_small", "resnet18", "student_a", "student_b", "student_c"]
        assert {job.model for job in found if "tune" in job.groups} == {job.model for job in found if "first" in job.groups} == set(final)

    def test_makes_recipes_that_hold(self):
        found, _ = trainings.read_table()
        recipes = {job.name: job.recipe() for job in found}
        for job in found:
            recipe = recipes[job.name]
            assert (recipe.model, recipe.seed, recipe.split) == (job.model, job.seed, "45k/5k" if "tune" in job.groups else "full")
            for teacher in job.teachers:
                # A teacher that has seen the held-out images would tell its pupil about them.
                assert recipes[teacher].split == recipe.split
                assert recipes[teacher].label_smoothing <= 0.1
        for name in with_weights():
            shipped = read_recipe(WEIGHTS / name / "recipe.toml", base=default_recipe(name))
            assert shipped == recipes[f"{name}-s0"], f"{name} would be trained otherwise than its shipped weights were"
        assert recipes["student_b-s1"].teacher == "resnet18-s0,resnet18-s1,resnet18-s2"
        shares = sorted((job.model, recipes[job.name].train_fraction) for job in found if "fractions" in job.groups)
        assert shares == [
            (name, share) for name in ("efficientnet_b0", "mobilenetv2", "naivenet", "resnet18") for share in (0.1, 0.25, 0.5, 1.0)
        ]

    def test_is_chosen_from_by_group_name_and_pattern_and_brings_the_teachers(self, jobs):
        names = lambda *words, **given: [job.name for job in trainings.chosen(jobs, words, **given)]  # noqa: E731
        assert names("teachers") == ["teacher-s0", "teacher-s1"]
        assert names("pupil-s0") == ["teacher-s0", "teacher-s1", "pupil-s0"]
        assert names("*-s0", without=["pupil-s0"]) == ["teacher-s0", "other-s0"]
        with pytest.raises(UnknownName, match="called 'nobody'"):
            names("nobody")

    def test_keeps_the_order_of_the_words_where_that_is_asked_for(self, jobs):
        names = lambda *words: [job.name for job in trainings.chosen(jobs, words, in_order=True)]  # noqa: E731
        assert names("other-s0", "pupil-s0") == ["other-s0", "teacher-s0", "teacher-s1", "pupil-s0"]
        assert names("pupil-s0", "other-s0", "teachers") == ["teacher-s0", "teacher-s1", "pupil-s0", "other-s0"]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ('name = "pupil"', 'name = "pu/pil"'),
            ("seconds = 50", "duration = 50"),
            ('teachers = ["teacher-s0", "teacher-s1"]', 'teachers = ["other-s0"]'),
            ('model = "student_a"', 'like = "nobody"'),
        ],
    )
    def test_is_refused_where_an_entry_is_wrong(self, table, change, said):
        table.write_text(TABLE.replace(change, said))
        with pytest.raises(ConfigError):
            trainings.read_table(table)


def test_what_the_longest_row_waits_for_begins_first(jobs):
    left = {job.name: job.seconds for job in jobs}
    assert trainings.chains(jobs, left) == {"teacher-s0": 150, "teacher-s1": 150, "pupil-s0": 50, "other-s0": 120}


def test_jobs_run_in_order_wait_for_their_teachers_and_are_skipped_the_next_time(table, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(table, out) == 0
    found = capsys.readouterr()
    said = [line.split()[2:4] for line in found.err.splitlines()]
    assert [name for what, name in said if what == "begins"] == ["teacher-s0", "teacher-s1", "other-s0", "pupil-s0"]
    assert [what for what, _ in said[:4]] == ["begins", "done", "begins", "done"]
    assert "pupil-s0    done    2/2     90.50   90.0  -      12       1500" in found.out
    assert "teacher-s1  done    2/2     90.50!  95.0" in found.out
    assert {name: (row["status"], row["reached"], row["val_top1"]) for name, row in rows(out).items()} == {
        "teacher-s0": ("done", False, None),
        "teacher-s1": ("done", False, None),
        "pupil-s0": ("done", True, None),
        "other-s0": ("done", None, 90.25),
    }
    before = begun(out)
    assert len(before) == 4
    assert run(table, out) == 0
    assert begun(out) == before
    assert rows(out)["pupil-s0"]["wall_s"] > 0


def test_what_is_named_first_begins_first_where_that_is_asked_for(table, tmp_path, capsys):
    assert run(table, tmp_path / "out", "other-s0", "pupil-s0", "--in-order") == 0
    said = [line.split()[2:4] for line in capsys.readouterr().err.splitlines()]
    assert [name for what, name in said if what == "begins"] == ["other-s0", "teacher-s0", "teacher-s1", "pupil-s0"]


def test_at_the_deadline_what_runs_is_interrupted_and_the_next_call_resumes_it(jobs, tmp_path):
    only = [job for job in jobs if job.name == "other-s0"]
    late = lambda: 1000.0 if (tmp_path / "other-s0" / "state.pt").exists() else 0.0  # noqa: E731
    first = host(only, tmp_path, further={"limit": 1}, deadline=200.0, now=late, wait=lambda s: None)
    first.run()
    scheduling.write_summary(first)
    (row,) = first.rows()
    assert (row["status"], row["epochs_done"], row["note"]) == ("stopped", 1, "interrupted; the same command resumes it")
    again = host(only, tmp_path, further={"limit": 1})
    assert trainings.remaining_s(only[0], tmp_path / "other-s0", again.recipes["other-s0"]) == 120.0
    again.run()
    assert again.rows()[0]["status"] == "done"
    assert [line.split()[-1] for line in begun(tmp_path)] == ["cpu", "--resume"]


def test_nothing_begins_that_its_estimate_says_would_not_be_ready(jobs, tmp_path):
    found = host(jobs, tmp_path, deadline=149.0, pace=1.25, now=lambda: 0.0, per_gpu=9)
    found.run()
    status = {row["job"]: (row["status"], row["note"]) for row in found.rows()}
    assert status["other-s0"] == ("new", "needs about 150 s, 149 s were left")
    assert {status[name][0] for name in ("teacher-s0", "teacher-s1", "pupil-s0")} == {"done"}


def test_a_training_that_fails_says_why_and_its_pupils_wait(jobs, tmp_path):
    found = host([job for job in jobs if job.name != "other-s0"], tmp_path, further={"limit": 2})
    found.run()
    status = {row["job"]: (row["status"], row["note"]) for row in found.rows()}
    assert status["teacher-s0"] == ("failed", "exit code 1: accel: the training loss became nan to mend it: lower --lr")
    assert status["pupil-s0"] == ("waiting", "waits for teacher-s0, teacher-s1")


def test_a_finished_teacher_without_its_weights_teaches_nobody(table, jobs, tmp_path):
    out = tmp_path / "out"
    assert run(table, out, "teachers") == 0
    (out / "teacher-s1" / "weights.safetensors").unlink()
    found = host([job for job in jobs if job.name != "other-s0"], out)
    found.run()
    assert {row["job"]: (row["status"], row["note"]) for row in found.rows()} == {
        "teacher-s0": ("done", ""),
        "teacher-s1": ("done", ""),
        "pupil-s0": ("waiting", "waits for the weights of teacher-s1"),
    }


def test_an_interrupt_ends_the_trainings_too(jobs, tmp_path):
    def interrupted(seconds):
        if (tmp_path / "other-s0" / "state.pt").exists():
            raise KeyboardInterrupt

    found = host([job for job in jobs if job.name == "other-s0"], tmp_path, further={"limit": 1}, wait=interrupted)
    with pytest.raises(KeyboardInterrupt):
        found.run()
    assert (found.running, found.status) == ({}, {"other-s0": "stopped"})


def test_a_folder_of_another_recipe_is_neither_skipped_nor_touched(table, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(table, out, "other-s0") == 0
    table.write_text(TABLE.replace('epochs = 2, split = "45k/5k"', 'epochs = 3, split = "45k/5k"'))
    assert run(table, out, "other-s0") == 1
    assert "was trained by another recipe: epochs 2 instead of 3" in rows(out)["other-s0"]["note"]
    assert len(begun(out)) == 1


def test_trainings_are_spread_over_the_gpus_that_this_process_may_see(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    found = host([job for job in jobs if job.name != "pupil-s0"], tmp_path, gpus=("0", "1"), per_gpu=2)
    found.run()
    seen = sorted((tmp_path / name / "device.txt").read_text() for name in found.jobs)
    assert sorted(found.gpu.values()) in (["0", "0", "1"], ["0", "1", "1"])
    assert set(seen) == {"cuda:0 4", "cuda:0 7"}


class TestCollecting:
    @pytest.fixture
    def out(self, table, tmp_path):
        out = tmp_path / "out"
        assert run(table, out) == 0
        return out

    def test_parts_are_small_and_hold_the_first_weights_and_all_small_files(self, out, table, tmp_path):
        to = tmp_path / "to"
        ranks = collecting.ranked(*trainings.read_table(table))
        assert ranks == ["pupil-s0", "teacher-s1", "teacher-s0", "other-s0"]
        small = sum(path.stat().st_size for path in out.rglob("*") if path.suffix in (".json", ".csv", ".log"))
        # Room for two weights of 16 KiB, with the headers of all files.
        total_mib = (small + 20 * 1024 + 3 * 16_384 + 10_240) / 2**20
        assert collecting.collect(out, to, ranks, part_mib=0.02, total_mib=total_mib) == ["other-s0"]
        parts = sorted(path.name for path in to.iterdir())
        assert parts[:3] == ["collected.json", "trainings.tar.00", "trainings.tar.01"]
        assert len(parts) <= 8
        assert all(path.stat().st_size <= 0.02 * 2**20 for path in to.glob("trainings.tar.*"))

        back = collecting.unpack(to, tmp_path / "back")
        assert [path.name for path in back] == ["pupil-s0", "teacher-s0", "teacher-s1"]
        for name in ("summary.json", "other-s0.log", "other-s0/run.json", "other-s0/log.csv", "pupil-s0/weights.safetensors"):
            assert (tmp_path / "back" / name).read_bytes() == (out / name).read_bytes()
        assert not (tmp_path / "back" / "other-s0" / "weights.safetensors").exists()

    def test_a_damaged_part_is_found(self, out, table, tmp_path):
        assert train_all.main(["collect", "--out", str(out), "--to", str(tmp_path / "to"), "--table", str(table)]) == 0
        part = tmp_path / "to" / "trainings.tar.00"
        part.write_bytes(part.read_bytes()[:-1] + b"x")
        with pytest.raises(CorruptArtifact, match=r"trainings\.tar\.00 is missing or damaged"):
            collecting.unpack(tmp_path / "to", tmp_path / "back")


@pytest.mark.slow  # two processes that import torch: nothing else shows that a real training outlives the interrupt
def test_a_real_training_follows_its_teacher_is_interrupted_and_resumed(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(datasets, "load", lambda name, split: pictures({"train": 32, "test": 10}[split], split))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    table, out = tmp_path / "table.toml", tmp_path / "out"
    table.write_text(
        """
[[job]]
name = "first"
model = "student_a"
groups = { all = [0] }
recipe = { epochs = 2, batch_size = 16, amp = "off", warmup_epochs = 0.5 }
seconds = 1
[[job]]
name = "second"
like = "first"
groups = { all = [0] }
teachers = ["first-s0"]
recipe = { epochs = 6 }
"""
    )
    jobs, _ = trainings.read_table(table)
    train("student_a", recipe=jobs[0].recipe(), out=out / "first-s0", device="cpu")
    trainer = (sys.executable, str(HERE / "real_trainer.py"))
    late = lambda: 100.0 if (out / "second-s0" / "state.pt").exists() else 0.0  # noqa: E731
    # Looked at so often that five further epochs cannot pass in between.
    stopped = host(jobs, out, trainer=trainer, deadline=50.0, now=late, wait=lambda seconds: time.sleep(seconds / 20))
    stopped.run()
    assert stopped.status == {"first-s0": "done", "second-s0": "stopped"}
    again = host(jobs, out, trainer=trainer)
    again.run()
    assert {row["job"]: (row["status"], row["epochs_done"]) for row in again.rows()} == {"first-s0": ("done", 2), "second-s0": ("done", 6)}
    facts = json.loads((out / "second-s0" / "run.json").read_text())
    assert [teacher["name"] for teacher in facts["teachers"]] == ["student_a"]
    assert 0 <= facts["top1"] <= 100
    assert json.loads((out / "second-s0" / "checkpoint.json").read_text())["recipe"]["teacher"] == "first-s0"
