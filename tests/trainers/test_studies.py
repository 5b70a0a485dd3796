"""`benchmarks/training_ablation.py` and `benchmarks/alexnet_study.py`: what they measure, keep, refuse to mix, and say."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from trainable_net import TINY, pictures

torch = pytest.importorskip("torch")

from accel import api, trainers  # noqa: E402
from accel.bench.coordinate import device_lock  # noqa: E402
from accel.errors import AccelError, ConfigError  # noqa: E402
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
