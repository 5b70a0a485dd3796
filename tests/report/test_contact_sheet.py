"""The contact sheet: every picture with its classes, on one page of a sensible size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from accel.report import contact_sheet
from accel.report.contact_sheet import Cell, columns_of, draw

PIXELS = np.zeros((8, 8, 3), np.uint8)
PIXELS[:, :4] = (255, 0, 0)
BARS = [("cat", 0.75), ("dog", 0.25)]


def sheet(count: int, path: Path) -> tuple[int, int]:
    """Draw `count` pictures with two bars each; returns width and height in pixels."""
    image = pytest.importorskip("PIL.Image")
    draw(path, [Cell(f"{number}.png", PIXELS, BARS) for number in range(count)], title="tiny, eager:fp32 on cpu")
    return image.open(path).size


@pytest.mark.parametrize(("count", "widest"), [(1, 600), (5, 1100), (100, 4000)])
def test_the_sheet_grows_with_its_pictures_to_a_page_and_not_to_a_strip(tmp_path: Path, count: int, widest: int) -> None:
    width, height = sheet(count, tmp_path / "sheet.png")
    assert 400 <= width <= widest
    assert 0.7 <= width / height <= 2


def test_columns_follow_the_number_of_pictures() -> None:
    assert [columns_of(count, 2.0) for count in (1, 2, 5, 30, 200)] == [1, 1, 2, 4, 12]


def test_every_picture_is_there_with_its_name_classes_and_shares(tmp_path: Path) -> None:
    broken = Cell("torn.jpg", None, [], "torn.jpg cannot be decoded: the file ends in its middle")
    draw(tmp_path / "a.svg", [Cell("cat.png", PIXELS, BARS), broken, Cell("grey.png", PIXELS[..., :1], BARS)], title="tiny")
    text = (tmp_path / "a.svg").read_text()
    assert text.count("<image ") == 2
    for said, times in {"tiny": 1, "cat.png": 1, "cat": 2, "75.0 %": 2, "25.0 %": 2, "torn.jpg": 1, "not read": 1}.items():
        assert text.count(f"<!-- {said} -->") == times, said
    assert "<!-- ends in its middle -->" in text


def test_a_picture_is_shown_with_the_pixels_that_the_model_saw(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    draw(tmp_path / "a.png", [Cell("cat.png", PIXELS, BARS)], title="tiny")
    found = np.array(image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    side = round(contact_sheet.PICTURE * contact_sheet.DPI)
    red = int((found == (255, 0, 0)).all(axis=1).sum())
    assert red == pytest.approx(side * side / 2, rel=0.03)


def test_a_long_name_keeps_its_end_a_dollar_is_no_formula_and_a_wide_class_is_cut(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    cells = [Cell("folder/" * 30 + "$a_1$.png", PIXELS, [("a class with a name that would run through its own share", 1.0)])]
    draw(tmp_path / "a.svg", [*cells, Cell("猫.png", PIXELS, BARS)], title="tiny")
    text = (tmp_path / "a.svg").read_text()
    assert "folder/$a_1$.png -->" in text
    assert "<!-- …" in text
    assert "<!-- a class with a name" in text
    assert "its own share" not in text
    assert not recwarn.list


def test_more_classes_than_fit_are_left_out(tmp_path: Path) -> None:
    draw(tmp_path / "a.svg", [Cell("a.png", PIXELS, [(f"class {number}", 0.02) for number in range(50)])], title="tiny")
    text = (tmp_path / "a.svg").read_text()
    assert "<!-- class 9 -->" in text
    assert "<!-- class 10 -->" not in text


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "a.png").write_bytes(b"old")

    def fails(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        draw(tmp_path / "a.png", [Cell("a.png", PIXELS, BARS)], title="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
