"""Say what a set found: a table for people, JSON, CSV or Markdown for what comes after. The only place where numbers are formatted."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from accel.bench import columns
from accel.bench.flags import FLAGS
from accel.bench.results import ResultSet, Row
from accel.bench.stats import ENOUGH
from accel.bench.summary import DIAGNOSTICS, Latency, Line, lines
from accel.errors import UnknownName
from accel.optional import require

if TYPE_CHECKING:
    from rich.console import RenderableType

Cell = Callable[[Line], str | None]


def render(results: Sequence[ResultSet], format: str = "table", *, width: int = 120) -> str:
    """The summary of one or more sets as text: `table` (plain, `width` columns), `json`, `csv` or `markdown`.

    Raises:
        UnknownName: any other format. MissingExtra: rich is absent (`table`).
    """
    if format not in FORMATS:
        raise UnknownName("format", format, tuple(FORMATS))
    return FORMATS[format](results, width)


def summary(results: Sequence[ResultSet]) -> list[Line]:
    return [line for result in results for line in lines(result.rows, result.samples())]


def header(results: Sequence[ResultSet]) -> list[str]:
    """Machine, versions, plan and command: without them a number means nothing."""
    rows = [row for result in results for row in result.rows]
    gpu = [f"{row['gpu_name']}, driver {row['driver'] or '?'}, CUDA {row['cuda'] or '?'}" for row in rows if row["gpu_name"]]
    host = [f"{row['cpu_model'] or 'unknown CPU'}, Linux {row['kernel']}" for row in rows]
    versions = [f"{name} {version}" for row in rows for name, version in (row["versions_json"] or {}).items()]
    # Variants may run in environments of their own: every version that took part is named.
    software = [*_once(f"Python {row['python']}" for row in rows if row["python"]), *sorted(_once(versions))]
    found = {
        "machine": " | ".join(_once([*gpu, *host])),
        "versions": ", ".join(software),
        "plan": " | ".join(_once(row["plan"] for row in rows if row["plan"])),
        "launch floor": " | ".join(_once(filter(None, (_floors(result.rows) for result in results)))),
        "command": " | ".join(_once(row["command"] for row in rows if row["command"])),
    }
    return [f"{name}: {text}" for name, text in found.items() if text]


def _floors(rows: Sequence[Row]) -> str:
    """The machine's launch floor as its self-check measured it; empty on a CPU, and in a set that did not record one."""
    found = {row["latency_kind"]: row["launch_floor_us"] for row in rows if row["launch_floor_us"] is not None}
    said = [f"{kind.removesuffix('_us')} {found[kind]:.1f} µs" for kind in ("host_us", "device_us") if kind in found]
    return ", ".join(["one-node CUDA graph", *said]) if said else ""


def remarks(found: Sequence[Line]) -> list[str]:
    """Why a line is not OK and what mends it; lines with the same reason share a remark."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for line in found:
        if line.verdict != "OK":
            said = line.reason or columns.VERDICTS[line.verdict]
            grouped.setdefault((said, line.remedy or ""), []).append(f"{line.variant} {line.verdict}")
        for flag in line.flags:
            # The verdict of that name has said it, with its own reason.
            if flag in FLAGS and flag != line.verdict:
                grouped.setdefault((FLAGS[flag].meaning, FLAGS[flag].remedy), []).append(f"{line.variant} {flag}")
    measured = sum(bool(line.latency) for line in found)
    return [f"{_whose(who, measured)}: {said}" + (f"; to mend it: {remedy}" if remedy else "") for (said, remedy), who in grouped.items()]


def _whose(who: Sequence[str], measured: int) -> str:
    """`eager:fp32 NOISY, compile:fp32 NOISY`, each once; `all measured NOISY` where nothing was measured without it."""
    marks = _once(name.rpartition(" ")[2] for name in who)
    if len(who) == measured > 2 and len(marks) == 1 and marks[0] in FLAGS:
        return f"all measured {marks[0]}"
    return ", ".join(_once(who))


def table(results: Sequence[ResultSet], width: int) -> RenderableType:
    """A rich renderable: one table per model, a line per variant; the least important columns are left out to fit `width`."""
    require("rich", extra="bench")
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = summary(results)
    parts: list[RenderableType] = []
    for model, group in _by_model(found).items():
        shown, hidden = fitting(group, width)
        drawn = Table(title=_title(model, group), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
        for name, _ in shown:
            drawn.add_column(name.replace(" ", "\n"), justify="left" if name in ("variant", "verdict") else "right", no_wrap=True)
        for line in group:
            cells = [cell(line) or "-" for _, cell in shown]
            drawn.add_row(*cells, style=None if line.verdict == "OK" else "yellow" if line.verdict in _SOFT else "red")
        parts.append(drawn)
        if hidden:
            parts.append(Text(f"left out to fit {width} columns: {', '.join(hidden)} (see --format csv)", style="dim"))
    parts += [Text(remark) for remark in remarks(found)]
    parts += [
        Text(""),
        Text(" ".join([f"{UNITS}.", *insufficient(found)]), style="dim"),
        *(Text(line, style="dim") for line in header(results)),
    ]
    return Group(*parts)


_SOFT = ("UNVERIFIED", "REFUSED", "MISSING", "FALLBACK")

UNITS = (
    "latencies in µs over all rounds; host = call + synchronize, device = GPU alone, e2e = host array to host array; "
    "spread = largest / smallest p50 of a round; build = compile, warm up, capture (warm: with the caches of an earlier run)"
)


def insufficient(found: Sequence[Line]) -> list[str]:
    """What `n<662` means, where a line has it: fewer samples are insufficient for that percentile."""
    kinds = [latency for line in found for kind, latency in line.latency.items() if kind not in DIAGNOSTICS]
    lacking = [percent for percent in sorted(ENOUGH) if any(getattr(latency, f"p{percent}_us") is None for latency in kinds)]
    return [f"n<{ENOUGH[percent]} = insufficient n for a p{percent}." for percent in lacking]


def fitting(group: Sequence[Line], width: int) -> tuple[list[tuple[str, Cell]], list[str]]:
    """The columns that hold something and fit, and the names of those that held something and did not."""
    shown = [(name, cell) for name, cell in COLUMNS.items() if name in _ALWAYS or any(cell(line) is not None for line in group)]
    hidden: list[str] = []

    def needed() -> int:
        # One space of padding and one that divides the columns; headings break at their spaces.
        return sum(2 + max(*map(len, name.split()), *(len(cell(line) or "-") for line in group), 0) for name, cell in shown) - 1

    for name in _LEAST_FIRST:
        if needed() <= width:
            break
        if any(name == kept for kept, _ in shown):
            shown = [item for item in shown if item[0] != name]
            hidden.append(name)
    return shown, hidden


def _us(kind: str, name: str) -> Cell:
    def cell(line: Line) -> str | None:
        latency = line.latency.get(kind)
        if latency is None:
            return None
        value = getattr(latency, name)
        return _short(latency, name) if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.1f}"

    return cell


def _short(latency: Latency, name: str) -> str:
    """Too few samples for the percentile: `n<662`."""
    least = ENOUGH.get(int(name[1:3])) if name in ("p95_us", "p99_us") else None
    return f"n<{least}" if least else "-"


def _spread(line: Line) -> str | None:
    host = line.latency.get("host_us")
    return None if host is None or line.rounds < 2 else f"{host.spread:.3f}"


def _times_floor(kind: str) -> Cell:
    def cell(line: Line) -> str | None:
        value = line.latency[kind].times_floor if kind in line.latency else None
        return None if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    return cell


def _seconds(name: str) -> Cell:
    def cell(line: Line) -> str | None:
        value: float | None = getattr(line, name)
        return None if value is None else f"{value:.1f}"

    return cell


def _build(line: Line) -> str | None:
    """The quickest and the slowest, where there were several cold builds."""
    ends = [_seconds(name)(line) for name in ("build_min_s", "build_s")]
    return ends[1] if ends[0] == ends[1] else "–".join(end or "" for end in ends)


def _p(line: Line) -> str | None:
    return None if line.mcnemar_p is None else "<.001" if line.mcnemar_p < 0.001 else f"{line.mcnemar_p:.3f}"


def _verdict(line: Line) -> str:
    return line.verdict + ("*" if (set(line.flags) & FLAGS.keys()) - {line.verdict} else "")


def _preprocess(line: Line) -> str | None:
    return None if line.preprocess_us is None else f"{line.preprocess_us:.1f}"


def _top1(line: Line) -> str | None:
    if line.metric == "parity":
        return "n/a"
    return None if line.top1 is None else f"{line.top1:.2f}"


COLUMNS: dict[str, Cell] = {
    "variant": lambda line: line.variant,
    "top-1 %": _top1,
    "Δ": lambda line: None if line.drop is None else f"{0.0 - line.drop:+.2f}" if line.drop else "0.00",
    "flips": lambda line: None if line.n_flips is None else str(line.n_flips),
    "p": _p,
    "host mean": _us("host_us", "mean_us"),
    "host std": _us("host_us", "std_us"),
    "host min": _us("host_us", "min_us"),
    "host p50": _us("host_us", "p50_us"),
    "host p95": _us("host_us", "p95_us"),
    "host p99": _us("host_us", "p99_us"),
    "host max": _us("host_us", "max_us"),
    "host × floor": _times_floor("host_us"),
    "spread": _spread,
    "device p50": _us("device_us", "p50_us"),
    "device p50 corrected": _us("device_us", "p50_corrected_us"),
    "device × floor": _times_floor("device_us"),
    "e2e p50": _us("e2e_us", "p50_us"),
    "e2e p99": _us("e2e_us", "p99_us"),
    "paced p50": _us("paced_us", "p50_us"),
    "preprocess": _preprocess,
    "MB": lambda line: None if line.size_mb is None else f"{line.size_mb:.1f}",
    "export s": _seconds("export_s"),
    "load s": _seconds("load_s"),
    "build s": _build,
    "warm build s": _seconds("build_warm_s"),
    "verdict": _verdict,
}
"""Heading → cell. A cell without a value is None, and a column of nothing else is left out."""

_ALWAYS = ("variant", "verdict")
_LEAST_FIRST = (
    *(
        "device p50 corrected",
        "preprocess",
        "warm build s",
        "export s",
        "load s",
        "e2e p99",
        "host std",
        "host max",
        "host min",
        "p",
        "device × floor",
        "build s",
        "host mean",
    ),
    *("MB", "spread", "host × floor", "flips", "host p99", "device p50", "e2e p50", "paced p50", "Δ", "host p95"),
)
"""What a narrow terminal loses, the least important first."""


def _title(model: str, group: Sequence[Line]) -> str:
    params = next((line.params for line in group if line.params), None)
    return f"{model} on {group[0].device}" + (f", {params / 1e6:.2f} M parameters" if params else "")


def _table_text(results: Sequence[ResultSet], width: int) -> str:
    require("rich", extra="bench")
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width, no_color=True, highlight=False).print(table(results, width))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _json_text(results: Sequence[ResultSet], width: int) -> str:
    return json.dumps({"header": header(results), "lines": [line.to_dict() for line in summary(results)]}, indent=2) + "\n"


def _csv_text(results: Sequence[ResultSet], width: int) -> str:
    text = io.StringIO()
    flat = [line.to_dict() for line in summary(results)]
    writer = csv.DictWriter(text, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    for item in flat:
        writer.writerow({**item, "flags": " ".join(item["flags"])})
    return text.getvalue()


def _markdown_text(results: Sequence[ResultSet], width: int) -> str:
    found, out = summary(results), []
    for model, group in _by_model(found).items():
        shown, _ = fitting(group, 10_000)
        out += [f"**{_title(model, group)}**", "", "| " + " | ".join(name for name, _ in shown) + " |"]
        out.append("|" + "|".join(":--" if name in _ALWAYS else "--:" for name, _ in shown) + "|")
        out += ["| " + " | ".join(cell(line) or "-" for _, cell in shown) + " |" for line in group] + [""]
    out += [f"* {remark.replace('|', '/')}" for remark in remarks(found)]
    return "\n".join([*out, "", " ".join([f"{UNITS}.", *insufficient(found)]), "", *(f"* {line}" for line in header(results))]) + "\n"


FORMATS: dict[str, Callable[[Sequence[ResultSet], int], str]] = {
    "table": _table_text,
    "json": _json_text,
    "csv": _csv_text,
    "markdown": _markdown_text,
}


def rows_csv(results: Sequence[ResultSet]) -> str:
    """All result rows of all sets, every column: what `--export-csv` writes."""
    from accel.bench.results import to_csv

    rows: list[Row] = [row for result in results for row in result.rows]
    return to_csv(rows)


def _by_model(found: Iterable[Line]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in found:
        groups.setdefault(line.model, []).append(line)
    return groups


def _once(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
