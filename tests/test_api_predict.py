"""`accel predict` and accel.predict: which classes, in which words, and what happens to pictures that are broken."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resealed import reseal

import accel
from accel import pictures
from accel.api import predicting
from accel.errors import CorruptArtifact, DatasetMissing, MissingExtra, PrecisionError, UsageError
from accel.runtimes import cache, session

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
for _package in ("onnx", "onnxruntime"):
    pytest.importorskip(_package)

from accel.checkpoint import write_checkpoint  # noqa: E402
from accel.types import Checkpoint, TensorSpec  # noqa: E402

Cli = Callable[..., Any]
NAMES = ("red", "green", "blue")
RED, BLUE = (255, 0, 0), (0, 0, 255)

SURE = 1 / (1 + 2 * math.exp(-4))
"""Of a picture that is all red: its channels are (1 - 0.5) / 0.25 = 2 and -2, so the softmax of (2, -2, -2)."""

BARRED = 1 / (1 + 2 * math.exp(-2))
"""Of a red picture twice as wide as high: half of it is grey bars, whose 128 leaves 1/255 between (255 + 128) / 2 and 128 / 2."""


def brightest() -> Any:
    """Answers with the mean of each channel; its one weight is the identity."""
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`colours.accel` with an engine of batch 1, and `pairs.accel` with one of batch 2; tests do not change them."""
    folder = tmp_path_factory.mktemp("colours")
    described = Checkpoint(
        path=folder / "colours",
        sha256="",
        name="colours",
        factory="test_api_predict:brightest",
        num_classes=3,
        input=TensorSpec("input", ("batch", 3, 4, 4), "float32", "NCHW"),
        output=TensorSpec("logits", ("batch", 3), "float32", "NC"),
        preprocess={"mean": [0.5] * 3, "std": [0.25] * 3, "height": 4, "width": 4},
        labels=NAMES,
    )
    write_checkpoint(described, {"2.weight": np.eye(3, dtype=np.float32)})
    for name, batch in (("colours", 1), ("pairs", 2)):
        accel.export(str(folder / "colours"), "onnx", name=name, batch=batch, out=folder, device="cpu", trusted=True)
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle of batch 1, seen from a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return exported / "colours.accel"


def paint(path: str | Path, colour: tuple[int, ...] = RED, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def test_the_classes_are_sorted_with_their_softmax(bundle: Path) -> None:
    found = accel.predict(bundle, [paint("red.png"), paint("blue.bmp", BLUE)], device="cpu")
    assert (found.model, found.variant, found.device) == ("colours", "onnxruntime:fp32", "cpu")
    assert [picture.file for picture in found.pictures] == ["red.png", "blue.bmp"]
    # Five were asked for, there are three; of equals the one with the lower number comes first.
    assert [guess.label for guess in found.pictures[0].top] == ["red", "green", "blue"]
    assert [guess.index for guess in found.pictures[1].top] == [2, 0, 1]
    assert found.pictures[0].top[0].probability == pytest.approx(SURE, abs=1e-6)
    assert sum(guess.probability for guess in found.pictures[1].top) == pytest.approx(1, abs=1e-12)
    assert found.problem is None
    assert cache.count() == 0


def test_softmax_is_exact_in_float64_and_does_not_overflow() -> None:
    assert predicting.probabilities(np.float32([1000, 1000])).tolist() == [0.5, 0.5]
    found = predicting.probabilities(np.float32([0, 1, -1]))
    whole = 1 + math.e + 1 / math.e
    np.testing.assert_allclose(found, [1 / whole, math.e / whole, 1 / math.e / whole], rtol=1e-15)


def test_a_picture_of_another_shape_is_letterboxed_into_the_models_size(bundle: Path) -> None:
    (wide,) = accel.predict(bundle, paint("wide.png", size=(80, 40)), device="cpu").pictures
    (clear,) = accel.predict(bundle, paint("clear.png", (*RED, 0), mode="RGBA"), device="cpu").pictures
    assert wide.top[0].probability == pytest.approx(BARRED, abs=1e-4)
    assert [guess.probability for guess in clear.top] == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_all_kinds_of_pictures_give_the_same_answer_and_have_a_name(bundle: Path) -> None:
    path = paint("red.png", size=(9, 5))
    image = Image.open(path)
    given = [path, str(path), path.read_bytes(), image, image.convert("RGB"), np.array(image)]
    found = accel.predict(bundle, given, device="cpu")
    assert [Path(picture.file).name for picture in found.pictures] == ["red.png", "red.png", "image 2", "red.png", "image 4", "image 5"]
    assert len({picture.top for picture in found.pictures}) == 1
    assert accel.predict(bundle, np.array(image), device="cpu").pictures[0].top == found.pictures[0].top


def test_a_service_and_the_command_share_one_implementation(bundle: Path) -> None:
    path = paint("some.jpg", (200, 90, 30), size=(50, 31))
    with accel.load(bundle, device="cpu") as engine:
        logits = engine.predict(path)
    (found,) = accel.predict(bundle, path, device="cpu").pictures
    by_class = sorted(found.top, key=lambda guess: guess.index)
    assert [guess.probability for guess in by_class] == predicting.probabilities(logits[0]).tolist()


def test_broken_pictures_have_their_error_and_the_rest_go_on(bundle: Path) -> None:
    Path("text.jpg").write_text("no picture")
    found = accel.predict(bundle, ["absent.png", paint("red.png"), "text.jpg", paint("blue.png", BLUE)], device="cpu")
    assert [picture.error is None for picture in found.pictures] == [False, True, False, True]
    assert [picture.top[0].label for picture in found.pictures if picture.top] == ["red", "blue"]
    assert str(found.problem) == "2 of 4 pictures could not be read"
    assert isinstance(found.problem, CorruptArtifact)


def test_an_engine_of_a_larger_batch_is_filled_in_the_order_of_the_pictures(exported: Path, bundle: Path) -> None:
    given = [paint("0.png"), "absent.png", paint("2.png", BLUE), paint("3.png", BLUE), paint("4.png"), paint("5.png"), "gone.png"]
    pairs, alone = (accel.predict(exported / name, given, device="cpu") for name in ("pairs.accel", "colours.accel"))
    labels = [picture.top[0].label if picture.top else None for picture in pairs.pictures]
    assert labels == ["red", None, "blue", "blue", "red", "red", None]
    assert [picture.top for picture in pairs.pictures] == [picture.top for picture in alone.pictures]


def test_the_engine_is_loaded_once_and_each_picture_told_before_the_next_is_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    init, read = session.Session.__init__, pictures.read

    def opened(self: session.Session, source: Any) -> None:
        events.append("engine")
        init(self, source)

    def reading(picture: Any, name: str | None = None) -> Any:
        if name is not None:
            events.append(f"read {name}")
        return read(picture, name)

    monkeypatch.setattr(session.Session, "__init__", opened)
    monkeypatch.setattr(pictures, "read", reading)
    accel.predict(bundle, [paint("1.png"), paint("2.png")], device="cpu", each=lambda found: events.append(f"told {found.file}"))
    assert events == ["engine", "read 1.png", "told 1.png", "read 2.png", "told 2.png"]


def test_logits_that_are_not_finite_are_the_engines_fault(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting.LoadedEngine, "predict", lambda self, images: np.full((len(images), 3), np.nan, np.float32))
    with pytest.raises(PrecisionError, match=r"onnxruntime:fp32 on cpu answers red\.png with logits that are not finite"):
        accel.predict(bundle, paint("red.png"), device="cpu")


def test_what_cannot_be_asked_is_refused_before_an_engine_is_opened(bundle: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "load", lambda *_, **__: pytest.fail("an engine was opened"))
    red = paint("red.png")
    for wrong, said in (({"top_k": 0}, "top_k = 0"), ({"plot": "sheet.gif"}, "no kind of plot")):
        with pytest.raises(UsageError, match=said):
            accel.predict(bundle, red, **wrong)
    with pytest.raises(UsageError, match="does not say how a picture becomes its input"):
        accel.predict(tiny, red, device="cpu")
    with pytest.raises(DatasetMissing, match="no pictures in what was passed"):
        accel.predict(bundle, [])
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r"PIL\.Image is not installed") as caught:
        accel.predict(bundle, red)
    assert caught.value.remedy == "pip install 'accel-engines[images]'"


def test_a_bundle_whose_preprocessing_does_not_fit_its_input_is_corrupt(bundle: Path, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(bundle, tmp_path / "edited.accel"))
    reseal(edited / "accel.json", lambda data: data["preprocess"].update(width=5))
    with pytest.raises(CorruptArtifact, match=r"preprocesses pictures to \(3, 4, 5\), and its input is \('batch', 3, 4, 4\)"):
        accel.predict(edited, paint("red.png"), device="cpu")


def test_json_is_a_line_a_picture_with_errors_among_them(bundle: Path, accel_cli: Cli) -> None:
    paint("album/deep/red.png")
    paint("album/blue.png", BLUE)
    Path("album/a.png").write_bytes(b"")
    Path("album/notes.txt").write_text("")
    ran = accel_cli("predict", bundle, "album", "--top-k", "2", "--device", "cpu", "--format", "json")
    broken, blue, red = map(json.loads, ran.out.splitlines())
    assert ran.code == 5
    assert (broken["file"], set(broken)) == ("album/a.png", {"file", "error", "remedy"})
    assert (blue["file"], [guess["label"] for guess in blue["top"]]) == ("album/blue.png", ["blue", "red"])
    assert red["file"] == "album/deep/red.png"
    assert red["top"][0] == {"label": "red", "index": 0, "probability": pytest.approx(SURE, abs=1e-6)}
    for said in (
        "album/a.png cannot be decoded",
        "1 other file skipped",
        "1 of 3 pictures could not be read",
        "to mend it: replace or remove",
    ):
        assert ran.err.count(said) == 1


def test_a_table_has_a_row_a_picture_and_csv_a_row_a_class(bundle: Path, accel_cli: Cli) -> None:
    given = ["predict", bundle, paint("red.png"), "absent.png", "--device", "cpu"]
    ran = accel_cli(*given, "--export-csv", "rows.csv")
    assert ran.code == 5
    assert [line.split() for line in ran.out.splitlines() if "png" in line] == [
        ["red.png", "red", "96.47", "%", "green", "1.77", "%", "blue", "1.77", "%"],
        ["absent.png", "not", "read", "–", "–"],
    ]
    assert "absent.png cannot be read: there is no such file" in ran.err
    rows = list(csv.DictReader(io.StringIO(accel_cli(*given, "--format", "csv").out)))
    assert rows == list(csv.DictReader(io.StringIO(Path("rows.csv").read_text())))
    assert [(row["file"], row["rank"], row["label"]) for row in rows] == [
        ("red.png", "1", "red"),
        ("red.png", "2", "green"),
        ("red.png", "3", "blue"),
        ("absent.png", "", ""),
    ]
    assert float(rows[0]["probability"]) == pytest.approx(SURE, abs=1e-6)
    assert rows[3]["error"].endswith("there is no such file")
    assert "| absent.png | not read | – | – |" in accel_cli(*given, "--format", "markdown").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("empty",), 4, "there are no pictures in empty (2 other files)"),
        (("red.png", "--top-k", "0"), 2, "--top-k"),
        ((), 2, "IMAGE|DIR"),
        (("red.png", "--plot", "sheet.bmp"), 2, "name it .svg, .png or .pdf"),
        (("red.png", "--runtime", "caffe"), 2, "no runtime called 'caffe'"),
        (("red.png", "--runtime", "torchscript:fp32"), 4, "no torchscript engine"),
        (("red.png", "--device", "cuda:99"), 4, "cuda:99"),
    ],
)
def test_what_cannot_be_done_ends_with_the_code_of_its_kind(
    bundle: Path, accel_cli: Cli, arguments: tuple[str, ...], code: int, message: str
) -> None:
    paint("red.png")
    Path("empty").mkdir()
    for name in ("a.txt", "b.mov"):
        (Path("empty") / name).write_text("")
    ran = accel_cli("predict", bundle, *arguments)
    assert ran.code == code, ran.err
    assert message in ran.err
    assert ran.out == ""


def test_a_bundle_that_is_not_there_names_what_makes_it(bundle: Path, accel_cli: Cli) -> None:
    ran = accel_cli("predict", "mine", paint("red.png"), "--device", "cpu")
    assert ran.code == 4
    assert "accel export mine --to onnx" in ran.err


def test_a_variant_is_run_as_it_is_named_and_code_of_a_stranger_needs_trust(
    bundle: Path, accel_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = ["predict", bundle, paint("red.png"), "--runtime", "eager:fp32", "--device", "cpu"]
    assert "by colours, eager:fp32 on cpu" in accel_cli(*asked).err
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    assert accel_cli(*asked).code == 5
    assert accel_cli(*asked, "--trusted").code == 0


def test_a_name_that_is_no_utf_8_is_printed_all_the_same(bundle: Path, accel_cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    paint("red.png").rename(Path(os.fsdecode(b"caf\xe9 $x$.png")))
    for format in ("table", "json", "csv"):
        ran = accel_cli("predict", bundle, ".", "--device", "cpu", "--format", format, "--plot", "sheet.svg")
        assert (ran.code, "red" in ran.out) == (0, True), ran.err
    assert "caf\\udce9" in ran.out


def test_the_plot_shows_the_first_pictures_of_very_many_and_says_so(bundle: Path, accel_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from accel.report import contact_sheet

    monkeypatch.setattr(contact_sheet, "MOST", 2)
    for number in range(3):
        paint(f"album/{number}.png")
    ran = accel_cli("predict", bundle, "album", "--device", "cpu", "--plot", "sheet.svg")
    assert ran.code == 0, ran.err
    assert "the contact sheet has the first 2 pictures" in ran.err
    text = Path("sheet.svg").read_text()
    assert "<!-- colours, onnxruntime:fp32 on cpu, the first 2 of 3 pictures -->" in text
    assert [f"<!-- album/{number}.png -->" in text for number in range(3)] == [True, True, False]


def test_real_photographs_are_recognised_alike_by_two_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accel_cli: Cli) -> None:
    """One train image of each class of CIFAR-10, as PNG, through a shipped model that is exported by the way."""
    from accel.trainers import golden

    monkeypatch.chdir(tmp_path)
    with np.load(Path(golden.__file__).parent / "weights" / "golden-cifar10.npz") as file:
        images, labels = file["images"], file["labels"]
    chosen = {int(label): int(np.flatnonzero(labels == label)[0]) for label in range(10)}
    for label, number in chosen.items():
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(images[number]).save(f"photos/{label}.png")
    runs = {}
    for runtime in ("onnxruntime:fp32", "eager:fp32"):
        ran = accel_cli(
            "predict", "mobilenetv3_small", "photos", "--runtime", runtime, "--device", "cpu", "--top-k", "10", "--format", "json"
        )
        assert ran.code == 0, ran.err
        runs[runtime] = [json.loads(line) for line in ran.out.splitlines()]
        assert [line["top"][0]["index"] for line in runs[runtime]] == list(range(10))
    first, second = ([{guess["label"]: guess["probability"] for guess in line["top"]} for line in lines] for lines in runs.values())
    assert [line["top"][0]["label"] for line in runs["eager:fp32"]][:4] == ["airplane", "automobile", "bird", "cat"]
    for one, other in zip(first, second, strict=True):
        assert max(abs(one[label] - other[label]) for label in one) < 1e-4


def test_a_service_with_a_runtime_and_pillow_needs_nothing_else(bundle: Path) -> None:
    paint("red.png", size=(9, 5))
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "torchvision", "onnx", "onnxscript", "scipy", "matplotlib"}}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
import accel
(found,) = accel.predict({str(bundle)!r}, "red.png", device="cpu").pictures
print(found.top[0].label)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "red\n"), done.stderr
