"""What runs in a Ray Serve replica, without Ray: loading, changing over, health, and requests that go together."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import accel
from accel.errors import AccelError, BundleMissing, MissingExtra, ParityError, UsageError
from accel.integrations import ray as ours
from accel.integrations.ray import Replica, application, together
from accel.runtimes import cache


def deployed(bundle: Path, **settings: Any) -> dict[str, Any]:
    return {"bundle": str(bundle), "device": "cpu", **settings}


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8), dtype=np.float32)


def test_a_replica_answers_as_the_engine_and_says_what_runs(tiny: Path) -> None:
    async def served() -> None:
        replica = Replica()
        await replica.reconfigure(deployed(tiny))
        with accel.load(tiny, device="cpu") as engine:
            np.testing.assert_array_equal(await replica.infer(rows(3)), engine(rows(3)))
        await replica.check_health()
        assert (await replica.about())["variant"] == "onnxruntime:fp32"
        with pytest.raises(UsageError, match="float64"):
            await replica.infer(np.zeros((1, 3, 8, 8)))

    asyncio.run(served())


def test_the_event_loop_is_free_while_the_engine_is_busy(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    async def served() -> None:
        replica = Replica()
        await replica.reconfigure(deployed(tiny))
        monkeypatch.setattr(type(replica._ready().engine), "__call__", lambda _, given: free.wait(10) and given)
        busy = asyncio.ensure_future(replica.infer("question"))
        await asyncio.sleep(0)
        free.set()  # only a loop that is free comes here
        assert await busy == "question"

    asyncio.run(served())


def test_a_new_setting_changes_over_after_what_was_accepted_and_closes_the_old_engine(tiny: Path) -> None:
    async def served() -> None:
        replica = Replica()
        await replica.reconfigure(deployed(tiny))
        accepted = [asyncio.ensure_future(replica.infer(rows(1, seed))) for seed in range(5)]
        await asyncio.sleep(0)
        await replica.reconfigure(deployed(tiny, runtime="torchscript:fp32"))
        assert [answer.shape for answer in await asyncio.gather(*accepted)] == [(1, 10)] * 5
        assert (await replica.about())["variant"] == "torchscript:fp32"

    before = cache.count()
    asyncio.run(served())
    assert cache.count() <= before + 1


def test_a_setting_that_cannot_be_loaded_leaves_the_old_engine(tiny: Path) -> None:
    async def served() -> None:
        replica = Replica()
        await replica.reconfigure(deployed(tiny))
        with pytest.raises(BundleMissing):
            await replica.reconfigure(deployed(tiny.with_name("nothing.accel")))
        assert (await replica.infer(rows(2))).shape == (2, 10)

    asyncio.run(served())


def test_a_replica_that_answers_its_sample_otherwise_than_at_first_is_not_healthy(tiny: Path) -> None:
    async def served() -> None:
        replica = Replica()
        await replica.check_health()  # nothing is loaded yet, and Serve may ask
        await replica.reconfigure(deployed(tiny))
        await replica.check_health()
        for worse in (replica._ready().answer[0] + 1, np.full((1, 10), np.nan)):
            replica._ready().answer[0] = worse
            with pytest.raises(ParityError, match="from what it answered when it was loaded"):
                await replica.check_health()

    asyncio.run(served())


def test_a_replica_without_a_bundle_says_so() -> None:
    with pytest.raises(AccelError, match="given no bundle"):
        asyncio.run(Replica().infer(rows(1)))


class Posted:
    """The one thing of a Starlette request that the replica reads."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def body(self) -> bytes:
        return self._body


def test_http_takes_a_picture_and_says_what_is_wrong_with_another(tiny: Path, tmp_path: Path, rewritten: Callable[..., None]) -> None:
    pytest.importorskip("starlette")
    image = pytest.importorskip("PIL.Image")
    rewritten(tiny, preprocess={"mean": [0.5] * 3, "std": [0.25] * 3, "height": 8, "width": 8})
    image.new("RGB", (20, 10), (200, 30, 60)).save(tmp_path / "red.png")

    async def served() -> None:
        replica = Replica()
        await replica.reconfigure(deployed(tiny))
        good = await replica(Posted((tmp_path / "red.png").read_bytes()))
        bad = await replica(Posted(b"no picture"))
        with accel.load(tiny, device="cpu") as engine:
            expected = engine.predict(tmp_path / "red.png")
        said = json.loads(good.body)
        assert (good.status_code, said["engine"]) == (200, "onnxruntime:fp32")
        np.testing.assert_allclose(said["outputs"]["output"], expected)
        assert (bad.status_code, json.loads(bad.body)["remedy"]) == (400, "replace or remove the file")

    asyncio.run(served())


def test_requests_that_go_together_are_one_call_and_get_their_own_rows() -> None:
    calls: list[Any] = []

    def engine(given: Any) -> Any:
        calls.append(given)
        if isinstance(given, np.ndarray) and given.ndim == 2 and given.shape[1] == 2:
            return given * 10
        raise UsageError("the engine takes rows of two")

    first, second, wrong, scalar = np.ones((1, 2)), np.full((3, 2), 2.0), np.ones((1, 5)), 7
    answers = together([first, wrong, second, scalar], engine)
    assert len(calls) == 3
    np.testing.assert_array_equal(answers[0], [[10, 10]])
    np.testing.assert_array_equal(answers[2], [[20, 20]] * 3)
    assert isinstance(answers[1], UsageError)
    assert isinstance(answers[3], UsageError)


def test_requests_by_name_go_together_and_so_do_their_answers() -> None:
    def engine(given: Any) -> Any:
        return {"sum": given["left"] + given["right"], "left": given["left"]}

    asked = [{"left": np.full((count, 2), 1.0), "right": np.full((count, 2), count)} for count in (1, 2)]
    one, two = together(asked, engine)
    np.testing.assert_array_equal(one["sum"], [[2, 2]])
    np.testing.assert_array_equal(two["sum"], [[3, 3], [3, 3]])
    assert two["left"].shape == (2, 2)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, extra: str) -> None:
        raise MissingExtra(module, extra)

    monkeypatch.setattr(ours, "require", absent)
    with pytest.raises(MissingExtra, match=r"accel-engines\[ray\]"):
        application("engines/tiny.accel")
