"""`benchmarks/training_ablation.py` and `benchmarks/alexnet_study.py`: what they measure, keep, refuse to mix, and say."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trainable_net import TINY, pictures

torch = pytest.importorskip("torch")

from accel import api, trainers  # noqa: E402
from accel import device as devices  # noqa: E402
from accel.bench import results as results_of_bench  # noqa: E402
from accel.bench.coordinate import device_lock  # noqa: E402
from accel.device import driver  # noqa: E402
from accel.errors import AccelError, ConfigError, UsageError  # noqa: E402
from accel.trainers import backend, data, train  # noqa: E402
from benchmarks import ablation_results, alexnet_page, alexnet_study, studies, training_ablation  # noqa: E402
from benchmarks.studies import Record  # noqa: E402
from benchmarks.training_ablation import CONFIGURATIONS, Alternating, Plain  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FAKE = shlex.join([sys.executable, str(Path(__file__).parent / "fake_trainer.py")])
MACHINE = {"gpu_name": "G", "gpu_uuid": "GPU-1", "driver": "1", "cpu_model": "C", "cpu_affinity": "0", "python": "3.12.0"}


@pytest.fixture
def machine(monkeypatch):
    """What `snapshot` finds; to be changed by a test."""
    found = {**MACHINE, "versions": {"torch": "2.11.0"}, "git_sha": None, "dirty": None}
    monkeypatch.setattr(studies, "snapshot", lambda device: dict(found))
    return found


@pytest.fixture
def small(tiny, monkeypatch):
    """The tiny model's recipe in the place of a shipped one."""
    monkeypatch.setattr(trainers, "default_recipe", lambda model: tiny)
    return tiny


def record(path, **settings) -> Record:
    return Record(path / "record.json", settings, "cpu")


def plain(recipe=TINY) -> Plain:
    return Plain(data.open_data(recipe), np.arange(200), recipe, CPU, 0)


class TestARecord:
    def test_goes_on_with_what_is_there_and_tries_again_what_was_not_measured(self, machine, tmp_path):
        one = record(tmp_path, epochs=2)
        one.take("good", lambda: {"value": 1.5}, dict)

        def fails():
            raise AccelError("no compiler")

        one.take("bad", fails, lambda: {"of": "all"})
        other = record(tmp_path, epochs=2)
        assert (other.done("good"), other.done("bad"), other.done("new")) == (True, False, False)
        assert other.measured("good")["value"] == 1.5
        assert (other.why_not("bad"), other.why_not("new")) == ("no compiler", "not measured")
        found = json.loads(other.path.read_text())
        assert found["machine"] == machine
        assert found["command"].startswith("python ")
        assert found["summary"] == {"of": "all"}

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"gpu_name": "H"}, "gpu_name was 'G' and is 'H'"),
            ({"versions": {"torch": "2.15.0"}}, r"versions was {'torch': '2\.11\.0'} and is"),
        ],
    )
    def test_refuses_another_machine_and_other_versions(self, machine, tmp_path, change, said):
        record(tmp_path).write({})
        machine.update(change)
        with pytest.raises(ConfigError, match=said):
            record(tmp_path)

    def test_refuses_other_settings(self, machine, tmp_path):
        record(tmp_path, epochs=2).write({})
        with pytest.raises(ConfigError, match="epochs was 2 and is 3"):
            record(tmp_path, epochs=3)

    def test_says_that_its_parts_are_of_two_cards(self, machine, tmp_path):
        record(tmp_path).take("one", dict, dict)
        machine["gpu_uuid"] = "GPU-2"
        other = record(tmp_path)
        other.take("two", dict, dict)
        assert other.gpus == ["GPU-1", "GPU-2"]
        assert "parts are of 2 different cards" in studies.conditions(other)[0]


def test_ratios_are_formed_within_a_repeat():
    found = studies.ratios({0: 30.0, 1: 50.0, 2: 7.0}, {0: 10.0, 1: 10.0, 3: 1.0})
    assert found == {"median": 4.0, "low": 3.0, "high": 5.0, "n": 2}
    assert studies.ratios({0: 1.0}, {0: 0.0}) == {"median": None, "low": None, "high": None, "n": 0}


def test_a_part_is_measured_while_it_holds_the_lock_that_accel_bench_takes():
    filelock = pytest.importorskip("filelock")

    def measure():
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(device_lock("cpu"), timeout=0).acquire()
        return {"value": 1}

    assert studies.alone("cpu", measure)() == {"value": 1}
    filelock.FileLock(device_lock("cpu"), timeout=0).acquire().lock.release()


def test_every_other_repeat_goes_backwards():
    assert [studies.order("abc", repeat) for repeat in range(3)] == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


class TestPlainLoading:
    def test_gives_every_image_once_normalised_and_with_its_label(self, tiny):
        source = plain(TINY.replaced({"crop_padding": 0, "cutout": 0, "batch_size": 50}))
        source.begin(0)
        batches = [source.batch(index) for index in range(4)]
        images, labels = torch.cat([batch for batch, _ in batches]), torch.cat([batch for _, batch in batches])
        whole, prepare = pictures(200, "train"), data.PREPROCESS["cifar10"]
        wanted = (whole.images.astype(np.float32) / 255 - np.float32(prepare.mean)) / np.float32(prepare.std)
        assert images.dtype == torch.float32
        by_sum = np.argsort(wanted.sum(axis=(1, 2, 3)))
        found = np.argsort(images.sum(dim=(1, 2, 3)).numpy())
        assert labels[found].tolist() == whole.labels[by_sum].tolist()
        mirrored = [np.allclose(image, other, atol=1e-5) for image, other in zip(images.numpy()[found], wanted[by_sum], strict=True)]
        assert 60 < sum(mirrored) < 140  # the others are flipped

    def test_crops_and_hides_a_square(self, tiny):
        source = plain(TINY.replaced({"batch_size": 100}))
        source.begin(0)
        images, _ = source.batch(0)
        holes = (images == 0).all(dim=3).flatten(1).sum(dim=1)
        assert images.shape == (100, 32, 32, 3)
        assert (int(holes.max()), bool((holes >= 9).all())) == (36, True)

    def test_reading_counts_as_waiting(self, tiny):
        source = plain()
        source.begin(0)
        source.batch(0)
        assert source.waited_s > 0


def test_every_second_epoch_is_given_the_first_batch_of_the_one_before(tiny):
    views = Alternating(plain())
    seen = []
    for epoch in range(4):
        views.begin(epoch)
        seen.append([views.batch(step)[0] for step in range(3)])
    warm, loaded, given, again = seen
    assert all(torch.equal(batch, loaded[0]) for batch in given)
    assert not torch.equal(loaded[0], loaded[1])
    assert not torch.equal(again[0], loaded[0])
    assert not torch.equal(warm[0], loaded[0])
    views.begin(4)
    assert views.waited_s == 0.0


def test_wait_and_cost_are_of_the_timed_epochs():
    epochs = [
        {"images_per_s": speed, "epoch_s": taken, "data_wait_s": waited}
        for speed, taken, waited in ((1.0, 99.0, 99.0), (10.0, 4.0, 1.0), (40.0, 1.0, 0.0), (10.0, 4.0, 3.0), (40.0, 1.0, 0.0))
    ]
    found = training_ablation.summary(epochs)
    assert (found["images_per_s"], found["data_wait"], found["data_cost"]) == (10.0, 0.5, 0.75)
    assert [row["held"] for row in found["epochs"]] == [False, False, True, False, True]


ABLATION = ["--device", "cpu", "--quick", "--no-inference", "--model", "tiny"]
ON_A_CPU = ("baseline", "plain, workers", "loader workers", "loader gpu", "amp", "gpu + amp")


def test_the_ablation_measures_every_configuration_once_and_says_what_it_could_not(small, tmp_path, capsys):
    asked = []

    def ask(request):
        asked.append(request["configuration"])
        return training_ablation.measure(request)

    assert training_ablation.main([*ABLATION, "--out", str(tmp_path)], ask) == 1
    assert len(asked) == len(CONFIGURATIONS)
    found = json.loads((tmp_path / "ablation.json").read_text())
    rows = found["rows"]
    assert {part for part, row in rows.items() if "not_run" not in row} == {f"{name} #0" for name in ON_A_CPU}
    assert found["summary"]["training"]["baseline"]["images_per_s"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    assert rows["baseline #0"]["data_wait"] > rows["loader gpu #0"]["data_wait"] == 0.0
    assert (rows["baseline #0"]["readers"], rows["loader workers #0"]["readers"] > 0, rows["amp #0"]["peak_mib"]) == (0, True, None)
    assert found["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    for text in (capsys.readouterr().out, (tmp_path / "ablation.md").read_text()):
        assert "A TRIAL" in text
        assert "compile #0: not run: accel does not compile a training on a CPU" in text
    asked.clear()
    assert training_ablation.main([*ABLATION, "--out", str(tmp_path)], ask) == 1
    assert [(row["loader"], row["compile"], row["amp"]) for row in asked] == [
        ("plain", True, False),
        ("gpu", True, False),
        ("gpu", True, True),
    ]


def test_a_training_that_was_not_compiled_is_not_called_compiled(small, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "resolve", lambda device, recipe: SimpleGpu())
    request = training_ablation.request_of(CONFIGURATIONS["compile"], small, "cuda:0", training_ablation.parse(["--out", "x"]))
    assert (request["recipe"]["compile"], request["recipe"]["amp"]) == (True, "off")
    monkeypatch.setattr(training_ablation, "prepared", lambda *given: None)
    monkeypatch.setattr(training_ablation, "Plain", lambda *given: plain())
    eager = {"used": False, "reason": "RuntimeError: no compiler", "compile_s": 0.0}
    monkeypatch.setattr(training_ablation, "fit", lambda *given, **more: type("Trained", (), {"compilation": eager}))
    with pytest.raises(AccelError, match="no compiler"):
        training_ablation.measure(request)


class SimpleGpu:
    type = "cuda"


CHILD = """
import sys
sys.path.insert(0, {root!r})
from accel.errors import AccelError
from benchmarks import studies

def measure(request):
    if request["fails"]:
        raise AccelError("no such device", remedy="use another")
    if request["crashes"]:
        raise RuntimeError("out of memory")
    print("chatter")
    return {{"twice": 2 * request["value"]}}

sys.exit(studies.child(measure))
"""


def test_a_run_is_a_process_of_its_own_and_its_failure_a_reason(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CHILD.format(root=str(ROOT)))
    ask = studies.in_process(str(script))
    assert ask({"fails": False, "crashes": False, "value": 4}) == {"twice": 8}
    with pytest.raises(AccelError, match=r"^no such device$"):
        ask({"fails": True})
    with pytest.raises(AccelError, match=r"ended with 1: RuntimeError: out of memory$"):
        ask({"fails": False, "crashes": True})


def test_inference_is_compared_round_by_round(small, tmp_path, monkeypatch, machine):
    p50 = {("eager:fp32", 0): 100.0, ("eager:fp32", 1): 120.0, ("compile:fp32", 0): 50.0, ("compile:fp32", 1): 40.0}
    rows = [
        {"variant": variant, "round": number, "latency_kind": kind, "verdict": "OK", "p50_us": value}
        for (variant, number), value in p50.items()
        for kind in ("host_us", "e2e_us")
    ]
    results = type("Set", (), {"rows": rows, "folder": Path("tiny-cpu")})
    given = []
    monkeypatch.setattr(api, "bench", lambda *what, **how: given.append(what) or type("Benched", (), {"results": results, "faults": ()}))
    one = Record(tmp_path / "ablation.json", {}, "cpu")
    options = training_ablation.parse(["--out", str(tmp_path), "--bundle", "tiny.accel"])
    one.take("inference", lambda: training_ablation.inference(options, "cpu"), dict)
    assert given == [(Path("tiny.accel"), ["eager:fp32", "compile:fp32"])]
    found = ablation_results.results(one)["inference"]
    assert found["compile:fp32"]["faster"] == {"median": 2.5, "low": 2.0, "high": 3.0, "n": 2}
    assert ablation_results.latency_lines(one)[1] == ["compile:fp32", "45.0", "2.50 (2.00–3.00)"]


VARIANTS = ["eager:fp32", "compile:fp32", "compile:fp32+reduce-overhead"]
ELSEWHERE = {"gpu_name": "G", "gpu_uuid": "GPU-9", "driver": "1.7", "cpu_model": "D", "cpu_affinity": "0-15", "python": "3.12.1"}


def write_set(folder, variants=VARIANTS, **changes):
    """A set of `tiny`, of three rounds with p50s of 100, 110, 120 µs, divided by the variant's place; verdict OK."""
    folder.mkdir()
    common = {"set_id": folder.name, "model": "tiny", "batch": 1, "verdict": "OK", "device": "cuda:0", "git_sha": "abc", **ELSEWHERE}
    common |= {"versions_json": {"torch": "2.11.0+cu130", "numpy": "2"}, "command": "accel bench tiny", **changes}
    rows = [
        results_of_bench.row(
            **{
                "variant": variant,
                "runtime": variant.partition(":")[0],
                "round": number,
                "latency_kind": kind,
                "p50_us": (100.0 + 10 * number) / place * (1 if kind == "host_us" else 7),
                "timestamp_utc": f"2026-11-22T18:0{number}:0{place}Z",
                **common,
            }
        )
        for number in range(3)
        for place, variant in enumerate(variants, start=1)
        for kind in ("host_us", "e2e_us")
    ]
    (folder / "results.jsonl").write_text(results_of_bench.to_jsonl(rows))
    return folder


class TestInferenceOfASet:
    """The trainings are on record, of a machine with a GPU that is not here."""

    @pytest.fixture
    def record(self, small, machine, tmp_path):
        """OUT/ablation.json with every training, of one repeat, as a machine with a GPU leaves it."""
        options = training_ablation.parse(["--out", str(tmp_path / "out"), "--model", "tiny", "--quick"])
        made = Record(tmp_path / "out" / "ablation.json", training_ablation.settings(options, "cuda:0"), "cuda:0")
        found = {"images_per_s": 9.0, "peak_mib": 1, "host_mib": 1.0, "data_wait": 0.5, "data_cost": 0.1, "epochs": []}
        for name in CONFIGURATIONS:
            made.take(f"{name} #0", lambda: {**found, "compilation": {"used": False, "compile_s": 0.0}}, dict)
        # From here on the machine is another one.
        machine.update(gpu_name=None, gpu_uuid=None, driver=None, cpu_model="D", versions={})
        return made.path

    @pytest.fixture
    def run(self, record, capsys):
        def run(*words, ask=lambda request: pytest.fail("something was measured")):
            words = ["--out", str(record.parent), "--model", "tiny", "--quick", *map(str, words)]
            return training_ablation.main(words, ask), capsys.readouterr()

        return run

    @pytest.mark.parametrize("device", ["auto", "cuda:0"])
    def test_is_taken_with_its_origin_and_needs_no_gpu(self, record, run, tmp_path, device):
        before = json.loads(record.read_text())
        code, said = run("--device", device, "--inference-set", write_set(tmp_path / "a-set"))
        assert (code, said.err) == (0, "")
        found = json.loads(record.read_text())
        part = found["rows"].pop("inference")
        assert (found["rows"], found["machine"], found["settings"]) == (before["rows"], before["machine"], before["settings"])
        assert part["p50_us"] == {
            variant: {str(number): (100.0 + 10 * number) / place for number in range(3)} for place, variant in enumerate(VARIANTS, start=1)
        }
        assert (part["set"], part["gpu_uuid"], part["at_utc"]) == ("a-set", "GPU-9", "2026-11-22T18:02:03Z")
        assert found["gpus"] == ["GPU-1", "GPU-9"]
        assert found["summary"]["inference"]["compile:fp32"]["faster"] == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 3}
        for text in (said.out, (record.parent / "ablation.md").read_text()):
            assert "are of another session than the trainings: of the set a-set (" in text
            assert "recorded from 2026-11-22T18:00:01Z to 2026-11-22T18:02:03Z on the card GPU-9 (G, driver 1.7;" in text
            assert "The trainings are of GPU-1, recorded from " in text
            assert "parts are of 2 different cards" in text
        assert "| compile:fp32 | 55.0 | 2.00 (2.00–2.00) |" in (record.parent / "ablation.md").read_text()

    def test_the_same_again_changes_nothing_and_another_set_is_refused(self, record, run, tmp_path):
        assert run("--inference-set", write_set(tmp_path / "a-set"))[0] == 0
        before = json.loads(record.read_text())
        assert run("--inference-set", tmp_path / "a-set")[0] == 0
        assert json.loads(record.read_text()) == before
        code, said = run("--inference-set", write_set(tmp_path / "other"))
        assert (code, json.loads(record.read_text())) == (ConfigError.exit_code, before)
        assert "has inference figures already, of the set a-set" in said.err
        assert "to mend it: leave --inference-set out" in said.err

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"model": "resnet18"}, "is a set of resnet18; the study is of tiny"),
            ({"variants": VARIANTS[:2]}, "has no OK latency (host clock) of compile:fp32+reduce-overhead (it is not in it)"),
            ({"verdict": "UNVERIFIED"}, "of eager:fp32 (it is there as UNVERIFIED); compile:fp32 (it is there as"),
            ({"gpu_name": "H"}, "otherwise than the trainings: GPU is H there and G in the record\n"),
            ({"gpu_name": None}, "GPU is None there and G in the record\n"),
            ({"driver": "2.0"}, "otherwise than the trainings: driver's major version is 2 there and 1 in the record\n"),
            ({"versions_json": {"torch": "2.15.0"}}, "otherwise than the trainings: torch is 2.15.0 there and 2.11.0 in the record\n"),
            (
                {"gpu_name": "H", "driver": "2.0", "versions_json": {}},
                "GPU is H there and G in the record; driver's major version is 2 there and 1 in the record; torch is None there and",
            ),
            ({"batch": 8}, "was measured at batch 8; the study is of batch 1"),
        ],
    )
    def test_what_is_not_like_the_record_is_refused_by_name(self, record, run, tmp_path, changes, said):
        before = record.read_text()
        code, heard = run("--inference-set", write_set(tmp_path / "a-set", **changes))
        assert code == 2
        assert said in heard.err
        assert "to mend it: " in heard.err
        assert (record.read_text(), (record.parent / "ablation.md").exists()) == (before, False)

    def test_what_cannot_be_read_is_refused(self, record, run, tmp_path):
        assert run("--inference-set", tmp_path / "nowhere")[0] == 2
        damaged = write_set(tmp_path / "damaged")
        (damaged / "results.jsonl").write_bytes(b"\xff\xfe\n")
        code, said = run("--inference-set", damaged)
        assert (code, "cannot be read as a set" in said.err, "restore the folder" in said.err) == (5, True, True)
        (damaged / "results.jsonl").write_text('{"schema_version": 1\n')
        code, said = run("--inference-set", damaged)
        assert (code, "line 1 is no result row" in said.err) == (5, True)
        (damaged / "results.jsonl").write_text("")
        code, said = run("--inference-set", damaged)
        assert (code, "has recorded nothing" in said.err) == (2, True)
        assert "inference" not in json.loads(record.read_text())["rows"]

    def test_of_several_cards_or_several_sets_none_is_taken(self, run, tmp_path):
        one, two = write_set(tmp_path / "one"), write_set(tmp_path / "two", gpu_uuid="GPU-8")
        both = one / "results.jsonl"
        both.write_text(both.read_text() + (two / "results.jsonl").read_text())
        assert "holds several sets (one of tiny, two of tiny)" in run("--inference-set", one)[1].err
        both.write_text(both.read_text().replace('"set_id": "two"', '"set_id": "one"'))
        assert "was measured on several cards: GPU-8, GPU-9" in run("--inference-set", one)[1].err

    @pytest.mark.parametrize(("words", "said"), [((), "device was 'cuda' and is 'cpu'"), (("--device", "cuda:0"), "cuda:0 was asked for")])
    def test_a_training_that_is_missing_is_measured_on_a_machine_like_the_records_only(
        self, record, run, tmp_path, monkeypatch, words, said
    ):
        monkeypatch.setattr(driver, "gpu_available", lambda: (False, "there is no GPU"))
        code, heard = run("--repeats", "2", "--inference-set", write_set(tmp_path / "a-set"), *words)
        assert (code > 1, said in heard.err) == (True, True)
        monkeypatch.setattr(devices, "parse", lambda text: "cuda:0")
        code, heard = run("--repeats", "2", "--inference-set", tmp_path / "a-set")
        assert (code, "gpu_name was 'G' and is None" in heard.err) == (ConfigError.exit_code, True)
        assert "baseline #1" not in json.loads(record.read_text())["rows"]

    def test_trainings_are_measured_first_where_that_can_be(self, record, run, machine, tmp_path, monkeypatch):
        machine.update(MACHINE, versions={"torch": "2.11.0"})
        monkeypatch.setattr(devices, "parse", lambda text: "cuda:0")
        monkeypatch.setattr(studies, "alone", lambda device, measure: measure)
        asked = []

        def ask(request):
            asked.append(request["device"])
            raise AccelError("no compiler")

        assert "is a set of other" in run("--repeats", "2", "--inference-set", write_set(tmp_path / "other", model="other"), ask=ask)[1].err
        assert asked == []
        assert run("--repeats", "2", "--inference-set", write_set(tmp_path / "a-set"), ask=ask)[0] == 1
        assert asked == ["cuda:0"] * len(CONFIGURATIONS)
        assert json.loads(record.read_text())["rows"]["inference"]["set"] == "a-set"

    def test_a_page_without_any_training_says_where_its_inference_is_from(self, record, run, machine, tmp_path, monkeypatch):
        machine.update(MACHINE, versions={"torch": "2.11.0"})
        monkeypatch.setattr(devices, "parse", lambda text: "cuda:0")
        monkeypatch.setattr(studies, "alone", lambda device, measure: measure)
        record.unlink()

        def ask(request):
            raise AccelError("no compiler")

        assert run("--inference-set", write_set(tmp_path / "a-set"), ask=ask)[0] == 1
        page = (record.parent / "ablation.md").read_text()
        assert "of the set a-set" in page
        assert "The trainings are of" not in page

    def test_a_record_without_a_device_measures_nothing(self, record, tmp_path):
        with pytest.raises(ConfigError, match="is not there"):
            Record(tmp_path / "new.json", {}, None)
        opened = Record(record, json.loads(record.read_text())["settings"], None)
        with pytest.raises(UsageError, match="opened without a device"):
            opened.take("baseline #1", lambda: pytest.fail("it was measured"), dict)

    @pytest.mark.parametrize("words", [["--no-inference"], ["--bundle", "a.accel"], ["--data", "npz:x.npz"]])
    def test_what_only_measuring_needs_is_refused(self, run, words):
        with pytest.raises(SystemExit):
            run("--inference-set", "a-set", *words)


WITHOUT_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocker())
from benchmarks import training_ablation
sys.exit(training_ablation.main(sys.argv[1:]))
"""


def test_a_set_is_taken_without_torch(tmp_path):
    """By the shipped model's own recipe: of this one's record only the trainings are made up."""
    words = ["--out", str(tmp_path / "out"), "--device", "cuda:0", "--only", "amp", "--repeats", "1"]
    options = training_ablation.parse(words)
    found = {"images_per_s": 9.0, "peak_mib": 1, "host_mib": 1.0, "data_wait": 0.5, "data_cost": 0.1}
    row = {"at_utc": "2026-11-29T17:27:59Z", "gpu_uuid": "GPU-1", **found, "compilation": {"used": False}}
    kept = {"machine": {**MACHINE, "versions": {"torch": "2.11.0"}, "git_sha": None, "dirty": None}}
    kept |= {"settings": training_ablation.settings(options, "cuda:0"), "rows": {"baseline #0": row, "amp #0": row}}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ablation.json").write_text(json.dumps(kept))
    words += ["--inference-set", str(write_set(tmp_path / "a-set", model="resnet18"))]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "of the set a-set" in done.stdout


def study(out, *words, ask=alexnet_study.measure) -> int:
    return alexnet_study.main(["--device", "cpu", "--quick", "--model", "tiny", "--out", str(out), *words], ask)


class TestTheAlexnetStudy:
    @pytest.fixture
    def checkpoint(self, tiny, tmp_path):
        return train("tiny", recipe=tiny, overrides={"epochs": 1}, out=tmp_path / "trained", device="cpu").path

    @pytest.fixture
    def test_set(self, tmp_path):
        chosen = pictures(50, "test")
        np.savez(tmp_path / "test.npz", images=chosen.images, labels=chosen.labels)
        return f"npz:{tmp_path / 'test.npz'}"

    def test_answers_the_whole_test_set_with_each_format(self, small, checkpoint, test_set, tmp_path, monkeypatch, capsys):
        pytest.importorskip("onnxruntime")
        verdicts = [{"variant": variant, "verdict": "OK", "top1": 10.0, "n_flips": 0} for variant in alexnet_page.VARIANTS]
        monkeypatch.setattr(api, "verify", lambda *what, **how: type("Verified", (), {"rows": verdicts}))
        monkeypatch.setattr(alexnet_study, "WARM_S", 0.0)
        words = ["--checkpoint", str(checkpoint), "--data", test_set, "--batch", "1", "15"]
        assert study(tmp_path / "out", *words) == 0
        found = json.loads((tmp_path / "out" / "study.json").read_text())
        runs = [row for part, row in found["rows"].items() if "#" in part]
        assert [row["images"] for row in runs] == [40] * 6
        assert len({row["top1"] for row in runs}) == 1
        assert all(row["seconds"] == row["passes_s"][0] > 0 for row in runs)
        page = (tmp_path / "out" / "alexnet.md").read_text()
        assert "| AMP training, against FP32 | 23.9 % | training | not measured | not measured |" in page
        assert "| torchscript:fp32 | 15 | 40 |" in page
        assert "## Training\n\nNot measured." in page
        assert study(tmp_path / "out", *words, ask=lambda request: pytest.fail("asked again")) == 0

    def test_trains_each_precision_and_resumes_what_was_interrupted(self, small, tmp_path, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the stand-in reads it
        monkeypatch.setattr(alexnet_study, "few", lambda data, file: data)
        monkeypatch.setattr(alexnet_study, "export", lambda *given: Path("none.accel"))
        verdicts = {"eager:fp32": "OK", "onnxruntime:fp32": "OK", "torchscript:fp32": "FAILED"}
        verified = {"variants": {variant: {"verdict": verdict} for variant, verdict in verdicts.items()}}
        monkeypatch.setattr(alexnet_study, "verify", lambda *given: verified)
        begun = tmp_path / "work" / "train" / "amp-s0"
        begun.mkdir(parents=True)
        (begun / "state.pt").touch()
        begun.with_name("amp-s0.log").write_text("$ accel train\nand was killed\n")
        seconds = iter((2.0, 1.6, 1.0))

        def ask(request):
            return {"seconds": next(seconds), "images": 40, "top1": 90.0}

        assert study(tmp_path, "--trainer", FAKE, "--batch", "1", "--seeds", "1", ask=ask) == 0
        found = json.loads((tmp_path / "study.json").read_text())
        fp32, amp = (found["rows"][f"training {name} seed 0"] for name in ("fp32", "amp"))
        assert (fp32["amp"], amp["amp"], fp32["resumed"], amp["resumed"]) == ("off", "bf16", 0, 1)
        assert (fp32["train_s"], fp32["top1"], fp32["images_per_s"]) == (12.5, None, 1000.0)
        assert found["summary"]["amp_faster"]["median"] == 1.0
        page = (tmp_path / "alexnet.md").read_text()
        assert "| ONNX inference, against eager | 12.6 % | batch 1 | 50.0 % | 100.0 % |" in page
        assert "| TorchScript trace inference, against eager | 9.15 % | batch 1, not verified | not measured | not measured |" in page
        assert "| torchscript:fp32 | 1 | 40 | 1.600 | 40,000.0 | 1.250 | 90.00 | – | FAILED |" in page
        assert "| AMP (bf16) | 0 | 12.5 (resumed 1×) | 1,000 |" in page
        assert page.count("(not written yet)") == 3

    def test_what_failed_says_so_and_stops_nothing_else(self, small, tmp_path, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(alexnet_study, "few", lambda data, file: data)
        assert study(tmp_path, "--trainer", FAKE, "--set", "limit=2", "--batch", "1") == 1
        page = (tmp_path / "alexnet.md").read_text()
        for precision in ("fp32", "amp"):
            assert f"training {precision} seed 0: not run: the training ended with 1: accel: the training loss became nan" in page
        assert "onnxruntime:fp32 batch 1 #0: not run: there is no checkpoint fp32-s0" in page
        assert "| ONNX inference, against eager | 12.6 % | batch 1, not verified | not measured | not measured |" in page

    def test_the_sentence_that_somebody_wrote_stays(self, machine, tmp_path):
        one = Record(tmp_path / "study.json", {"recipe": TINY.to_dict(), "quick": False, "checkpoint": None, "device": "cpu"}, "cpu")
        page = alexnet_page.page(one, "").replace("<!-- why onnx -->(not written yet)", "<!-- why onnx -->Other machine, other model.")
        again = alexnet_page.page(one, page)
        assert "<!-- why onnx -->Other machine, other model.<!-- end -->" in again
        assert again.count("(not written yet)") == 2
        assert "not measured" in again


def test_a_configuration_that_does_not_exist_is_refused(small, tmp_path, capsys):
    assert training_ablation.main(["--out", str(tmp_path), "--device", "cpu", "--only", "compil"]) == 2
    assert "there is no configuration called 'compil'" in capsys.readouterr().err


@pytest.mark.gpu
def test_every_configuration_runs_on_a_gpu(small, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    words = ["--device", "cuda:0", "--quick", "--no-inference", "--model", "tiny", "--out", str(tmp_path)]
    assert training_ablation.main(words, training_ablation.measure) == 0
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert all(row["peak_mib"] >= 0 for row in rows.values())
    assert rows["all #0"]["compilation"]["used"]
