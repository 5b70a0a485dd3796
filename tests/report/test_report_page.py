"""The page: whole, closed to the outside, escaped, and with the numbers of the rows."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_sets import COMMAND, GPU, section, write_set

from accel.bench.report import COLUMNS
from accel.report import about, distribution, svg
from accel.report.markdown import document
from accel.report.sections import open_sections

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from accel.report.html import page, tight

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Seen(HTMLParser):
    """Elements with attributes in order, text by element, and whether every element was closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def within(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    one = section(tmp_path_factory.mktemp("sets") / "resnet18-h200")
    return one, page([one])


def test_every_part_stands_in_its_order(made: tuple[Any, str]) -> None:
    seen = Seen(made[1])
    assert seen.open == []
    assert seen.within("h3") == [
        *("Table", "Figures", "Distribution", "Over time", "Accuracy and latency", "Cold start"),
        *("Cold-start ledger", "When a build pays back", "Environment", "Flags", "To repeat it"),
    ]
    assert made[1].index('class="verdict"') < made[1].index("<table>") < made[1].index("<details>")
    assert [tag for tag, _ in seen.tags].count("svg") == 4
    assert seen.within("code") == [COMMAND]


def test_nothing_in_the_page_leads_outside(made: tuple[Any, str]) -> None:
    seen = Seen(made[1])
    assert "://" not in made[1]
    assert not {"script", "link", "iframe", "img", "object", "image"} & {tag for tag, _ in seen.tags}
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on") or name == "src"]
    assert "default-src 'none'" in made[1]
    for href in (attributes["href"] for _, attributes in seen.tags if "href" in attributes):
        assert str(href).startswith("#")


def test_what_a_row_says_is_text_and_never_markup(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    variants = {
        "eager:fp32": {"host_us": 100, "command": f"accel bench '</code>{attack}'", "plan": attack, "flags": [attack]},
        f"{attack}:fp32": {"host_us": 200, "model": "resnet18"},
        "x<img src=x>:fp16": {"verdict": "MISSING", "reason": attack, "remedy": f'"{attack}'},
    }
    text = page([section(tmp_path / "s", variants)])
    seen = Seen(text)
    assert seen.open == []
    assert not {"script", "img"} & {tag for tag, _ in seen.tags}
    assert f"{attack}:fp32" in seen.within("th")
    assert text.count("<script") == 0


def test_the_table_shows_the_numbers_of_the_lines(made: tuple[Any, str]) -> None:
    one, text = made
    body = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", text.split("</table>")[0], flags=re.DOTALL)
    assert [name for name, _ in body] == [line.variant for line in one.lines]
    names = ["top-1 %", "flips", "host p50", "host p95", "host p99", "device p50", "e2e p50", "MB"]
    for line, (_, cells) in zip(one.lines, body, strict=True):
        shown = Seen(cells).within("td")
        assert shown[:8] == [COLUMNS[name](line) or "–" for name in names]
        assert shown[8] == line.verdict
        for at, kind, q in ((2, "host_us", 0.5), (3, "host_us", 0.95), (4, "host_us", 0.99), (5, "device_us", 0.5), (6, "e2e_us", 0.5)):
            raw = [samples for key, samples in one.samples.items() if key.startswith(f"{line.variant}/") and key.endswith(f"/{kind}")]
            if raw:
                ordered = np.sort(np.concatenate(raw))
                assert float(shown[at]) == pytest.approx(ordered[math.ceil(q * len(ordered)) - 1] / 1000, abs=0.5, rel=5e-4)


def test_the_ledger_stands_below_the_figures_with_its_sentence(made: tuple[Any, str]) -> None:
    ledger = made[1].split("<h3>Cold-start ledger</h3>")[1].split("<h3>")[0]
    seen = Seen(ledger)
    assert seen.within("th")[:5] == ["variant", "build s", "ready s", "first call ms", "pays back after calls"]
    assert seen.within("td")[:8] == ["10.0", "10.0", "1.50", "9,901", "1.0", "1.0", "1.50", "at once"]
    assert "the export of an engine file is counted once" in seen.within("p")[0]
    assert "tensorrt:fp16" not in ledger


def test_the_figures_say_the_numbers_of_the_rows(made: tuple[Any, str]) -> None:
    seen = Seen(made[1])
    # Time to build and first call of the five variants that were built.
    assert {"10.0", "2.0", "1.0", "1.50"} <= set(seen.within("text"))
    assert {"compile:fp16", "torchscript:fp16", "round 1", "round 3"} <= set(seen.within("text"))
    assert "tensorrt:fp16" not in seen.within("text")


def test_the_key_names_every_drawn_variant_and_says_which_may_not_be_used(made: tuple[Any, str]) -> None:
    key = made[1].split('<ul class="key">')[1].split("</ul>")[0]
    names = ["compile:fp16", "onnxruntime:fp16", "eager:fp16", "eager:fp32", "torchscript:fp16"]
    assert Seen(key).within("li") == names
    assert Seen(key).within("span") == ["INVALID"]


def test_more_variants_than_colours_differ_in_their_dashes(tmp_path: Path) -> None:
    text = page([section(tmp_path / "s", {f"r{number}:fp32": {"host_us": 100 + number} for number in range(9)}, rounds=1)])
    assert '<i class="c8 b0"></i>r7:fp32' in text
    assert '<i class="c1 b1"></i>r8:fp32' in text
    curves = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)[0]
    # Grid and axes are solid: the ninth curve alone is broken, in the first one's colour.
    assert re.findall(r'stroke-dasharray[^"]*?stroke: ([^;]*);', curves) == ["var(--s1)"]


def test_the_raw_rows_come_back_as_json(made: tuple[Any, str]) -> None:
    one, text = made
    raw = "".join(Seen(text[text.index('<pre class="raw">') : text.index("</details>")]).within("pre"))
    kept = [{key: value for key, value in row.items() if value is not None} for row in one.rows]
    assert [json.loads(line) for line in raw.splitlines()] == kept


def test_the_conditions_and_the_flag_with_its_remedy_are_there(made: tuple[Any, str]) -> None:
    seen = Seen(made[1])
    facts = dict(zip(seen.within("dt"), seen.within("dd"), strict=True))
    assert facts["machine"] == "NVIDIA H200, driver 580.1, CUDA 13.0 | Some CPU, Linux 6.1"
    assert facts["commit"] == "0123abc (with changes that are not committed)"
    assert facts["plan"].startswith("quick plan")
    assert "ENQUEUE_BLOCKED" in seen.within("strong")
    assert "(onnxruntime:fp16): the call waits for the GPU itself (or made over about 1,000 launches)" in made[1]
    assert "; to mend it: use span_us, which has no gate</li>" in made[1]


def test_a_flag_without_a_remedy_is_shown_plainly(tmp_path: Path) -> None:
    one = section(tmp_path / "s", {"eager:fp32": {"host_us": 100, "flags": ["SOMETHING_NEW"]}})
    assert about.flags(one) == [about.Flagged("SOMETHING_NEW", ("eager:fp32",))]
    assert about.flags(one, {"SOMETHING_NEW": ("it is new", "wait")}.get)[0].remedy == "wait"
    assert "<strong>SOMETHING_NEW</strong> (eager:fp32)</li>" in page([one])


def test_the_interval_stands_beside_the_median_where_every_round_has_one(tmp_path: Path) -> None:
    variants = {"eager:fp32": {"host_us": 100}, "compile:fp32": {"host_us": 50}}
    folder = write_set(tmp_path / "s", variants)
    assert "95 % interval" not in page(open_sections([folder])).split("</thead>")[0]
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in (row for row in rows if row["variant"] == "eager:fp32"):
        row["p50_lo_us"], row["p50_hi_us"] = 99.0 + row["round"], 1100.4 + row["round"]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page(open_sections([folder]))
    assert "<th>host p50</th><th>95 % interval</th>" in text
    assert "<td>101.0</td><td>99.0 – 1102</td>" in text
    assert "<td>50.5</td><td>–</td>" in text


@pytest.mark.parametrize(
    ("variants", "keep", "figures", "said"),
    [
        (GPU, False, 2, "There are no raw samples of this set."),
        ({"compile:fp16": GPU["compile:fp16"]}, True, 4, "is the only variant that may be ranked"),
        ({"tensorrt:fp16": GPU["tensorrt:fp16"]}, True, 0, "Nothing may be ranked"),
        ({"torchscript:fp16": GPU["torchscript:fp16"]}, True, 3, "Nothing may be ranked"),
    ],
    ids=["no samples", "one variant", "nothing measured", "measured and invalid"],
)
def test_a_set_that_lacks_something_still_has_its_page(tmp_path: Path, variants: Any, keep: bool, figures: int, said: str) -> None:
    text = page([section(tmp_path / "s", variants, keep=keep)])
    seen = Seen(text)
    assert seen.open == []
    assert [tag for tag, _ in seen.tags].count("svg") == figures
    assert said in text


def test_a_percentile_without_enough_samples_is_called_insufficient(made: tuple[Any, str]) -> None:
    one, text = made
    assert "insufficient" not in text
    few = dataclasses.replace(one.lines[0].latency["host_us"], p99_us=None)
    line = dataclasses.replace(one.lines[0], latency={**one.lines[0].latency, "host_us": few})
    short = dataclasses.replace(one, lines=(line, *one.lines[1:]))
    assert "n&lt;662 = insufficient n for a p99." in page([short])
    assert "n&lt;662 = insufficient n for a p99." in document([short])


def test_several_sets_stay_apart_and_no_id_is_used_twice(tmp_path: Path) -> None:
    fast = {name: {**given, "gpu_name": "NVIDIA B200"} for name, given in GPU.items() if name != "compile:fp16"}
    sets = open_sections([write_set(tmp_path / "first"), write_set(tmp_path / "second", fast)])
    text = page(sets)
    seen = Seen(text)
    ids = [str(attributes["id"]) for _, attributes in seen.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | {str(a["href"])[1:] for _, a in seen.tags if a.get("href")}
    assert used
    assert used <= set(ids)
    verdicts = re.findall(r'<p class="verdict">(.*?)</p>', text)
    assert [verdict.split(" is ")[0] for verdict in verdicts] == ["compile:fp16", "onnxruntime:fp16"]
    assert "compile:fp16" not in text[text.index('id="set2"') :]
    assert seen.within("a") == ["first", "second"]


def test_the_same_set_gives_the_same_bytes(made: tuple[Any, str]) -> None:
    assert page([made[0]]) == made[1]


def test_the_figures_take_the_colours_of_the_page(made: tuple[Any, str]) -> None:
    figures = re.findall(r"<svg.*?</svg>", made[1], flags=re.DOTALL)
    assert all("currentColor" in figure and "var(--s" in figure for figure in figures)
    # Nothing of matplotlib's own is left that would vanish on a dark page, nor a stand-in for a colour.
    assert not re.findall(r"(?:fill|stroke): (?:#[0-9a-f]+|black|white)", "".join(figures))
    used = set(re.findall(r"var\((--\w+)\)", made[1]))
    light, dark = (set(re.findall(r"(--\w+):", part)) for part in made[1].split("@media (prefers-color-scheme: dark)")[:2])
    assert used <= light
    assert used <= dark


def test_a_distribution_keeps_its_ends_and_its_shares() -> None:
    x, share = distribution.curve(np.arange(1000, 0, -1))
    assert (x[0], x[-1], share[0], share[-1]) == (1, 1000, 0.1, 100.0)
    assert np.array_equal(share * 10, x)
    assert len(x) == distribution.POINTS


def test_a_course_keeps_the_order_of_the_calls_and_the_worst_of_them() -> None:
    samples = np.full(480, 10.0)
    samples[470] = 99.0
    middles, low, middle, high = distribution.course(samples)
    assert (len(middles), middles[0]) == (24, pytest.approx(1 / 48))
    assert (set(low), set(middle), list(high[-2:])) == ({10.0}, {10.0}, [10.0, 99.0])


def test_a_number_keeps_its_unit_on_the_line() -> None:
    assert tight("303.6 µs, top-1 95.7 %, p = 1.0, 8.0 s longer, 9 calls, 2 sets") == (
        "303.6\xa0µs, top\u20111 95.7\xa0%, p\xa0=\xa01.0, 8.0\xa0s longer, 9\xa0calls, 2 sets"
    )


def test_an_svg_file_becomes_an_element() -> None:
    file = (
        '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "a" "http://a">\n<svg xmlns:xlink="http://x" width="9pt" height="8pt" viewBox="0 0 9 8" '
        'xmlns="http://s">\n <metadata>\n http://m </metadata><g id="unused"><path id="a" d="M 1.23456 2" style="stroke: #fe0001"/>'
        '<use xlink:href="#a" clip-path="url(#b)"/><clipPath id="b"/></g></svg>\n'
    )
    assert svg.inline(file, "f1") == (
        '<svg viewBox="0 0 9 8">\n<g><path id="f1-a" d="M 1.23 2" style="stroke: var(--s1)"/>'
        '<use href="#f1-a" clip-path="url(#f1-b)"/><clipPath id="f1-b"/></g></svg>'
    )
