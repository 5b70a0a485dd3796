"""`accel report`: files, markers, drift and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_sets import COMMAND, GPU, write_set

from accel.errors import UsageError
from accel.report.markdown import code, escaped
from accel.report.sections import open_sections
from accel.report.update import updated

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
