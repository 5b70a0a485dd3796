"""Contexts are lent to one call at a time, never more than the limit; calls can be awaited, cancelled and outlived."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from accel.errors import UsageError
from accel.runtimes import RUNTIMES, cache, fake, loaded, pool
from accel.runtimes.loaded import Chosen, LoadedEngine
from accel.runtimes.pool import Contexts
from accel.types import EngineSource, TensorSpec, Variant

IN, OUT = (TensorSpec("x", ("batch", 2)),), (TensorSpec("y", ("batch", 2)),)
ONE = np.array([[1.0, 2.0]], np.float32)


class World:
    """Scripted runtimes: how many were opened, on which threads, and what each call does meanwhile."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed = 0
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.meanwhile: Callable[[], None] = lambda: None
        self.one_thread = False
        self.threads: set[str] = set()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()

    class Runtime(fake.Fake):
        one_thread = property(lambda self: found.one_thread)

        def __init__(self, source: EngineSource) -> None:
            super().__init__(source, answer=self.double)
            self.thread = ""

        def open(self, stream: int | None) -> None:
            super().open(stream)
            self.thread = threading.current_thread().name
            found.opened.append(self.thread)

        def double(self, given: Any) -> Any:
            with found.lock:
                found.running += 1
                found.most = max(found.most, found.running)
                found.threads.add(threading.current_thread().name)
            try:
                if found.one_thread:
                    assert threading.current_thread().name == self.thread
                found.meanwhile()
                return {"y": 2 * given["x"]}
            finally:
                with found.lock:
                    found.running -= 1

        def close(self) -> None:
            super().close()
            found.closed += 1

    monkeypatch.setattr(fake, "Scripted", Runtime, raising=False)
    monkeypatch.setitem(RUNTIMES, "fake", fake.INFO.__class__(**{**vars(fake.INFO), "factory": "accel.runtimes.fake:Scripted"}))
    return found


@pytest.fixture
def engine_of(world: World) -> Iterator[Callable[..., LoadedEngine]]:
    """engine_of(limit) → a handle on a scripted engine."""
    handles: list[LoadedEngine] = []

    def make(limit: int, batches: str = "loop") -> LoadedEngine:
        source = EngineSource(Variant("fake", "fp32"), "cpu", IN, OUT)
        key = object()
        handles.append(LoadedEngine(key, cache.acquire(key, lambda: Contexts(source, limit)), None, Chosen(), batches))
        handles[-1]._shared.open()
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()
    assert cache.count() == 0


def in_threads(count: int, work: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def call(engine: LoadedEngine, times: int = 5) -> None:
    for number in range(times):
        np.testing.assert_array_equal(engine(ONE + number), 2 * (ONE + number))


@pytest.mark.parametrize("limit", [1, 3])
def test_a_hundred_threads_get_no_more_contexts_than_the_limit(world: World, engine_of: Callable[..., LoadedEngine], limit: int) -> None:
    engine = engine_of(limit)
    in_threads(100, lambda: call(engine))
    assert len(world.opened) <= limit
    assert world.most <= limit
    assert engine.explain()["contexts"] == {"open": len(world.opened), "limit": limit}


def test_calls_that_do_not_overlap_share_one_context(world: World, engine_of: Callable[..., LoadedEngine]) -> None:
    engine = engine_of(4)
    call(engine)
    in_threads(1, lambda: call(engine))
    assert len(world.opened) == 1


def test_calls_that_overlap_run_at_once(world: World, engine_of: Callable[..., LoadedEngine]) -> None:
    engine = engine_of(3)
    meet = threading.Barrier(3, timeout=20)
    world.meanwhile = meet.wait
    in_threads(3, lambda: call(engine, 1))
    assert (world.most, len(world.opened)) == (3, 3)


def test_a_context_that_cannot_be_opened_leaves_room_for_the_next_try(world: World, engine_of: Callable[..., LoadedEngine]) -> None:
    engine = engine_of(2)
    shared, real = engine._shared, pool.Session
    inside, gone = threading.Event(), threading.Event()

    def work(session: Any) -> None:
        inside.set()
        assert gone.wait(20)

    holder = threading.Thread(target=shared.run, args=(work,))
    holder.start()
    assert inside.wait(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "Session", lambda source: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            engine(ONE)
    assert pool.Session is real
    call(engine, 1)
    gone.set()
    holder.join()
    assert len(world.opened) == 2


def test_warm_up_opens_all_contexts(world: World, engine_of: Callable[..., LoadedEngine]) -> None:
    engine = engine_of(3)
    assert engine.warm_up(calls=2) == 3
    assert len(world.opened) == 3
    in_threads(8, lambda: call(engine))
    in_threads(8, lambda: engine.warm_up(calls=1))
    assert len(world.opened) == 3


def test_a_runtime_of_one_thread_is_only_run_by_the_thread_that_opened_it(world: World, engine_of: Callable[..., LoadedEngine]) -> None:
    world.one_thread = True
    engine = engine_of(3)
    call(engine)
    assert world.threads == {"MainThread"}
    in_threads(20, lambda: call(engine))
    assert len(world.opened) <= 3
    assert all(name == "MainThread" or name.startswith(pool.THREAD_NAME) for name in world.threads)
    assert engine.warm_up(1) == 1
    assert asyncio.run(engine.run_async(ONE)).tolist() == [[2.0, 4.0]]


def test_an_awaited_call_leaves_the_event_loop_free(world: World, engine_of: Callable[..., LoadedEngine]) -> None:
    engine = engine_of(2)
    let_go = threading.Event()
    world.meanwhile = lambda: let_go.wait(20) and None

    async def story() -> Any:
        waiting = asyncio.create_task(engine.run_async(ONE))
        # Were the loop blocked, nobody would ever let go.
        while not world.running:
            await asyncio.sleep(0)
        let_go.set()
        return await waiting

    np.testing.assert_array_equal(asyncio.run(story()), 2 * ONE)
    assert all(name.startswith(pool.THREAD_NAME) for name in world.threads)


def test_a_call_that_was_cancelled_while_it_waited_is_never_run_and_one_that_ran_gives_its_context_back(
    world: World, engine_of: Callable[..., LoadedEngine]
) -> None:
    engine = engine_of(1)
    let_go, calls = threading.Event(), []
    world.meanwhile = lambda: calls.append(1) or (let_go.wait(20) and None)

    async def story() -> None:
        running = asyncio.create_task(engine.run_async(ONE))
        while not world.running:
            await asyncio.sleep(0)
        queued = [asyncio.create_task(engine.run_async(ONE)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in (*queued, running):
            task.cancel()
        for task in (*queued, running):
            with pytest.raises(asyncio.CancelledError):
                await task
        let_go.set()
        np.testing.assert_array_equal(await engine.run_async(ONE), 2 * ONE)

    asyncio.run(story())
    assert len(calls) == 2


def test_wrong_arrays_are_told_before_anybody_waits(engine_of: Callable[..., LoadedEngine]) -> None:
    engine = engine_of(1)
    with pytest.raises(UsageError, match="expected float32"):
        asyncio.run(engine.run_async(ONE.astype(np.int32)))


def test_closing_waits_for_nobody_and_takes_nothing_from_a_call_that_runs(world: World, engine_of: Callable[..., LoadedEngine]) -> None:
    engine = engine_of(1)
    let_go, answers, refused = threading.Event(), [], []
    inside = threading.Event()
    world.meanwhile = lambda: inside.set() or (let_go.wait(20) and None)
    running = threading.Thread(target=lambda: answers.append(engine(ONE)))
    running.start()
    assert inside.wait(20)

    def late() -> None:
        try:
            engine(ONE)
        except UsageError as error:
            refused.append(error.message)

    waiting = [threading.Thread(target=late) for _ in range(3)]
    for thread in waiting:
        thread.start()
    engine.close()
    assert world.closed == 0
    let_go.set()
    for thread in (running, *waiting):
        thread.join(20)
    assert [answer.tolist() for answer in answers] == [[[2.0, 4.0]]]
    assert world.closed == 1
    with pytest.raises(UsageError, match="is closed"):
        engine(ONE)
    assert len(refused) == 3


@pytest.mark.parametrize("one_thread", [False, True])
def test_what_is_awaited_when_the_engine_closes_is_refused_and_not_forgotten(
    world: World, engine_of: Callable[..., LoadedEngine], one_thread: bool
) -> None:
    world.one_thread = one_thread
    engine = engine_of(1)
    let_go = threading.Event()
    world.meanwhile = lambda: let_go.wait(20) and None

    async def story() -> list[Any]:
        tasks = [asyncio.create_task(engine.run_async(ONE)) for _ in range(3)]
        while not world.running:
            await asyncio.sleep(0)
        engine.close()
        let_go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(story())
    assert first.tolist() == [[2.0, 4.0]]
    assert [type(other) for other in others] == [UsageError, UsageError]


def test_the_default_is_a_context_a_core_and_few_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda process: {0, 3}, raising=False)
    assert (pool.default_limit("cpu"), pool.default_limit("cuda:0")) == (2, 4)
    monkeypatch.delattr(pool.os, "sched_getaffinity")
    monkeypatch.setattr(pool.os, "cpu_count", lambda: 128)
    assert pool.default_limit("cpu") == 8


def test_no_contexts_are_refused(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="0 contexts run nothing"):
        loaded.open_cached(tmp_path, Variant("fake", "fp32"), "cpu", contexts=0)
    for threads in (0, -1, 1025):
        with pytest.raises(UsageError, match=f"{threads} threads were asked for"):
            loaded.open_cached(tmp_path, Variant("fake", "fp32"), "cpu", threads=threads)


class Elsewhere:
    """An array of another library on the host: DLPack, and nothing else that numpy knows."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def test_an_array_on_the_host_that_speaks_dlpack_is_taken_and_held_to_the_spec(engine_of: Callable[..., LoadedEngine]) -> None:
    engine = engine_of(1)
    np.testing.assert_array_equal(engine(Elsewhere(ONE)), 2 * ONE)
    with pytest.raises(UsageError, match="received int32"):
        engine(Elsewhere(ONE.astype(np.int32)))


def test_rows_of_another_number_than_the_batch_are_refused_as_asked(engine_of: Callable[..., LoadedEngine]) -> None:
    two = np.concatenate([ONE, ONE])
    np.testing.assert_array_equal(engine_of(1)(two), 2 * two)
    with pytest.raises(UsageError, match="runs 1 row a call, and was given 2"):
        engine_of(1, "refuse")(two)


def test_a_gpus_context_is_made_current_once_on_each_thread_that_borrows(monkeypatch: pytest.MonkeyPatch) -> None:
    activated: list[tuple[str, str]] = []
    monkeypatch.setattr(pool.driver, "activate", lambda name: activated.append((threading.current_thread().name, name)))

    class OnGpu:
        stream, natives, one_thread = 7, {"x": "float16"}, False

        def __init__(self, source: EngineSource) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(pool, "Session", OnGpu)
    contexts = Contexts(EngineSource(Variant("onnxruntime", "fp16"), "cuda:1", IN, OUT), 2)
    contexts.open()

    def work() -> None:
        for _ in range(3):
            contexts.run(lambda session: None)

    for name in ("first", "second"):
        thread = threading.Thread(target=work, name=name)
        thread.start()
        thread.join()
    contexts.close()
    assert activated == [("first", "cuda:1"), ("second", "cuda:1")]
    assert contexts.natives == {"x": "float16"}
