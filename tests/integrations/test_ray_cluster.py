"""Two replicas on a real Ray cluster of this machine, one of them killed while it is asked.

Half a minute, most of it Ray's own start, and Ray is no part of the development environment (it takes 467 MB with what it needs):
`pip install 'accel-engines[ray]' -c constraints.txt`, then `pytest -m slow tests/integrations/test_ray_cluster.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest

import accel
from accel.integrations.ray import application, ask

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
serve = pytest.importorskip("ray.serve", reason="the extra ray is not installed")

pytestmark = pytest.mark.slow  # a cluster takes ten seconds to start

PREPROCESS = {"mean": [0.5] * 3, "std": [0.25] * 3, "height": nets.SIZE, "width": nets.SIZE}
ASKERS, EACH = 4, 150


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a cluster's HTTP proxy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()


@pytest.fixture
def pictured(tiny: Path, rewritten: Callable[..., None]) -> Path:
    """The tiny bundle, with preprocessing."""
    rewritten(tiny, preprocess=PREPROCESS)
    return tiny


def question(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 3, nets.SIZE, nets.SIZE), dtype=np.float32)


def pids(handle: Any, wanted: int, known: frozenset[int] = frozenset()) -> set[int]:
    """The processes of the replicas, asked for until there are `wanted` that are not `known`."""
    found: set[int] = set()
    for _ in range(20_000):
        with contextlib.suppress(ray.exceptions.RayActorError):
            found.add(handle.about.remote().result()["pid"])
        if len(found - known) >= wanted:
            break
    return found


def test_a_replica_killed_under_load_costs_nothing_that_is_asked_again_and_comes_back(cluster: int, tiny: Path) -> None:
    handle = serve.run(application(tiny, replicas=2, threads=1), name="killed", route_prefix="/killed")
    before = frozenset(pids(handle, 2))
    assert len(before) == 2
    with accel.load(tiny, device="cpu", threads=1) as engine:
        expected = {seed: engine(question(seed)) for seed in range(ASKERS * EACH)}
    answers: dict[int, Any] = {}
    lost: list[int] = []
    a_third_is_answered = threading.Event()

    def asker(number: int) -> None:
        for seed in range(number * EACH, (number + 1) * EACH):
            if number % 2:
                answers[seed] = ask(handle, question(seed))
            else:
                try:
                    answers[seed] = handle.infer.remote(question(seed)).result()
                except ray.exceptions.RayActorError:
                    lost.append(seed)
            if len(answers) > ASKERS * EACH // 3:
                a_third_is_answered.set()

    askers = [threading.Thread(target=asker, args=(number,)) for number in range(ASKERS)]
    for thread in askers:
        thread.start()
    assert a_third_is_answered.wait(60)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    for thread in askers:
        thread.join(120)
    # Who asks again gets every answer; a plain caller loses at most the two that the dead replica had accepted.
    assert set(answers) | set(lost) == set(expected)
    assert len(lost) <= 2
    assert not {seed for seed in lost if seed // EACH % 2}
    for seed, answer in answers.items():
        np.testing.assert_array_equal(answer, expected[seed])
    after = pids(handle, 1, known=before)
    assert victim not in after - before
    assert len(after - before) == 1
    serve.delete("killed")


def test_a_config_file_changes_the_replicas_over_without_a_restart(cluster: int, tiny: Path) -> None:
    def deploy(runtime: str) -> dict[str, Any]:
        changed = {"bundle": str(tiny), "device": "cpu", "runtime": runtime, "threads": 1}
        app = {"name": "changed", "route_prefix": "/changed", "import_path": "accel.integrations.ray:build", "args": {"bundle": str(tiny)}}
        config = {"applications": [{**app, "deployments": [{"name": "accel", "user_config": changed}]}]}
        # What `serve deploy FILE` does, without the dashboard that it talks to.
        client = ray.serve.context._get_global_client()
        client.deploy_apps(ray.serve.schema.ServeDeploySchema.model_validate(config), _blocking=True)
        client._wait_for_application_running("changed")
        said: dict[str, Any] = serve.get_app_handle("changed").about.remote().result()
        return said

    before, after = deploy("onnxruntime:fp32"), deploy("torchscript:fp32")
    assert (before["variant"], after["variant"]) == ("onnxruntime:fp32", "torchscript:fp32")
    assert before["pid"] == after["pid"]
    serve.delete("changed")


def test_http_and_batches_and_an_error_of_ones_own(cluster: int, pictured: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (20, 10), (200, 30, 60)).save(tmp_path / "red.png")
    handle = serve.run(application(pictured, batch=4, batch_wait_s=0.05, threads=1), name="batched", route_prefix="/batched")
    sent = [handle.infer.remote(question(seed)) for seed in range(8)]
    wrong = handle.infer.remote(np.zeros((1, 3, 5, 5), np.float32))
    with accel.load(pictured, device="cpu", threads=1) as engine:
        for seed, answer in enumerate(sent):
            np.testing.assert_allclose(answer.result(), engine(question(seed)), atol=1e-6)
        expected = engine.predict(tmp_path / "red.png")
    with pytest.raises(ray.exceptions.RayTaskError, match=r"\(1, 3, 5, 5\)"):
        wrong.result()
    address = f"http://127.0.0.1:{cluster}/batched"
    with urllib.request.urlopen(urllib.request.Request(address, (tmp_path / "red.png").read_bytes()), timeout=30) as reply:
        np.testing.assert_allclose(json.load(reply)["outputs"]["output"], expected)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(address, b"no picture"), timeout=30)
    serve.delete("batched")
