"""What `accel serve` does with twice the load that it can carry: a load test over the loopback, against a server process of its own.

    python benchmarks/serve_load.py --check --out results/local-cpu/serving.md

For each case (a shipped model and --max-concurrency) a server is started on a free port, on a CPU with one thread a request, and then:

1. unloaded: one client that asks again as soon as it is answered; its latencies;
2. capacity: as many such clients as may run at once; requests a second;
3. overload: requests at the times of a Poisson process (seeded) of twice that capacity, whatever became of those before; a latency
   counts from when the request was due, so that what the load generator is late by counts against the server;
4. all three again, so that a busy minute of the machine meets each of them; the server's resident memory is read after every round;
5. /metrics is held against what the clients saw, and SIGTERM ends it.

Wanted (with --check anything else is exit code 3): p99 of the accepted requests within 3 times the unloaded one (where no more run at
once than `accel serve` takes by default), all others answered 503, every request answered, counts that add up, memory that does not grow,
exit code 0.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serve_client import Answer, Pool

from accel.api.serving import default_concurrency
from accel.bench.environment import snapshot
from accel.engines import Bundle
from accel.optional import version_of
from accel.serve import protocol, tensors
from accel.types import Array

ROOT = Path(__file__).resolve().parents[1]
CASES = ("mobilenetv3_small:1", "mobilenetv3_small:2", "resnet18:1", "resnet18:2")
FACTOR, TIMES_CAPACITY = 3.0, 2.0
GROWTH_MB = 4.0
"""Of resident memory from the first round to the last: the allocator's arenas move by less, and a leak of 1 KB a request is more."""

CONNECTIONS = 32


@dataclasses.dataclass(frozen=True)
class Round:
    """One round: each phase once. Latencies in milliseconds.

    Attributes:
        unloaded, accepted: latencies; those of requests that were answered 200.
        capacity, rate: requests a second; what was offered is `rate`.
        refused, other: requests that were answered 503; anything else, or nothing.
        late_p99: how late the load generator sent, which counts as latency.
        rss_mb: of the server afterwards.
    """

    unloaded: Array
    capacity: float
    rate: float
    accepted: Array
    refused: int
    other: int
    late_p99: float
    rss_mb: float

    @property
    def sent(self) -> int:
        return len(self.accepted) + self.refused + self.other


@dataclasses.dataclass(frozen=True)
class Case:
    """What was found for one model and concurrency; `counted` by /metrics and `asked` by the clients, requests by status."""

    model: str
    variant: str
    slots: int
    rounds: tuple[Round, ...]
    counted: dict[str, float]
    asked: dict[str, int]
    exit_code: int

    def p99(self, phase: str) -> float:
        """Of a phase, over all rounds."""
        return float(np.percentile(np.concatenate([getattr(found, phase) for found in self.rounds]), 99))

    @property
    def ratio(self) -> float:
        return self.p99("accepted") / self.p99("unloaded")

    @property
    def crowded(self) -> bool:
        """Whether more run at once than by default: then no CPU is left for the event loop, and p99 is told, not judged."""
        return self.slots > default_concurrency("cpu")

    @property
    def growth_mb(self) -> float:
        return self.rounds[-1].rss_mb - self.rounds[0].rss_mb

    def problems(self) -> list[str]:
        """What is not as it should be."""
        found = {
            f"p99 is {self.ratio:.2f} times the unloaded one": self.ratio > FACTOR and not self.crowded,
            "requests were answered neither 200 nor 503, or not at all": any(item.other for item in self.rounds),
            "nothing was refused: this was no overload": not all(item.refused for item in self.rounds),
            f"/metrics counts {self.counted}, the clients {self.asked}": self.counted != self.asked,
            f"memory grew by {self.growth_mb:.1f} MB": self.growth_mb > GROWTH_MB,
            f"SIGTERM ended it with exit code {self.exit_code}": self.exit_code != 0,
        }
        return [text for text, wrong in found.items() if wrong]


def main(arguments: Sequence[str] | None = None) -> int:
    options, load = parse(arguments), os.getloadavg()[0]
    cases = []
    for text in options.case or CASES:
        model, _, slots = text.partition(":")
        cases.append(measure(options.engines, model, int(slots or 1), options))
        print(summary(cases[-1]), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page(cases, options, load), encoding="utf-8")
    return 3 if options.check and any(case.problems() for case in cases) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", metavar="MODEL:N", help=f"may be repeated; {' '.join(CASES)}")
    parser.add_argument("--engines", type=Path, default=Path("engines"), help="folder with MODEL.accel; a shipped model is exported")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=5, help="of the three phases")
    parser.add_argument("--seed", type=int, default=7, help="of the arrivals")
    parser.add_argument("--check", action="store_true", help="exit 3 if something is not as it should be")
    parser.add_argument("--out", type=Path, help="Markdown")
    return parser.parse_args(arguments)


def measure(engines: Path, model: str, slots: int, options: argparse.Namespace) -> Case:
    server, address = start(engines / f"{model}.accel" if (engines / f"{model}.accel").is_dir() else Path(model), slots)
    try:
        case = phases(server, address, engines, model, slots, options)
        server.send_signal(signal.SIGTERM)
        return dataclasses.replace(case, exit_code=server.wait(30))
    finally:
        server.kill()
        server.wait()


def start(bundle: Path, slots: int) -> tuple[subprocess.Popen[str], tuple[str, int]]:
    """The server process, once it says where it is."""
    command = [sys.executable, "-m", "accel", "serve", str(bundle), "--port", "0", "--max-concurrency", str(slots)]
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    server = subprocess.Popen([*command, "--threads", "1", "--device", "cpu"], stderr=subprocess.PIPE, text=True, env=where)
    assert server.stderr is not None
    said = ""
    for line in server.stderr:
        said += line
        if found := re.search(r" at http://([\d.]+):(\d+) ", line):
            return server, (found[1], int(found[2]))
    raise SystemExit(f"the server ended with {server.wait()}\n{said}")


def phases(
    server: subprocess.Popen[str], address: tuple[str, int], engines: Path, model: str, slots: int, options: argparse.Namespace
) -> Case:
    bundle = Bundle.open(engines / f"{model}.accel")
    request, generator, rounds = infer_request(bundle), np.random.default_rng(options.seed), []
    with Pool(*address) as pool:
        everything = pool.in_turn(request, slots, options.seconds / 4)
        pool.fill(CONNECTIONS)
        for _ in range(options.rounds):
            unloaded = pool.in_turn(request, 1, options.seconds)
            closed = pool.in_turn(request, slots, options.seconds)
            capacity = len(closed) / (max(answer.done for answer in closed) - min(answer.sent for answer in closed))
            rate = TIMES_CAPACITY * capacity
            times = np.cumsum(generator.exponential(1 / rate, int(rate * options.seconds)))
            offered = pool.at_times(request, times.tolist())
            everything += [*unloaded, *closed, *offered]
            rounds.append(judged(unloaded, capacity, len(times) / times[-1], offered, resident_mb(server.pid)))
    # What was answered last is counted a moment later.
    time.sleep(0.2)
    counted, variant = counts(address)
    asked = collections.Counter(str(answer.status) for answer in everything)
    return Case(model, variant, slots, tuple(rounds), counted, dict(asked), -1)


def infer_request(bundle: Bundle) -> bytes:
    """One row of noise as binary data, to be answered in binary."""
    generator, inputs, raw = np.random.default_rng(0), [], b""
    for spec in bundle.inputs:
        values = generator.standard_normal(spec.fixed(1)).astype(spec.dtype).tobytes()
        tensor = {"name": spec.name, "shape": list(spec.fixed(1)), "datatype": tensors.NAMES[spec.dtype]}
        inputs.append({**tensor, "parameters": {"binary_data_size": len(values)}})
        raw += values
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    lines = [
        f"POST /v2/models/{bundle.name}/infer HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/octet-stream",
        f"{protocol.HEADER_LENGTH}: {len(head)}",
        f"Content-Length: {len(head) + len(raw)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + head + raw


def judged(unloaded: Sequence[Answer], capacity: float, rate: float, offered: Sequence[Answer], rss_mb: float) -> Round:
    by_status = collections.Counter(answer.status for answer in offered)
    late = float(np.percentile([answer.sent - answer.due for answer in offered], 99)) * 1e3
    accepted = milliseconds(answer for answer in offered if answer.status == 200)
    other = len(offered) - by_status[200] - by_status[503]
    return Round(milliseconds(unloaded), capacity, float(rate), accepted, by_status[503], other, late, rss_mb)


def milliseconds(answers: Iterable[Answer]) -> Array:
    return np.array([answer.seconds * 1e3 for answer in answers])


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def counts(address: tuple[str, int]) -> tuple[dict[str, float], str]:
    """Inference requests by code as /metrics has them, and the variant."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/metrics", timeout=10) as response:
        families = {family.name: family for family in text_string_to_metric_families(response.read().decode())}
    samples = [item for item in families["accel_requests"].samples if item.name.endswith("_total") and item.labels["endpoint"] == "infer"]
    return {item.labels["code"]: item.value for item in samples}, families["accel_engine_info"].samples[0].labels["variant"]


def summary(case: Case) -> str:
    told = "; ".join(case.problems()) or "ok"
    return (
        f"{case.model}, {case.variant}, {case.slots} at once: p99 unloaded {case.p99('unloaded'):.2f} ms, of what was accepted at "
        f"{TIMES_CAPACITY:g} times its capacity {case.p99('accepted'):.2f} ms ({case.ratio:.2f} times): {told}"
    )


def page(cases: Sequence[Case], options: argparse.Namespace, load: float) -> str:
    """What was measured, on what, and with which command; a table for each case."""
    machine = snapshot("cpu")
    versions = {**machine["versions"], **{name: version_of(name) for name in ("starlette", "uvicorn", "httptools", "prometheus-client")}}
    lines = [
        "# accel serve under twice its capacity",
        "",
        "A server process and one process that makes the load, on the loopback of one machine, whose CPUs they share. A request is one row",
        "as binary data, answered in binary. Each round: one client that asks again as soon as it is answered (unloaded), as many such",
        "clients as may run at once (capacity), then Poisson arrivals of twice that capacity, whatever became of those before. A latency",
        "counts from when the request was due; `late` is what the generator adds to it. Latencies in milliseconds.",
        "",
        f"- command: `python benchmarks/serve_load.py {' '.join(sys.argv[1:])}`",
        f"- machine: {machine['cpu_model']}, CPUs {machine['cpu_affinity']}, Linux {machine['kernel']}, Python {machine['python']}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"- commit: {machine['git_sha']}{' with changes' if machine['dirty'] else ''}",
        f"- other work on the machine: load average {load:.2f} before, {os.getloadavg()[0]:.2f} after, this benchmark's own included",
        f"- plan: {options.rounds} rounds of 3 phases of {options.seconds:g} s, seed {options.seed}, {CONNECTIONS} connections",
        f"- wanted: p99 of the accepted at most {FACTOR:g} times the unloaded one, all others 503, no request without an answer,",
        f"  the counts of /metrics, at most {GROWTH_MB:g} MB more memory after the last round than after the first, exit code 0",
    ]
    for case in cases:
        lines += ["", f"## {case.model}, {case.variant}, --max-concurrency {case.slots}, --threads 1", "", *table(case), "", *verdict(case)]
    return "\n".join(lines) + "\n"


def table(case: Case) -> list[str]:
    """A row a round."""
    columns = (
        "round",
        "unloaded p50",
        "p99",
        "capacity/s",
        "offered/s",
        "sent",
        "200",
        "503",
        "other",
        "accepted p50",
        "p99",
        "late p99",
        "RSS MB",
    )
    rows = [columns, ("---:",) * len(columns)]
    for number, found in enumerate(case.rounds, start=1):
        before, during = np.percentile(found.unloaded, [50, 99]), np.percentile(found.accepted, [50, 99])
        counted = (found.sent, len(found.accepted), found.refused, found.other)
        numbers = [*(f"{value:.2f}" for value in before), f"{found.capacity:.0f}", f"{found.rate:.0f}", *map(str, counted)]
        rows.append((str(number), *numbers, *(f"{value:.2f}" for value in (*during, found.late_p99)), f"{found.rss_mb:.1f}"))
    return ["| " + " | ".join(row) + " |" for row in rows]


def verdict(case: Case) -> list[str]:
    unloaded, accepted = case.p99("unloaded"), case.p99("accepted")
    return [
        f"Of all rounds: p99 unloaded {unloaded:.2f} ms, accepted {accepted:.2f} ms, {case.ratio:.2f} times. Requests by status as",
        f"/metrics has them: {shown(case.counted)}; as the clients have them: {shown(case.asked)}. Exit code {case.exit_code}. "
        + (f"**Missed: {'; '.join(case.problems())}.**" if case.problems() else "All as wanted."),
        *([f"More at once than the default of {default_concurrency('cpu')} here: p99 is told and not judged."] if case.crowded else []),
    ]


def shown(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{status}: {counts[status]:.0f}" for status in sorted(counts))


if __name__ == "__main__":
    sys.exit(main())
