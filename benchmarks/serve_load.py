"""What `accel serve` does with twice the load that it can carry: a load test over the loopback, against a server process of its own.

    python benchmarks/serve_load.py --check --out results/local-cpu/serving.md

For each case (a shipped model and --max-concurrency) a server is started on a free port, on a CPU with one thread a request, and then:

1. unloaded: one client that asks again as soon as it is answered; p50 and p99 of its latencies;
2. capacity: as many such clients as may run at once; requests a second;
3. overload: requests at the times of a Poisson process (seeded) of twice that capacity, whatever became of those before, several rounds;
   a latency counts from when the request was due, so that what the load generator is late by counts against the server;
4. /metrics is held against what the clients saw, the server's resident memory is read after every round, and SIGTERM ends it.

Wanted (with --check anything else is exit code 3): p99 of the accepted requests within 3 times the unloaded one, all others answered 503,
every request answered, counts that add up, memory that does not grow, exit code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import serve_client
from serve_client import Answer, Pool

from accel.bench.environment import snapshot
from accel.engines import Bundle
from accel.serve import protocol, tensors

CASES = ("mobilenetv3_small:1", "mobilenetv3_small:2", "resnet18:1", "resnet18:2")
FACTOR, TIMES_CAPACITY = 3.0, 2.0
GROWTH_MB = 4.0
"""Of resident memory from the first round to the last: the allocator's arenas move by less, and a leak of 1 KB a request is more."""

CONNECTIONS = 32
START_S = 60.0


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of overload. Latencies in seconds."""

    rate: float
    sent: int
    accepted: int
    refused: int
    other: int
    p50: float
    p99: float
    slowest: float
    late_p99: float
    rss_mb: float


@dataclasses.dataclass(frozen=True)
class Case:
    """What was found for one model and concurrency."""

    model: str
    variant: str
    slots: int
    unloaded_p50: float
    unloaded_p99: float
    unloaded: int
    capacity: float
    rounds: tuple[Round, ...]
    connections: int
    counted: dict[str, float]
    asked: dict[str, int]
    exit_code: int

    @property
    def ratio(self) -> float:
        """Of the worst round's p99 to the unloaded one."""
        return max(found.p99 for found in self.rounds) / self.unloaded_p99

    def problems(self) -> list[str]:
        """What is not as it should be."""
        growth = self.rounds[-1].rss_mb - self.rounds[0].rss_mb
        found = {
            f"p99 is {self.ratio:.2f} times the unloaded one": self.ratio > FACTOR,
            "requests were answered neither 200 nor 503, or not at all": any(item.other for item in self.rounds),
            "nothing was refused: this was no overload": not any(item.refused for item in self.rounds),
            f"/metrics counts {self.counted}, the clients {self.asked}": self.counted != self.asked,
            f"memory grew by {growth:.1f} MB": growth > GROWTH_MB,
            f"SIGTERM ended it with exit code {self.exit_code}": self.exit_code != 0,
        }
        return [text for text, wrong in found.items() if wrong]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    load = os.getloadavg()[0]
    cases = []
    for text in options.case or CASES:
        model, _, slots = text.partition(":")
        cases.append(measure(options.engines, model, int(slots or 1), options))
        print(summary(cases[-1]))
        debug(cases[-1])
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page(cases, options, load), encoding="utf-8")
    return 3 if options.check and any(case.problems() for case in cases) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", metavar="MODEL:N", help=f"may be repeated; {' '.join(CASES)}")
    parser.add_argument("--engines", type=Path, default=Path("engines"), help="folder with MODEL.accel; a shipped model is exported")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase and round")
    parser.add_argument("--rounds", type=int, default=5, help="of overload")
    parser.add_argument("--seed", type=int, default=7, help="of the arrivals")
    parser.add_argument("--check", action="store_true", help="exit 3 if something is not as it should be")
    parser.add_argument("--out", type=Path, help="Markdown")
    return parser.parse_args(arguments)


def measure(engines: Path, model: str, slots: int, options: argparse.Namespace) -> Case:
    server, address = start(engines / f"{model}.accel" if (engines / f"{model}.accel").is_dir() else Path(model), slots)
    try:
        case = serve_client.run(lambda: phases(server, address, engines, model, slots, options))
        server.send_signal(signal.SIGTERM)
        return dataclasses.replace(case, exit_code=server.wait(30))
    finally:
        server.kill()
        server.wait()


def start(bundle: Path, slots: int) -> tuple[subprocess.Popen[str], tuple[str, int]]:
    """The server process, once it says where it is."""
    command = [sys.executable, "-m", "accel", "serve", str(bundle), "--port", "0", "--max-concurrency", str(slots)]
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:1] + os.environ.get("PYTHONPATH", "").split(os.pathsep))}
    server = subprocess.Popen([*command, "--threads", "1", "--device", "cpu"], stderr=subprocess.PIPE, text=True, env=where)
    assert server.stderr is not None
    said = ""
    for line in server.stderr:
        said += line
        if found := re.search(r" at http://([\d.]+):(\d+) ", line):
            return server, (found[1], int(found[2]))
    raise SystemExit(f"the server ended with {server.wait()}\n{said}")


async def phases(
    server: subprocess.Popen[str], address: tuple[str, int], engines: Path, model: str, slots: int, options: argparse.Namespace
) -> Case:
    bundle = Bundle.open(engines / f"{model}.accel")
    request, pool = infer_request(bundle), Pool(*address)
    warmed = await serve_client.in_turn(pool, request, slots, min(2.0, options.seconds))
    unloaded = await serve_client.in_turn(pool, request, 1, options.seconds)
    closed = await serve_client.in_turn(pool, request, slots, options.seconds)
    capacity = len(closed) / (max(answer.done for answer in closed) - min(answer.sent for answer in closed))
    await pool.fill(CONNECTIONS)
    generator, rounds, everything = np.random.default_rng(options.seed), [], [*warmed, *unloaded, *closed]
    for _ in range(options.rounds):
        rate = TIMES_CAPACITY * capacity
        times = np.cumsum(generator.exponential(1 / rate, int(rate * options.seconds)))
        answers = await serve_client.at_times(pool, request, times.tolist())
        everything += answers
        rounds.append(judged(answers, len(times) / times[-1], resident_mb(server.pid)))
    # What was accepted last is counted a moment after it is answered.
    await asyncio.sleep(0.2)
    counted, variant = await asyncio.get_running_loop().run_in_executor(None, counts, address)
    pool.close()
    asked = {str(status): sum(answer.status == status for answer in everything) for status in sorted({a.status for a in everything})}
    p50, p99 = np.percentile([answer.seconds for answer in unloaded], [50, 99])
    return Case(model, variant, slots, p50, p99, len(unloaded), capacity, tuple(rounds), pool.opened, counted, asked, -1)


def infer_request(bundle: Bundle) -> bytes:
    """One row of noise as binary data, to be answered in binary."""
    tensor, generator, inputs, raw = {}, np.random.default_rng(0), [], b""
    for spec in bundle.inputs:
        values = generator.standard_normal(spec.fixed(1)).astype(spec.dtype).tobytes()
        tensor = {"name": spec.name, "shape": list(spec.fixed(1)), "datatype": tensors.NAMES[spec.dtype]}
        inputs.append({**tensor, "parameters": {"binary_data_size": len(values)}})
        raw += values
    import json

    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    lines = [
        f"POST /v2/models/{bundle.name}/infer HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/octet-stream",
        f"{protocol.HEADER_LENGTH}: {len(head)}",
        f"Content-Length: {len(head) + len(raw)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + head + raw


def judged(answers: Sequence[Answer], rate: float, rss_mb: float) -> Round:
    accepted = [answer.seconds for answer in answers if answer.status == 200]
    refused = sum(answer.status == 503 for answer in answers)
    p50, p99 = np.percentile(accepted, [50, 99])
    late = float(np.percentile([answer.sent - answer.due for answer in answers], 99))
    other = len(answers) - len(accepted) - refused
    return Round(rate, len(answers), len(accepted), refused, other, p50, p99, max(accepted), late, rss_mb)


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
    worst = max(case.rounds, key=lambda found: found.p99)
    return (
        f"{case.model} {case.variant}, {case.slots} at once: unloaded p99 {case.unloaded_p99 * 1e3:.2f} ms, capacity {case.capacity:.0f}/s; "
        f"at {worst.rate:.0f}/s accepted p99 {worst.p99 * 1e3:.2f} ms (×{case.ratio:.2f}): {told}"
    )


def page(cases, options, load):
    return ""


def debug(case):
    for r in case.rounds:
        print(r)
    print(case.unloaded_p50, case.unloaded_p99, case.connections)


if __name__ == "__main__":
    sys.exit(main())
