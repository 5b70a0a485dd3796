"""Batches that other processes read are those of the resident loader, however many processes there are."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainable_net import TINY, build, pictures  # noqa: E402

from accel.errors import CorruptArtifact, MissingError  # noqa: E402
from accel.trainers import augment, train, views, workers  # noqa: E402
from accel.trainers.loop import fit  # noqa: E402
from accel.trainers.ranks import Ranks  # noqa: E402
from accel.trainers.views import Source, Views, augmented  # noqa: E402

COUNT = 40
COLOURS = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
OPTIONS = {"colours": COLOURS, "dtype": torch.float32, "num_classes": 10}
PLAIN = dataclasses.replace(TINY, batch_size=12, seed=3)
EVERYTHING = {"flip": "random", "randaugment": 2, "rotation": 10.0, "mixup": 0.3, "cutmix": 1.0, "upscale": 40}
TRAIN = pictures(COUNT, "train")
LABELS = torch.from_numpy(TRAIN.labels).long()


def rows(images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return images[numbers]


def numbered(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float32)[:, None]


def resident(recipe, ranks: Ranks = workers.ALONE) -> Views:
    return Views(torch.from_numpy(TRAIN.images), LABELS, recipe, ranks=ranks, **OPTIONS)


def streamed(recipe, count: int, ranks: Ranks = workers.ALONE, read=None) -> workers.Streamed:
    read = read or functools.partial(rows, TRAIN.images)
    return workers.Streamed(read, LABELS, recipe, size=(32, 32), workers=count, ranks=ranks, **OPTIONS)


def epochs(source: Source, steps: int = 3) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """All batches of two epochs."""
    seen = []
    for epoch in range(2):
        source.begin(epoch)
        seen.append([source.batch(step) for step in range(steps)])
    return seen


def assert_same(one, other) -> None:
    for batches, others in zip(one, other, strict=True):
        for (images, targets), (other_images, other_targets) in zip(batches, others, strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(targets, other_targets)


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_batches_are_the_resident_loaders_for_any_number_of_workers(changes):
    recipe = dataclasses.replace(PLAIN, **changes)
    want = epochs(resident(recipe))
    assert not torch.equal(want[0][0][0], want[1][0][0])
    for count in (0, 1, 2):
        assert_same(epochs(streamed(recipe, count)), want)


def test_a_read_batch_is_cropped_flipped_normalised_and_cut_out_in_this_order():
    source = streamed(PLAIN, 0)
    source.begin(0)
    batches = [source.batch(step) for step in range(3)]
    generator = torch.Generator().manual_seed(PLAIN.seed)
    drawn = augment.draw(PLAIN, 0, (32, 32), augment.first_mirrored(COUNT, generator), generator)
    moved = augment.crop_and_flip(torch.from_numpy(TRAIN.images), drawn.order, drawn.top, drawn.left, drawn.mirrored)
    want = augment.cut_out(augment.normalise(moved, *COLOURS, torch.float32), drawn.hole_row, drawn.hole_column, PLAIN.cutout)
    assert torch.equal(torch.cat([images for images, _ in batches]), want[:36])
    assert torch.equal(torch.cat([labels for _, labels in batches]), LABELS[drawn.order[:36]])
    assert bool((want[:36] == 0).all(dim=3).any())  # a hole


@pytest.mark.parametrize("make", [resident, functools.partial(streamed, count=0)], ids=["resident", "streamed"])
def test_ranks_take_disjoint_parts_that_together_are_the_whole_batch(make):
    recipe = dataclasses.replace(PLAIN, randaugment=1, rotation=10.0)
    whole = epochs(make(recipe))
    parts = [epochs(make(recipe, ranks=Ranks(rank, 3))) for rank in range(3)]
    joined = [
        [tuple(torch.cat([part[epoch][step][which] for part in parts]) for which in range(2)) for step in range(3)] for epoch in range(2)
    ]
    assert [len(images) for images, _ in parts[0][0]] == [4, 4, 4]
    for batches, others in zip(joined, whole, strict=True):
        for (images, labels), (wanted, wanted_labels) in zip(batches, others, strict=True):
            torch.testing.assert_close(images, wanted, rtol=1e-5, atol=1e-5)  # grid_sample and pow are vectorised by position
            assert torch.equal(labels, wanted_labels)


def test_a_source_goes_on_from_its_state_and_an_example_leaves_no_trace():
    source, other = streamed(PLAIN, 0), streamed(PLAIN, 2)
    source.begin(0)
    state = source.state_dict()
    want = epochs(source)
    other.example()
    other.load_state_dict(state)
    assert_same(epochs(other), want)


def test_reading_counts_as_waiting_and_nothing_else_does(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(views.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(workers, "augmented", lambda *given: clock.append(clock.pop() + 50.0) or augmented(*given))

    def slowly(numbers: np.ndarray) -> np.ndarray:
        clock[0] += 2.0
        return TRAIN.images[numbers]

    source = streamed(PLAIN, 0, read=slowly)
    seen = []
    for epoch in range(2):
        source.begin(epoch)
        for step in range(2):
            source.batch(step)
            seen.append(source.waited_s)
    assert seen == [2.0, 4.0, 2.0, 4.0]
    assert resident(PLAIN).waited_s == 0.0


def test_the_log_has_what_an_epoch_waited_for(monkeypatch):
    source, rows = streamed(PLAIN, 0), []
    monkeypatch.setattr(source, "_waited_for", lambda read: setattr(source, "waited_s", source.waited_s + 0.5) or read())
    fit(build(), source, dataclasses.replace(PLAIN, epochs=1), on_epoch=rows.append)
    assert [row["data_wait_s"] for row in rows] == [2.0]  # to begin, and for each of three batches


def test_batches_must_be_asked_for_in_order():
    source = streamed(PLAIN, 0)
    source.begin(0)
    with pytest.raises(ValueError, match="batch 1 was asked for; the next is 0"):
        source.batch(1)


def test_measured_images_come_in_order_each_time(monkeypatch):
    monkeypatch.setattr(workers, "MEASURED", 15)
    measured = workers.Measurable(numbered, LABELS, 2)
    for _ in range(2):
        batches = list(measured)
        assert [len(images) for images, _ in batches] == [15, 15, 10]
        assert torch.cat([images for images, _ in batches])[:, 0].tolist() == list(range(COUNT))
        assert torch.equal(torch.cat([labels for _, labels in batches]), LABELS)


def test_reading_in_workers_draws_nothing_from_torchs_generator():
    before = torch.get_rng_state()
    epochs(streamed(PLAIN, 1))
    assert torch.equal(torch.get_rng_state(), before)


def unreadable(numbers: np.ndarray) -> np.ndarray:
    raise CorruptArtifact("photos/cat/7.png cannot be decoded", remedy="replace or remove the file")


def killed(numbers: np.ndarray) -> np.ndarray:
    os.kill(os.getpid(), signal.SIGKILL)
    return numbers


@pytest.mark.parametrize("count", [0, 1])
def test_what_a_worker_meets_with_arrives_as_it_was_raised(count):
    source = streamed(PLAIN, count, read=unreadable)
    source.begin(0)
    with pytest.raises(CorruptArtifact) as caught:
        source.batch(0)
    assert str(caught.value) == "photos/cat/7.png cannot be decoded\n  to mend it: replace or remove the file"


def test_a_worker_that_is_killed_is_named_and_what_mends_it():
    source = streamed(PLAIN, 1, read=killed)
    source.begin(0)
    with pytest.raises(MissingError, match=r"a process that read images ended \(DataLoader worker") as caught:
        source.batch(0)
    assert "--shm-size" in caught.value.remedy


@pytest.mark.parametrize(("processors", "beside", "wanted"), [(1, 1, 1), (6, 1, 6), (64, 1, 8), (16, 4, 4), (2, 8, 1)])
def test_workers_are_as_many_as_processors_of_this_rank_but_eight_at_most(monkeypatch, processors, beside, wanted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)), raising=False)
    assert workers.count(Ranks(0, beside, 0, beside)) == wanted


def reader_of(numbers: np.ndarray) -> np.ndarray:
    return np.full(1, os.getpid())


def test_the_processes_that_read_outlive_an_epoch():
    reading = workers.loader(reader_of, np.arange(6)[:, None], 2, torch.device("cpu"))
    first, second = ({int(batch) for batch in workers.received(reading)} for _ in range(2))
    assert first == second
    assert len(first) == 2
    assert os.getpid() not in first


def test_memory_is_pinned_for_a_gpu_only():
    assert workers.loader(rows, [], 1, torch.device("cuda")).pin_memory
    assert not workers.loader(rows, [], 1, torch.device("cpu")).pin_memory


class Sent:
    """A batch as it comes from a worker, that notes how it is sent to the device."""

    def __init__(self, images: torch.Tensor, how: list) -> None:
        self.images, self.how = images, how

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device, **how: bool) -> torch.Tensor:
        self.how.append(how)
        return self.images.to(device)


def test_nothing_waits_for_a_batch_on_its_way_to_the_device(monkeypatch):
    how: list = []
    monkeypatch.setattr(workers, "received", lambda batches: iter([Sent(torch.from_numpy(TRAIN.images[:12]), how)]))
    source = streamed(PLAIN, 0)
    source.begin(0)
    source.batch(0)
    assert len(list(workers.Measurable(numbered, LABELS[:12], 0))) == 1
    assert how == [{"non_blocking": True}] * 2


def test_a_run_by_workers_is_that_by_the_resident_loader(tiny, tmp_path):
    changes = {"split": "45k/5k", "randaugment": 1}
    one = train("tiny", recipe=tiny, overrides=changes, out=tmp_path / "gpu", device="cpu")
    other = train("tiny", recipe=tiny, overrides={**changes, "loader": "workers"}, out=tmp_path / "workers", device="cpu")
    assert other.sha256 == one.sha256

    def logged(path: Path) -> list[list[str]]:
        return [line.split(",")[:-3] for line in (path / "log.csv").read_text().splitlines()]

    assert logged(one.path) == logged(other.path)
    assert other.recipe["loader"] == "workers"


@pytest.mark.gpu
def test_workers_feed_a_gpu(tiny, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    changes = {"loader": "workers", "epochs": 40, "cutout": 0, "amp": "bf16"}
    checkpoint = train("tiny", recipe=tiny, overrides=changes, out=tmp_path, device="cuda:0")
    assert checkpoint.top1 >= 50
