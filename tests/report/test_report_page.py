"""The page: whole, closed to the outside, escaped, and with the numbers of the rows."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_sets import COMMAND, GPU, section, write_set

from accel.bench.report import COLUMNS
from accel.bench.summary import DIAGNOSTICS
from accel.errors import CorruptArtifact
from accel.report import about, distribution, svg
from accel.report import table as tables
from accel.report.sections import open_sections

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from accel.report.html import page, tight
from accel.report.markdown import document

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Seen(HTMLParser):
    """Elements with attributes in order, text by element, and whether every element was closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.goes_on = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.goes_on = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.goes_on:
            where, before = self.texts.pop()
            self.texts.append((where, before + data))
            self.goes_on = False
        elif self.open and data.strip():
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
    command = made[1].split("<pre><code>")[1].split("</code>")[0]
    assert html.unescape(re.sub(r"</?span>", "", command)) == COMMAND


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
    assert [name.replace("<wbr>", "") for name, _ in body] == [line.variant for line in one.lines]
    names = ["top-1 %", "flips", "host p50", "spread", "host p95", "host p99", "device p50", "e2e p50", "MB"]
    for line, (_, cells) in zip(one.lines, body, strict=True):
        assert Seen(cells).within("b") == [line.verdict]
        shown = [text for text in Seen(cells).within("td") if text != ","]
        assert shown == [COLUMNS[name](line) or "–" for name in names]
        for at, kind, q in ((2, "host_us", 0.5), (4, "host_us", 0.95), (5, "host_us", 0.99), (6, "device_us", 0.5), (7, "e2e_us", 0.5)):
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
    kept = [
        {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items() if value is not None}
        for row in one.rows
        if row["latency_kind"] not in DIAGNOSTICS
    ]
    lines = raw.splitlines()
    columns = json.loads(lines[0])["columns"]
    depths = [len(line) - len(line.lstrip()) for line in lines]
    rows, above = [], []
    for line, depth, following in zip(lines, depths, [*depths[1:], 0], strict=True):
        found = json.loads(line)
        if isinstance(found, list):
            found = {key: value for key, value in zip(columns, found, strict=False) if value is not None}
        found.pop("columns", None)
        found.pop("values", None)
        assert not any(found.keys() & other.keys() for other in above[:depth])
        above = [*above[:depth], found]
        if following <= depth:
            rows.append({key: value for level in above for key, value in level.items()})
    for row in rows:
        row |= {key: of[row[key]] for key, of in json.loads(lines[0])["values"].items() if key in row}
    for row in kept:
        row.pop("raw_path", None)
    assert sorted(map(str, map(sorted, map(dict.items, rows)))) == sorted(map(str, map(sorted, map(dict.items, kept))))
    shared = json.loads(lines[0])
    assert {"command", "gpu_name", "versions_json"} <= shared.keys()
    assert not {"variant", "n", "size_mb"} & shared.keys()


def test_the_conditions_and_the_flag_with_its_remedy_are_there(made: tuple[Any, str]) -> None:
    seen = Seen(made[1])
    facts = dict(zip(seen.within("dt"), seen.within("dd"), strict=True))
    assert facts["machine"] == "NVIDIA H200, driver 580.1, CUDA 13.0 | Some CPU, Linux 6.1"
    assert facts["commit"] == "0123abc (with changes that are not committed)"
    assert facts["plan"].startswith("quick plan")
    assert "ENQUEUE_BLOCKED" in seen.within("strong")
    assert "</strong>: the call waits for the GPU itself (or made over about 1,000 launches)" in made[1]
    assert " Remedy: use span_us, which has no gate.</li>" in made[1]
    assert '<b class="ok">OK</b>, <a href="#set1-flags">1 flag</a></td>' in made[1]


def test_a_flag_without_a_remedy_is_shown_plainly(tmp_path: Path) -> None:
    one = section(tmp_path / "s", {"eager:fp32": {"host_us": 100, "flags": ["SOMETHING_NEW"]}})
    assert about.flags(one) == [about.Flagged("SOMETHING_NEW", {"eager:fp32": "all"})]
    assert about.flags(one, {"SOMETHING_NEW": ("it is new", "wait")}.get)[0].remedy == "wait"
    assert "<strong>SOMETHING_NEW</strong></li>" in page([one])


def test_a_flag_says_of_which_latencies_it_speaks(tmp_path: Path) -> None:
    variants = {"eager:fp32": {"host_us": 100, "device_us": 90, "e2e_us": 120}, "compile:fp32": {"host_us": 50, "e2e_us": 60}}
    folder = write_set(tmp_path / "s", variants)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        # In one round, one latency of the one variant; in every round, all of the other's.
        drifted = row["variant"] == "compile:fp32" or (row["round"] == 1 and row["latency_kind"] == "e2e_us")
        row["flags"] = [*(["DRIFT"] if drifted else []), *(["COV", "NEW"] if row["latency_kind"] in ("e2e_us", "device_us") else [])]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (one,) = open_sections([folder])
    assert about.flag_table(about.flags(one)) == (
        ["COV", "DRIFT", "NEW"],
        [("compile:fp32", ["e2e", "all", "e2e"]), ("eager:fp32", ["device, e2e", "e2e", "device, e2e"])],
    )
    flags = page([one]).split(">Flags</h3>")[1]
    assert Seen(flags.split("</table>")[0]).within("td") == ["e2e", "all", "e2e", "device, e2e", "e2e", "device, e2e"]


def test_a_set_that_was_never_asked_for_its_stability_says_so(tmp_path: Path) -> None:
    never = section(tmp_path / "never")
    assert "NOISY and UNSTABLE were never asked" in page([never])
    assert "NOISY and UNSTABLE were never asked" in document([never])
    asked = {name: {**given, "stability": "STABLE"} for name, given in GPU.items()}
    assert about.unjudged(section(tmp_path / "asked", asked)) == ""
    assert about.unjudged(section(tmp_path / "once", rounds=1)) == ""


def test_a_set_that_was_interrupted_says_how_far_it_had_come(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", GPU, rounds=3)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    last = "eager:fp32"
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if (row["variant"], row["round"]) != (last, 2)))
    description = {"set_id": rows[0]["set_id"], "plan": {"rounds": 3}}
    (folder / "set.json").write_text(json.dumps(description | {"state": "running"}))
    (one,) = open_sections([folder])
    # One of the six never ran.
    told = "interrupted: 14 runs of 5 variants are on record, of 3 that each was to have; fewer have eager:fp32 2."
    assert told in about.unfinished(one)
    assert told in " ".join(Seen(page([one])).within("p"))
    assert "This set was interrupted" in document([one])

    (folder / "set.json").write_text(json.dumps(description | {"state": "finished"}))
    assert about.unfinished(*open_sections([folder])) == ""
    (folder / "set.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match="does not describe a set"):
        open_sections([folder])


def test_a_variant_with_a_very_long_name_leaves_the_figures_their_room(tmp_path: Path) -> None:
    long = "onnxruntime:fp16+" + "x" * 140
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = page([section(tmp_path / "s", {**GPU, long: {"host_us": 150}})])
    # 24 characters of either end and the sign between them; the table has the whole.
    assert {"onnxruntime:fp16+xxxxxxx…" + "x" * 23} <= set(Seen(text).within("text"))
    assert long in Seen(text).within("th")


def test_rounds_without_room_for_their_names_are_numbered(tmp_path: Path) -> None:
    texts = Seen(page([section(tmp_path / "s", rounds=6)])).within("text")
    assert "round" in texts
    assert not [text for text in texts if text.startswith("round ")]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (5, 20_000, [10, 100, 1000, 10_000]),
        (135, 3100, [200, 500, 1000, 2000]),
        (264, 1948, [300, 500, 700, 1000]),
        (410, 930, [500, 600, 700, 800, 900]),
        (95, 105, [96, 98, 100, 102, 104]),
    ],
)
def test_an_axis_has_at_least_four_round_numbers(low: float, high: float, found: list[float]) -> None:
    assert svg.ticks(low, high) == found


def test_a_cpu_set_has_no_gpus_columns_and_names_the_cpu(tmp_path: Path) -> None:
    cpu = {"device": "cpu", **dict.fromkeys(("gpu_name", "gpu_uuid", "driver", "cuda"))}
    text = page([section(tmp_path / "s", {"eager:fp32": {"host_us": 100, "e2e_us": 120, **cpu}})])
    assert "<h2>resnet18 on Some CPU (cpu)</h2>" in text
    assert "µs from call to result (median) on Some CPU." in text.replace("\xa0", " ")
    assert "device p50" not in text
    assert "<dd>Some CPU, Linux 6.1</dd>" in text


def test_what_a_heading_stands_for_is_said_where_it_stands(tmp_path: Path) -> None:
    floors = {"launch_floor_us": 5.0}
    text = page([section(tmp_path / "s", {"eager:fp32": {"host_us": 100, "device_us": 90, **floors}})])
    assert "× floor = p50 as a multiple of this machine's launch floor, a CUDA graph of one empty kernel (host 5.0 µs, device 5.0 µs)." in (
        html.unescape(text).replace("\xa0", " ")
    )
    assert "× floor" not in page([section(tmp_path / "without")])


def test_what_the_gpu_did_meanwhile_is_said_as_far_as_it_was_read(tmp_path: Path) -> None:
    read = {"sm_clock_min_mhz": 1755, "sm_clock_max_mhz": 1980, "mem_clock_mhz": 3201, "temp_max_c": 41, "power_mean_w": 155.8}
    other = {"sm_clock_min_mhz": 1800, "sm_clock_max_mhz": 1980, "mem_clock_mhz": 3201, "temp_max_c": 39, "power_mean_w": 192.4}
    one = section(tmp_path / "s", {"eager:fp32": {"host_us": 100, **read}, "compile:fp32": {"host_us": 50, **other}})
    assert about.environment(one)["GPU"] == (
        "SM clock 1755 to 1980 MHz, memory clock 3201 MHz, at most 41 °C, mean power of a run 156 to 192 W"
    )
    assert "GPU" not in about.environment(section(tmp_path / "unread"))


def test_the_interval_stands_beside_the_median_where_every_round_has_one(tmp_path: Path) -> None:
    variants = {"eager:fp32": {"host_us": 100}, "compile:fp32": {"host_us": 50}}
    folder = write_set(tmp_path / "s", variants)
    assert "95 % interval" not in page(open_sections([folder])).split("</thead>")[0]
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in (row for row in rows if row["variant"] == "eager:fp32"):
        row["p50_lo_us"], row["p50_hi_us"] = 99.0 + row["round"], 1100.4 + row["round"]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page(open_sections([folder]))
    assert "<th>host p50</th><th>95\xa0% interval</th>" in text
    assert "<td>101.0</td><td>99.0 – 1102</td>" in text
    assert "<td>50.5</td><td>–</td>" in text
    assert "The interval runs from the lowest to the highest end of the rounds' own" in html.unescape(text)


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
    assert "compile:fp16" not in text[text.index('id="set2"') :].replace("<wbr>", "")
    assert seen.within("a") == ["first", "second", "1 flag", "1 flag"]


def test_of_one_model_the_newest_set_comes_first_and_models_stay_in_the_order_given(tmp_path: Path) -> None:
    when = {"old": "2026-11-22T10:00:00Z", "other": "2026-11-30T10:00:00Z", "new": "2026-11-29T10:00:00Z"}
    for name, at in when.items():
        given = {"host_us": 100, "timestamp_utc": at, "model": "student" if name == "other" else "resnet18"}
        write_set(tmp_path / name, {"eager:fp32": given})
    text = page(open_sections([tmp_path / name for name in when]))
    assert [name for name in Seen(text).within("a") if name in when] == ["new", "old", "other"]


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
    assert distribution.POINTS <= len(x) <= distribution.POINTS + distribution.TAIL + 3
    # The table's percentiles, and the slowest calls one by one.
    assert {500, 950, 990, *range(994, 1001)} <= set(x)
    assert [list(part) for part in distribution.curve(np.array([7.0]))] == [[7.0], [100.0]]


def test_a_course_keeps_the_order_of_the_calls_and_the_worst_of_them() -> None:
    samples = np.full(480, 10.0)
    samples[470] = 99.0
    middles, low, middle, high = distribution.course(samples)
    assert (len(middles), middles[0]) == (16, pytest.approx(1 / 32))
    assert (set(low), set(middle), list(high[-2:])) == ({10.0}, {10.0}, [10.0, 99.0])


def test_a_number_keeps_its_unit_on_the_line() -> None:
    assert tight("303.6 µs, top-1 95.7 %, p = 1.0, 8.0 s longer, 9 calls, 2 sets") == (
        "303.6\xa0µs, top\u20111 95.7\xa0%, p\xa0=\xa01.0, 8.0\xa0s longer, 9\xa0calls, 2 sets"
    )


def points(data: str) -> list[tuple[float, float]]:
    """Of a path of `M` and relative `l`, where a number may follow another without a blank."""
    found, at = [], (0.0, 0.0)
    for command, numbers in re.findall(r"([Ml])([^Mlz]*)", data):
        x, y = map(float, re.findall(r"-?(?:\d+\.?\d*|\.\d+)", numbers))
        at = (x, y) if command == "M" else (at[0] + x, at[1] + y)
        found.append(at)
    return found


def test_a_compact_path_goes_through_the_same_points() -> None:
    draw = np.random.default_rng(0)
    asked = np.cumsum(draw.normal(scale=3.0, size=(500, 2)), axis=0)
    data = "M " + " \nL ".join(f"{x:.6f} {y:.6f}" for x, y in asked) + " \n"
    assert np.abs(np.array(points(svg.compact(data))) - asked).max() <= 0.05 + 1e-9  # tenths, and no error is carried on
    assert len(svg.compact(data)) < len(data) / 2


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("M 0 0 \nL 0 -3.5 \nL 12.34 -3.5 \nz\n", "M0 0l0-3.5l12.3 0z"),
        ("M 1 1 \nL 1.04 1.01 \nL 0.5 1 \n", "M1 1l-.5 0"),  # points that fall together
        ("M 1 1 L 2 2 z M 5 5 L 5 6", "M1 1l1 1zM5 5l0 1"),
        ("M 0 1.5 \nC 0.4 1.5 0.8 1.3 1 1 \nz", "M 0 1.5 C 0.4 1.5 0.8 1.3 1 1 z"),
    ],
)
def test_a_path_is_written_short(path: str, found: str) -> None:
    assert svg.compact(path) == found


def test_an_svg_file_becomes_an_element() -> None:
    file = (
        '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "a" "http://a">\n<svg xmlns:xlink="http://x" width="9pt" height="8pt" viewBox="0 0 9 8" '
        'xmlns="http://s">\n <metadata>\n http://m </metadata><g id="unused"><path id="a" d="M 1.23456 2" style="stroke: #fe0001"/>'
        '<use xlink:href="#a" clip-path="url(#b)"/><clipPath id="b"/></g></svg>\n'
    )
    assert svg.inline(file, "f1") == (
        '<svg viewBox="0 0 9 8">\n<path id="f1-i0" d="M1.2 2" style="stroke: var(--s1)"/>'
        '<use href="#f1-i0" clip-path="url(#f1-i1)"/><clipPath id="f1-i1"/></svg>'
    )


def test_a_group_goes_if_it_says_nothing_and_a_style_that_repeats_becomes_a_class() -> None:
    file = (
        '<svg viewBox="0 0 9 8"><defs><style>*{a: b}</style></defs><g><g clip-path="url(#c)"><g><use style="x: 1"/></g>'
        '<use style="y: 2"/></g><use style="x: 1"/></g><clipPath id="c"/></svg>'
    )
    assert svg.inline(file, "f2") == (
        '<svg viewBox="0 0 9 8"><defs><style>*{a: b}.f2-0{x: 1}</style></defs><g clip-path="url(#f2-i0)"><use class="f2-0"/>'
        '<use style="y: 2"/></g><use class="f2-0"/><clipPath id="f2-i0"/></svg>'
    )


@pytest.mark.parametrize("keep", [True, False])
def test_a_set_without_raw_samples_says_what_its_figures_are(tmp_path: Path, keep: bool) -> None:
    (one,) = open_sections([write_set(tmp_path / "s", keep=keep)])
    assert (tables.APART in tables.notes(one)) is not keep
    assert (tables.APART in document([one])) is not keep
