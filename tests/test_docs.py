"""Every command and snippet of docs/ runs, page by page, in a small world (docs_world); what the pages name exists."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer
from docs_blocks import REASONS, Block, blocks, unlike

for _package in ("torch", "onnx", "onnxruntime", "PIL.Image", "scipy", "rich", "jinja2", "matplotlib"):
    pytest.importorskip(_package)

import docs_world  # noqa: E402

from accel.cli import app  # noqa: E402

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LANGUAGES = ("console", "python", "toml", "text")
FOREIGN = {"--help", "--nproc-per-node", "--pid=host", "--system-site-packages"}
"""Options on our pages that every command has, or another program."""


@pytest.fixture(scope="module", autouse=True)
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        docs_world.build(patch, tmp_path_factory.mktemp("docs"))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """What a page puts into the environment (ACCEL_TRUSTED_KEYS) is gone after it."""
    with mock.patch.dict(os.environ):
        yield


def commands() -> dict[str, Any]:
    """`export`, `data fetch` and so on → the parser of each."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found.update({name: command} if below is None else {f"{name} {sub}": item for sub, item in below.items()})
    return found


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")}


def parse(words: list[str]) -> None:
    """Parse `accel …` without running it: an option that is gone, or a choice, ends in typer's own error."""
    known = commands()
    name = next((text for text in (" ".join(words[:2]), words[0]) if text in known), None)
    assert name is not None, f"accel has no command {' '.join(words[:2])}"
    known[name].make_context(f"accel {name}", words[len(name.split()) :])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_types_runs_and_prints_what_it_shows(
    page: Path, accel_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_net", raising=False)  # of an earlier run in this process
    # The handler of an earlier test writes to a stream that is closed.
    monkeypatch.setattr(logging.getLogger("accel"), "handlers", [])
    docs_world.local_copy(tmp_path / "cifar-10-batches-py")
    printed = ""
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.file is not None:
            (tmp_path / block.file).write_text("\n".join(block.body) + "\n", encoding="utf-8")
        elif block.language == "text":
            assert unlike(block.body, printed) == [], f"{where}: it printed\n{printed}"
        elif block.language == "python" and block.reason is None:
            printed = run_python(block)
        elif block.language == "console":
            run_console(block, accel_cli, where)


def run_python(block: Block) -> str:
    """What a snippet prints; each has names of its own."""
    told = io.StringIO()
    code = compile("\n" * block.line + "\n".join(block.body), str(block.page), "exec")
    with contextlib.redirect_stdout(told):
        exec(code, {"__name__": "__main__"})
    return told.getvalue()


def run_console(block: Block, accel_cli: Callable[..., Any], where: str) -> None:
    listed = block.commands()
    for number, (words, shown) in enumerate(listed, start=1):
        if block.reason is not None:
            if words[0] == "accel":
                parse(words[1:])
            continue
        assert words[0] == "accel", f"{where}: {words[0]} is no command of accel; say in the info string why it is not run"
        ran = accel_cli(*(found for word in words[1:] for found in expanded(word)))
        expected = block.code if number == len(listed) else 0
        assert ran.code == expected, f"{where}: {' '.join(words)} ended with {ran.code}\n{ran.err}"
        assert unlike(shown, ran.out + "\n" + ran.err) == [], f"{where}: {' '.join(words)} printed\n{ran.out}\n{ran.err}"


def expanded(word: str) -> list[str]:
    """As the shell expands a pattern."""
    return (sorted(map(str, Path().glob(word))) or [word]) if "*" in word else [word]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_block_has_a_language_that_is_known_and_a_reason_if_it_is_not_run(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page.name}, line {block.line}: {block.language!r}"
        strange = [word for word in block.words if word not in REASONS and not word.startswith(("exit=", "file="))]
        assert not strange, f"{page.name}, line {block.line}: {strange}"
        assert block.language != "toml" or block.file, f"{page.name}, line {block.line}: a toml block is a file: say which"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_option_and_command_that_a_page_names_exists(page: Path) -> None:
    known = commands()
    anywhere = {option for command in known.values() for option in options_of(command)}
    own = {option for name, command in known.items() if name.split()[0] == page.stem for option in options_of(command)}
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", text):
        # On the page of a command an option is that command's, unless another command stands before it.
        elsewhere = page.parent.name != "commands" or span.startswith("accel ")
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*(?:=host)?", span):
            assert option in (anywhere if elsewhere else own) | FOREIGN, f"{page.name}: `{span}`"
        if span.startswith("accel "):
            named = span.split()[1:3]
            group = {name.split()[0] for name in known}
            assert named[0].startswith("--") or named[0] in group | {"COMMAND"}, f"{page.name}: `{span}`"


def test_every_command_has_its_page_and_every_page_its_command() -> None:
    assert {page.stem for page in (DOCS / "commands").glob("*.md")} == {name.split()[0] for name in commands()}


def test_every_page_is_in_the_index_and_every_link_leads_somewhere() -> None:
    linked = set()
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]+)#?([^)]*)\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            found = (page.parent / target).resolve()
            assert found.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(found), f"{page.name} links to {target}#{anchor}"
            if page == DOCS / "README.md":
                linked.add(found)
    assert set(PAGES) - linked == {DOCS / "README.md"}


def test_the_links_of_the_readme_and_of_the_results_lead_somewhere() -> None:
    root = DOCS.parent
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "results").rglob("*.md"))]
    assert root / "results" / "h200" / "sets.md" in pages
    for page in pages:
        for target, anchor in re.findall(r"\]\(([^)#\s]+)#?([^)\s]*)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                found = (page.parent / target).resolve()
                assert found.exists(), f"{page} links to {target}"
                assert not anchor or anchor in anchors(found), f"{page} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_lines_of_the_pages_fit_a_screen() -> None:
    wide = [f"{page.name}:{number}" for page in PAGES for number, line in enumerate(page.read_text().splitlines(), 1) if len(line) >= 160]
    assert not wide


def test_the_closed_lists_are_explained_whole() -> None:
    from accel.bench import columns, comparison, flags, stability

    text = (DOCS / "reading-the-numbers.md").read_text(encoding="utf-8")
    lists = [*flags.FLAGS, *flags.REFUSALS, *columns.VERDICTS, *columns.LATENCY_KINDS, *comparison.VERDICTS, stability.STABLE]
    assert [name for name in lists if f"`{name}`" not in text] == []


def test_a_command_that_lost_an_option_is_noticed_without_being_run() -> None:
    parse(["export", "resnet18", "--to", "trt", "--fp16"])
    with pytest.raises(typer.BadParameter.__mro__[2], match="--frobnicate"):
        parse(["export", "resnet18", "--frobnicate"])
    with pytest.raises(AssertionError, match="accel has no command launch"):
        parse(["launch"])


def test_what_is_shown_is_held_against_what_was_printed() -> None:
    printed = "variant    top1    verdict\n─────────\neager:fp32    93.1    OK\nort:fp32    1.0    INVALID\naccel: 12 images of cifar10\n"
    assert unlike(["variant   verdict", "─────", "eager:fp32   99.9   OK", "…"], printed) == []
    assert unlike(["accel: 10,000 images of cifar10"], printed) == []
    assert unlike(["accel: 10,000 images of …"], printed) == []
    assert unlike(["variant   flips", "─────", "eager:fp32   99.9   OK"], printed) == ["variant   flips"]
    assert unlike(["variant   verdict", "─────", "ort:fp32   99.9   OK"], printed) == ["ort:fp32   99.9   OK"]
    assert unlike(["variant   verdict", "─────", "trt:fp32   99.9   OK"], printed) == ["trt:fp32   99.9   OK"]
    assert unlike(["all measured COV: the standard deviation is over 2.5 % of the mean; …"], printed) == []
    assert unlike(["all measured COV: the median is low; to mend it: …"], printed) == ["all measured COV: the median is low; to mend it: …"]
    assert unlike(["| `a` | 2 |", "| `b` | 2 |"], "| `a` | 1 |") == ["| `b` | 2 |"]
    assert unlike(["accel: 10,000 images of cifar100"], printed) == ["accel: 10,000 images of cifar100"]
