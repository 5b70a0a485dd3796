"""`accel report`: files, markers, drift and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_sets import COMMAND, GPU, write_set

from accel import api
from accel.errors import UsageError
from accel.report.markdown import code, escaped
from accel.report.sections import open_sections
from accel.report.update import updated, updated_files

Cli = Callable[..., Any]

README = "# Title\n\n<!-- accel:results {} -->\nold\n<!-- /accel:results -->\n\ntail\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "resnet18-h200")


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(README.format("resnet18"))
    return path


def test_markdown_is_printed_where_no_file_is_named(accel_cli: Cli, folder: Path) -> None:
    ran = accel_cli("report", folder)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0] == "## resnet18 (resnet18-h200)"
    assert lines[2].startswith("compile:fp16 is the fastest of 4 ranked variants: 202.0 µs from call to result (median) on NVIDIA H200, ")
    assert "| `compile:fp16` | 95.20 | 3 | 202.0 | 1.020 | 210.5 | 213.1 | 191.9 | 262.6 | 44.7 | OK |" in lines
    assert "* `torchscript:fp16` INVALID: 12 % of predictions changed; to mend it: export again" in lines
    flags = lines.index("| flagged | ENQUEUE\\_BLOCKED |")
    assert lines[flags + 2] == "| `onnxruntime:fp16` | all |"
    assert lines[flags + 4].startswith("* ENQUEUE\\_BLOCKED: the call waits for the GPU itself")
    assert lines[flags + 4].endswith(". Remedy: use span\\_us, which has no gate.")
    assert "* commit: 0123abc (with changes that are not committed)" in lines
    assert f"    {COMMAND}" in lines
    ledger = lines.index("| cold start | build s | ready s | first call ms | pays back after calls |")
    assert lines[ledger + 2] == "| `compile:fp16` | 10.0 | 10.0 | 1.50 | 9,901 |"
    assert lines[ledger + 6] == "| `torchscript:fp16` | 2.0 | 2.0 | 1.50 | – |"
    assert lines[ledger + 8].startswith("Ready = export + load + build: the export of an engine file is counted once")
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables} == {12, 6, 3}


def test_a_page_is_written_once_and_left_alone_after_that(accel_cli: Cli, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    out = tmp_path / "out" / "report.html"
    assert "written" in accel_cli("report", folder, "--html", out).err
    before = out.stat().st_mtime_ns, out.stat().st_ino
    ran = accel_cli("report", folder, "--html", out)
    assert (ran.code, ran.out) == (0, "")
    assert "unchanged" in ran.err
    assert (out.stat().st_mtime_ns, out.stat().st_ino) == before
    assert accel_cli("report", folder, "--html", out, "--check").code == 0


def test_update_replaces_what_is_between_the_markers_and_nothing_else(accel_cli: Cli, folder: Path, readme: Path) -> None:
    assert accel_cli("report", folder, "--update", readme).code == 0
    text = readme.read_text()
    head, rest = text.split("<!-- accel:results resnet18 -->\n")
    between, tail = rest.split("<!-- /accel:results -->")
    assert (head, tail) == ("# Title\n\n", "\n\ntail\n")
    assert between.startswith("\ncompile:fp16 is the fastest")
    assert "\nold\n" not in between
    assert "| `eager:fp32` | 95.22 | 0 | 1010 |" in between
    assert "\nFlagged in some latency: ENQUEUE\\_BLOCKED (`onnxruntime:fp16`). `accel report` of the set says" in between
    assert "cold start" not in between
    # A second run finds its own text.
    assert accel_cli("report", folder, "--update", readme, "--check").code == 0


def test_check_writes_nothing_and_exits_with_3_on_drift(accel_cli: Cli, folder: Path, readme: Path, tmp_path: Path) -> None:
    before = readme.read_text()
    ran = accel_cli("report", folder, "--update", readme, "--markdown", tmp_path / "r.md", "--check")
    assert ran.code == 3
    assert "README.md" in ran.err
    assert "r.md" in ran.err
    assert readme.read_text() == before
    assert not (tmp_path / "r.md").exists()
    accel_cli("report", folder, "--update", readme)
    write_set(folder, {**GPU, "compile:fp16": {**GPU["compile:fp16"], "host_us": 199}})
    assert accel_cli("report", folder, "--update", readme, "--check").code == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no markers\n", "has no markers for the set resnet18-h200 of resnet18"),
        ("<!-- accel:results other -->\n<!-- /accel:results -->\n", "has no markers for the set"),
        ("text <!-- accel:results resnet18 --> inline\n<!-- /accel:results -->\n", "closes what was never opened"),
        ("<!-- accel:results resnet18 -->\nno end\n", "is never closed"),
        ("<!-- /accel:results -->\n", "line 1: <!-- /accel:results --> closes what was never opened"),
        ("<!-- accel:results a -->\n<!-- accel:results resnet18 -->\n<!-- /accel:results -->\n", "is opened before a is closed"),
        (README.format("resnet18") * 2, "has the markers of resnet18 twice"),
    ],
)
def test_markers_that_are_missing_or_wrong_are_a_usage_error(accel_cli: Cli, folder: Path, readme: Path, text: str, said: str) -> None:
    readme.write_text(text)
    ran = accel_cli("report", folder, "--update", readme, "--markdown", readme.parent / "r.md")
    assert ran.code == 2
    assert said in ran.err
    assert "to mend it" in ran.err
    assert readme.read_text() == text
    # Nothing is written before all is known to be good.
    assert not (readme.parent / "r.md").exists()


def test_each_set_finds_its_own_markers(folder: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "mobile", {"eager:fp32": {"host_us": 77, "model": "mobilenet"}})
    second = write_set(tmp_path / "resnet18-b200")
    text = README.format("mobilenet") + README.format("resnet18-b200") + README.format("resnet18")
    found = updated(text, open_sections([folder, other, second]), Path("README.md"))
    blocks = [part.split("<!-- /accel:results -->")[0] for part in found.split("<!-- accel:results ")[1:]]
    assert [next(line for line in block.splitlines() if line.startswith("* set: ")) for block in blocks] == [
        "* set: mobile",
        "* set: resnet18-b200",
        "* set: resnet18-h200",
    ]


def test_a_models_markers_do_not_take_one_of_two_sets(folder: Path, tmp_path: Path) -> None:
    sections = open_sections([folder, write_set(tmp_path / "resnet18-b200")])
    with pytest.raises(UsageError, match="fit 2 sets: resnet18-h200, resnet18-b200"):
        updated(README.format("resnet18"), sections, Path("README.md"))


def shown(text: str) -> list[str | None]:
    """Of each block of a text: the name of the set that it shows, None where it is as it was."""
    blocks = [part.split("<!-- /accel:results -->")[0] for part in text.split("<!-- accel:results ")[1:]]
    return [next((line.removeprefix("* set: ") for line in block.splitlines() if line.startswith("* set: ")), None) for block in blocks]


class TestSeveralFiles:
    @pytest.fixture
    def b200(self, tmp_path: Path) -> Path:
        return write_set(tmp_path / "resnet18-b200")

    @pytest.fixture
    def page(self, tmp_path: Path) -> Path:
        path = tmp_path / "results" / "sets.md"
        path.parent.mkdir()
        path.write_text(README.format("resnet18-b200"))
        return path

    def test_each_gets_the_sets_whose_markers_it_has(self, accel_cli: Cli, folder: Path, b200: Path, readme: Path, page: Path) -> None:
        readme.write_text(README.format("resnet18-h200"))
        ran = accel_cli("report", folder, b200, "--update", readme, "--update", page)
        assert (ran.code, ran.err.count("written: ")) == (0, 2)
        assert shown(readme.read_text()) == ["resnet18-h200"]
        assert shown(page.read_text()) == ["resnet18-b200"]
        assert page.read_text().startswith("# Title\n\n<!--")
        assert page.read_text().endswith("-->\n\ntail\n")
        again = accel_cli("report", folder, b200, "--update", readme, "--update", page)
        assert (again.code, again.err.count("unchanged: ")) == (0, 2)

    def test_a_set_may_stand_in_several(self, folder: Path, readme: Path, page: Path) -> None:
        page.write_text(README.format("resnet18-h200") + README.format("elsewhere"))
        done = api.report(folder, update=[str(readme), page])
        assert done.changed == (readme, page)
        # The model's markers have no other set to hold, though this one has its own in the other file.
        assert shown(readme.read_text()) == ["resnet18-h200"]
        assert shown(page.read_text()) == ["resnet18-h200", None]

    def test_one_path_or_none_is_enough_for_the_api(self, folder: Path, readme: Path) -> None:
        assert api.report(folder, update=str(readme)).changed == (readme,)
        assert api.report(folder, update=(readme,)).unchanged == (readme,)
        assert api.report(folder, update=()).changed == ()
        with pytest.raises(UsageError, match="no file to check"):
            api.report(folder, update=(), check=True)

    def test_check_covers_all(self, accel_cli: Cli, folder: Path, b200: Path, readme: Path, page: Path) -> None:
        asked = ("report", folder, b200, "--update", readme, "--update", page)
        assert accel_cli(*asked).code == 0
        assert accel_cli(*asked, "--check").code == 0
        for drifted, other in ((readme, page), (page, readme)):
            good = drifted.read_text()
            old = good.replace("202.0", "201.0")
            assert old != good
            drifted.write_text(old)
            ran = accel_cli(*asked, "--check")
            assert ran.code == 3
            assert str(drifted) in ran.err
            assert str(other) not in ran.err
            assert drifted.read_text() == old
            drifted.write_text(good)

    def test_a_set_that_none_has_markers_for_is_refused_and_nothing_is_written(
        self, accel_cli: Cli, folder: Path, b200: Path, readme: Path, page: Path
    ) -> None:
        readme.write_text("# Title\n")
        before = page.read_text()
        ran = accel_cli("report", folder, b200, "--update", readme, "--update", page)
        assert ran.code == 2
        said = " ".join(ran.err.split())
        assert f"{readme} has no markers for the set resnet18-h200 of resnet18, nor has {page}" in said
        assert "add two lines: <!-- accel:results resnet18-h200 --> and <!-- /accel:results -->" in said
        assert (readme.read_text(), page.read_text()) == ("# Title\n", before)
        # A file of sets that were not given is no error as long as each given one has a place.
        assert accel_cli("report", b200, "--update", readme, "--update", page).code == 0
        assert readme.read_text() == "# Title\n"

    def test_a_set_with_markers_of_its_own_elsewhere_is_no_rival_for_its_models(self, folder: Path, b200: Path, tmp_path: Path) -> None:
        a, b = Path("README.md"), Path("sets.md")
        texts = {a: README.format("resnet18"), b: README.format("resnet18-b200")}
        done = updated_files(texts, open_sections([b200, folder]))
        assert [shown(done[a]), shown(done[b])] == [["resnet18-h200"], ["resnet18-b200"]]
        # Two that have none are rivals still, and only they.
        third = write_set(tmp_path / "resnet18-a100")
        with pytest.raises(UsageError, match=r"the markers of resnet18 in README\.md fit 2 sets: resnet18-h200, resnet18-a100\n"):
            updated_files(texts, open_sections([b200, folder, third]))

    def test_where_every_set_has_its_own_markers_a_models_hold_what_their_file_has_not(self, folder: Path, b200: Path) -> None:
        a, b = Path("README.md"), Path("sets.md")
        texts = {a: README.format("resnet18"), b: README.format("resnet18-b200") + README.format("resnet18-h200")}
        with pytest.raises(UsageError, match=r"in README\.md fit 2 sets: resnet18-h200, resnet18-b200\n"):
            updated_files(texts, open_sections([folder, b200]))
        texts[a] += README.format("resnet18-h200")
        done = updated_files(texts, open_sections([folder, b200]))
        assert shown(done[a]) == ["resnet18-b200", "resnet18-h200"]

    def test_one_file_named_twice_is_said(
        self, accel_cli: Cli, folder: Path, readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        before = readme.read_text()
        (tmp_path / "link.md").symlink_to(readme)
        for other in ("README.md", tmp_path / "x" / ".." / "README.md", "link.md"):
            ran = accel_cli("report", folder, "--update", readme, "--update", other)
            assert ran.code == 2
            assert f"--update was given {other} twice" in " ".join(ran.err.split())
        ran = accel_cli("report", folder, "--update", readme, "--markdown", "link.md")
        assert (ran.code, "one file was named for two purposes" in ran.err) == (2, True)
        assert readme.read_text() == before


def test_two_sets_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    twin = write_set(tmp_path / "other" / folder.name, {name: {**values, "set_id": "another"} for name, values in GPU.items()})
    with pytest.raises(UsageError, match="fit 2 sets"):
        updated(README.format(folder.name), open_sections([folder, twin]), Path("README.md"))


def test_line_ends_stay_as_they_are(folder: Path) -> None:
    text = README.format("resnet18").replace("\n", "\r\n")
    found = updated(text, open_sections([folder]), Path("README.md"))
    assert found.count("\n") == found.count("\r\n") > 20
    assert updated(found, open_sections([folder]), Path("README.md")) == found


def test_requests_that_cannot_be_carried_out_are_usage_errors(accel_cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert accel_cli("report", folder, "--check").code == 2
    assert accel_cli("report", tmp_path / "nothing").code == 2
    assert accel_cli("report", folder, "--update", tmp_path / "nothing.md").code == 2
    assert accel_cli("report", folder, "--html", tmp_path / "x", "--markdown", tmp_path / "x").code == 2
    assert accel_cli("report", folder, "--markdown", folder).code == 2


def test_a_missing_package_names_its_extra_and_leaves_markdown_working(
    accel_cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    ran = accel_cli("report", folder, "--html", tmp_path / "x.html")
    assert ran.code == 4
    assert "accel-engines[report]" in ran.err
    assert accel_cli("report", folder, "--markdown", tmp_path / "x.md").code == 0


def test_text_of_a_row_is_text_in_markdown() -> None:
    assert escaped("a|b <script> *x* `y` [z]\nnext") == r"a\|b &lt;script&gt; \*x\* \`y\` \[z\] next"
    assert code("compile:fp16+max-autotune") == "`compile:fp16+max-autotune`"
    assert code("a`|<b>") == r"a\`\|&lt;b&gt;"
