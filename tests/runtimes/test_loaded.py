"""What a service holds: arrays in, arrays out, from any thread, shared and counted."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_net import INPUTS, OUTPUTS, build_net, expected, export, some_images

from accel import device, engines, preprocess
from accel.checkpoint import write_checkpoint
from accel.errors import BundleMissing, CorruptArtifact, RuntimeUnavailable, UsageError
from accel.files import sha256_file
from accel.runtimes import cache, onnxruntime, ort_session, session
from accel.runtimes.loaded import Chosen, LoadedEngine, open_cached
from accel.types import Checkpoint, EngineEntry, TensorSpec, Variant

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
Open = Callable[..., LoadedEngine]
FAST = "onnxruntime:fp32"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny network with an onnx-fp32 and an onnx-fp32-b4 engine."""
    folder = tmp_path_factory.mktemp("loaded")
    state = {name: tensor.numpy() for name, tensor in build_net().state_dict().items()}
    draft = Checkpoint(folder / "checkpoint", "", "tiny", "tiny_net:build_net", 5, INPUTS[0], OUTPUTS[0])
    inputs = some_images(4)
    golden = engines.Golden(None, {"images": inputs}, {"logits": expected(inputs)})
    path = folder / "tiny.accel"
    engines.create(path, write_checkpoint(draft, state), golden)
    for batch in (1, 4):
        name = engines.entry_name("onnx", "fp32", batch)
        files = folder / name
        files.mkdir()
        export("onnxruntime", "fp32", batch, files / "model.onnx")
        specs = [tuple(TensorSpec(s.name, s.fixed(batch), s.dtype, s.layout) for s in group) for group in (INPUTS, OUTPUTS)]
        hashes = {f"{name}/model.onnx": sha256_file(files / "model.onnx")}
        entry = EngineEntry(
            name, "onnx", "fp32", hashes, *specs, {"torch": "2"}, 0.1, opset=17, parity={"status": "not run", "reason": "test"}
        )
        engines.add(path, entry, files)
    return path


@pytest.fixture
def load(bundle: Path) -> Iterator[Open]:
    """Opens handles on the bundle and closes them all at the end."""
    handles: list[LoadedEngine] = []

    def load_engine(spelling: str = FAST, device: str = "cpu", **options: Any) -> LoadedEngine:
        handles.append(open_cached(bundle, Variant.parse(spelling), device, **options))
        return handles[-1]

    yield load_engine
    for handle in handles:
        handle.close()
    assert cache.count() == 0


@pytest.mark.parametrize("spelling", ["onnxruntime:fp32", "eager:fp32", "eager:bf16"])
def test_numpy_in_and_numpy_out(load: Open, spelling: str) -> None:
    engine, images = load(spelling), some_images()
    logits = engine(images)
    assert isinstance(logits, np.ndarray)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(images), atol=5e-2 if "bf16" in spelling else 1e-5)
    np.testing.assert_array_equal(engine({"images": images}), logits)


def test_the_answer_is_the_callers(load: Open) -> None:
    engine = load()
    first = engine(some_images(seed=1))
    kept = first.copy()
    engine(some_images(seed=2))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(engine(some_images(seed=1)), kept)


@pytest.mark.parametrize("spelling", ["onnxruntime:fp32", "eager:bf16"])
def test_torch_on_the_cpu_gives_torch_on_the_cpu(load: Open, spelling: str) -> None:
    engine, images = load(spelling), torch.from_numpy(some_images())
    images.requires_grad_()
    logits = engine(images)
    assert (type(logits), logits.dtype, logits.device.type) == (torch.Tensor, torch.float32, "cpu")
    np.testing.assert_allclose(logits.numpy(), expected(some_images()), atol=5e-2 if "bf16" in spelling else 1e-5)
    # An ordinary tensor, not one of inference mode, and the caller's thread is as it was.
    assert not logits.is_inference()
    assert not torch.is_inference_mode_enabled()


def test_the_engines_own_dtype_is_taken_too(load: Open) -> None:
    logits = load("eager:bf16")(torch.from_numpy(some_images()).bfloat16())
    np.testing.assert_allclose(logits.numpy(), expected(some_images()), atol=5e-2)


@pytest.mark.parametrize(("engine_batch", "rows"), [(1, 3), (4, 4), (4, 1), (4, 10)])
def test_other_batches_are_run_in_slices(load: Open, engine_batch: int, rows: int) -> None:
    images = some_images(rows)
    np.testing.assert_allclose(load(batch=engine_batch)(images), expected(images), atol=1e-5)


def test_strided_arrays_are_taken(load: Open) -> None:
    images = some_images()
    np.testing.assert_allclose(load()(np.asfortranarray(images)), expected(images), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            some_images().astype(np.float64),
            r"'images': expected float32 of shape \('batch', 3, 8, 8\), received float64 of shape \(1, 3, 8, 8\)",
        ),
        (some_images().astype(np.float16), "received float16"),
        ((some_images() * 10).astype(np.uint8), "received uint8"),
        (some_images()[0], r"received float32 of shape \(3, 8, 8\)"),
        (some_images()[:0], r"received float32 of shape \(0, 3, 8, 8\)"),
        (some_images().tolist(), "received a list"),
        ({"pictures": some_images()}, "the inputs are images; received pictures"),
        ({}, "received none"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), "received int32"),
    ],
)
def test_wrong_inputs_name_the_tensor_and_both_sides(load: Open, given: Any, message: str) -> None:
    engine = load()
    with pytest.raises(UsageError, match=message) as caught:
        engine(given)
    assert caught.value.exit_code == 2
    engine(some_images())


def test_a_gpu_array_is_refused_by_an_engine_on_the_cpu(load: Open) -> None:
    class OnGpu:
        dtype, shape = np.dtype("float32"), (1, 3, 8, 8)
        __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012

    with pytest.raises(UsageError, match="is on cuda, the engine on cpu"):
        load()(OnGpu())


def test_a_second_load_is_free_and_the_last_close_frees(load: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    init = session.Session.__init__

    def counting(self: session.Session, source: Any) -> None:
        made.append(source)
        init(self, source)

    monkeypatch.setattr(session.Session, "__init__", counting)
    first, second = load(), load()
    assert (len(made), cache.count()) == (1, 1)
    first.close()
    first.close()
    np.testing.assert_allclose(second(some_images()), expected(some_images()), atol=1e-5)
    with pytest.raises(UsageError, match="is closed"):
        first(some_images())
    second.close()
    assert cache.count() == 0
    load()
    assert len(made) == 2


def test_another_variant_or_other_threads_is_another_engine(load: Open) -> None:
    load(), load("eager:fp32"), load(threads=1)
    assert cache.count() == 3


def test_a_bundle_that_changed_is_loaded_anew(load: Open, bundle: Path) -> None:
    old = load()
    stat = (bundle / "accel.json").stat()
    os.utime(bundle / "accel.json", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    new = load()
    assert cache.count() == 2
    np.testing.assert_array_equal(old(some_images()), new(some_images()))


def test_a_forgotten_handle_is_a_closed_one(bundle: Path) -> None:
    engine = open_cached(bundle, Variant.parse(FAST), "cpu")
    assert cache.count() == 1
    del engine
    assert cache.count() == 0


def test_as_a_context_manager(bundle: Path) -> None:
    with open_cached(bundle, Variant.parse(FAST), "cpu") as engine:
        assert engine(some_images()).shape == (1, 5)
    assert cache.count() == 0


def test_threads_share_a_handle_and_never_mix_results(load: Open) -> None:
    for spelling in ("onnxruntime:fp32", "eager:fp32"):
        engine = load(spelling)
        failures: list[BaseException] = []

        def work(seed: int, engine: LoadedEngine = engine, failures: list[BaseException] = failures) -> None:
            try:
                images = some_images(seed=seed)
                wanted = expected(images)
                for _ in range(20):
                    np.testing.assert_allclose(engine(images), wanted, atol=1e-5)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_contexts_of_onnxruntime_on_the_cpu_share_one_session_with_its_weights(load: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    real = ort_session.make_session
    monkeypatch.setattr(ort_session, "make_session", lambda *given: made.append(given) or real(*given))
    engine = load(contexts=3, threads=1)
    assert engine.warm_up(1) == 3
    assert (len(made), engine.explain()["contexts"]) == (1, {"open": 3, "limit": 3})
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            images = some_images(seed=seed)
            for _ in range(10):
                np.testing.assert_allclose(engine(images), expected(images), atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(made) == 1
    engine.close()
    assert len(onnxruntime._ON_CPU) == 0


@pytest.mark.parametrize("spelling", ["onnxruntime:fp32", "eager:fp32"])
def test_calls_and_pictures_can_be_awaited_together(load: Open, spelling: str) -> None:
    engine = load(
        spelling, contexts=2, preprocess=lambda images: np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255
    )
    batches = [some_images(seed=seed) for seed in range(6)]
    picture = np.full((8, 8, 3), 51, np.uint8)

    async def story() -> list[Any]:
        return await asyncio.gather(*(engine.run_async(batch) for batch in batches), engine.predict_async([picture, picture]))

    *answers, seen = asyncio.run(story())
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, expected(batch), atol=1e-5)
    np.testing.assert_allclose(seen, expected(np.full((2, 3, 8, 8), 0.2, np.float32)), atol=1e-5)
    assert not torch.is_inference_mode_enabled()


def test_threads_of_torch_are_those_of_the_engine_on_every_thread_that_borrows_it(load: Open) -> None:
    engine, before = load("eager:fp32", contexts=1, threads=1), torch.get_num_threads()
    found: list[int] = []

    def look(borrowed: session.Session) -> None:
        with borrowed.entered():
            found.append(torch.get_num_threads())

    def work() -> None:
        torch.set_num_threads(2)
        engine._shared.run(look)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert found == [1]


def test_many_threads_that_load_at_once_make_one_engine(bundle: Path) -> None:
    handles: list[LoadedEngine] = []
    threads = [threading.Thread(target=lambda: handles.append(open_cached(bundle, Variant.parse(FAST), "cpu"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(handles), cache.count()) == (4, 1)
    for handle in handles:
        handle.close()
    assert cache.count() == 0


def test_a_load_that_fails_holds_nothing(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no FP16 kernels on this CPU"):
        open_cached(bundle, Variant.parse("eager:fp16"), "cpu")
    with pytest.raises(BundleMissing, match="--fp16"):
        open_cached(bundle, Variant.parse("onnxruntime:fp16"), "cpu")
    with pytest.raises(BundleMissing, match="no engine folder"):
        open_cached(tmp_path / "absent.accel", Variant.parse(FAST), "cpu")
    assert cache.count() == 0


def test_predict_preprocesses_and_a_call_does_not(load: Open) -> None:
    picture = np.full((8, 8, 3), 51, np.uint8)
    engine = load(preprocess=lambda images: np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255)
    np.testing.assert_allclose(engine.predict(picture), expected(np.full((1, 3, 8, 8), 0.2, np.float32)), atol=1e-5)
    with pytest.raises(UsageError, match="no preprocessing"):
        load().predict(picture)


def test_predict_takes_files_bytes_and_pillow_images_of_any_size_in_one_batch(load: Open, tmp_path: Path) -> None:
    image_of = pytest.importorskip("PIL.Image").fromarray
    prepare = preprocess.Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 8, 8)
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    image_of(small).save(tmp_path / "small.png")
    image_of(large).save(tmp_path / "large.png")
    engine = load(preprocess=prepare.pictures)
    given = [small, tmp_path / "small.png", (tmp_path / "large.png").read_bytes(), image_of(large), str(tmp_path / "large.png"), large]
    seen = np.stack([small, small, *[prepare.fit(large)] * 4])
    answers = engine.predict(given)
    assert (answers.shape, answers.dtype) == ((6, 5), np.float32)
    np.testing.assert_allclose(answers, expected(prepare(seen)), atol=1e-4)
    np.testing.assert_array_equal(engine.predict(seen), answers)
    for number, alone in enumerate(given):
        np.testing.assert_array_equal(engine.predict(alone), answers[number : number + 1])
    assert engine.batch == 1


def test_predict_refuses_what_is_no_picture_and_says_which_file_is_broken(load: Open, tmp_path: Path) -> None:
    engine = load(preprocess=preprocess.CIFAR10.pictures)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(CorruptArtifact, match=r"broken\.jpg cannot be decoded"):
        engine.predict([tmp_path / "broken.jpg"])
    for wrong in ([], [3], np.zeros((8, 8, 3), np.float32), torch.zeros(1, 8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(UsageError):
            engine.predict(wrong)


def test_explain_says_what_runs_and_why(load: Open) -> None:
    found = load(chosen=Chosen("the fastest that was verified")).explain()
    assert (found["variant"], found["device"], found["engine"], found["why"]) == (FAST, "cpu", "onnx-fp32", "the fastest that was verified")
    assert found["facts"]["provider"] == "CPUExecutionProvider"
    assert load("eager:fp32").explain()["engine"] == "checkpoint"


@pytest.fixture
def on_gpu() -> str:
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    return "cuda:0"


GPU_SPELLINGS = ("onnxruntime:fp32", "eager:fp32", "eager:fp16", "compile:fp16+reduce-overhead")


@pytest.mark.gpu
@pytest.mark.parametrize("spelling", GPU_SPELLINGS)
def test_torch_on_the_gpu_gives_torch_on_the_gpu(load: Open, on_gpu: str, spelling: str) -> None:
    engine = load(spelling, on_gpu)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # Enqueued on the caller's stream and not waited for: the engine has to.
        torch.cuda._sleep(20_000_000)
        images = torch.from_numpy(some_images(3)).to(on_gpu, non_blocking=True).to(memory_format=torch.channels_last)
        logits = engine(images)
        assert torch.cuda.current_stream() == side
    assert (logits.device, logits.dtype, logits.shape) == (torch.device(on_gpu), torch.float32, (3, 5))
    np.testing.assert_allclose(logits.cpu().numpy(), expected(some_images(3)), atol=2e-2 if "fp16" in spelling else 1e-4)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("spelling", GPU_SPELLINGS)
def test_numpy_through_a_gpu(load: Open, on_gpu: str, spelling: str) -> None:
    np.testing.assert_allclose(load(spelling, on_gpu)(some_images(3)), expected(some_images(3)), atol=2e-2 if "fp16" in spelling else 1e-4)


@pytest.mark.gpu
def test_other_gpu_arrays_are_taken_in_the_engines_dtype(load: Open, on_gpu: str) -> None:
    engine, images = load(device=on_gpu), some_images(2)
    logits = engine(device.to_device(images, "float32", on_gpu, None))
    np.testing.assert_allclose(device.to_numpy(logits, None), expected(images), atol=1e-4)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.gpu
@pytest.mark.parametrize("spelling", ["onnxruntime:fp32", "eager:fp32", "onnxruntime:fp32+graph"])
def test_many_threads_share_few_contexts_of_a_gpu(load: Open, on_gpu: str, spelling: str) -> None:
    engine = load(spelling, on_gpu, contexts=3)

    def work(seed: int) -> None:
        images = some_images(seed=seed)
        for _ in range(20):
            np.testing.assert_allclose(engine(images), expected(images), atol=1e-4)

    in_threads(16, work)
    assert engine.explain()["contexts"]["open"] <= 3
    images = some_images(seed=99)
    np.testing.assert_allclose(asyncio.run(engine.run_async(images)), expected(images), atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("spelling", ["onnxruntime:fp32", "onnxruntime:fp32+graph"])
def test_an_awaited_call_is_ordered_after_the_stream_of_whoever_awaits_it(load: Open, on_gpu: str, spelling: str) -> None:
    engine, side = load(spelling, on_gpu, contexts=2), torch.cuda.Stream()

    async def story() -> Any:
        with torch.cuda.stream(side):
            # Enqueued on the caller's stream and not waited for; the call is run by another thread.
            torch.cuda._sleep(20_000_000)
            images = torch.from_numpy(some_images(3)).to(on_gpu, non_blocking=True)
            return await engine.run_async(images)

    np.testing.assert_allclose(asyncio.run(story()).cpu().numpy(), expected(some_images(3)), atol=1e-4)
