"""What callers see when one of two Ray Serve replicas is killed under load, on a cluster of this machine.

    pip install 'accel-engines[ort,ray]' -c constraints.txt
    python benchmarks/replica_killed.py engines/mobilenetv3_small.accel

Four callers send the same question one after another, two of them plainly and two through `ask`; when one of them has a quarter of its
answers, one replica gets SIGKILL. One line of JSON: what was asked, answered, answered wrongly and lost by each kind of caller, the seconds
until the replacement answers, and the slowest request.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import ray
from ray import serve

import accel
from accel.integrations.ray import application, ask

CALLERS, EACH = 4, 500


def plainly(handle: Any, question: Any) -> Any:
    return handle.infer.remote(question).result()


def replicas(handle: Any) -> int:
    """The process of whichever replica answers."""
    return int(handle.about.remote().result()["pid"])


def main(bundle: str) -> dict[str, Any]:
    handle = serve.run(application(bundle, replicas=2, threads=1))
    before: set[int] = set()
    while len(before) < 2:
        before.add(replicas(handle))
    with accel.load(bundle, device="cpu", threads=1) as engine:
        question = np.random.default_rng(0).standard_normal(engine.inputs[0].fixed(1), dtype=np.float32)
        right = engine(question)
    seen: list[Counter[str]] = [Counter() for _ in range(CALLERS)]
    slowest, a_quarter = [0.0] * CALLERS, threading.Event()

    def call(number: int) -> None:
        way = ask if number % 2 else plainly
        for _ in range(EACH):
            began = time.perf_counter()
            try:
                seen[number]["answered" if np.array_equal(way(handle, question), right) else "wrong"] += 1
            except ray.exceptions.RayActorError:
                seen[number][f"lost by {way.__name__}"] += 1
            slowest[number] = max(slowest[number], time.perf_counter() - began)
            if seen[number]["answered"] > EACH // 4:
                a_quarter.set()

    callers = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    a_quarter.wait()
    os.kill(min(before), signal.SIGKILL)
    killed, now = time.perf_counter(), min(before)
    while now in before:
        with contextlib.suppress(ray.exceptions.RayActorError):
            now = replicas(handle)
    back = time.perf_counter() - killed
    for caller in callers:
        caller.join()
    figures = {"asked": CALLERS * EACH, "answered": 0, "wrong": 0, "lost by plainly": 0, "lost by ask": 0, **sum(seen, Counter())}
    return {**figures, "replacement_s": round(back, 1), "slowest_s": round(max(slowest), 2), "ray": ray.__version__}


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    print(json.dumps(main(sys.argv[1])))
    serve.shutdown()
