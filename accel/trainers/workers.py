"""Batches that processes beside the training one prepare: a DataLoader whose workers read, decode and resize, and draw nothing.

What is random is drawn in the training process, with the generator and the functions of the resident loader, and done to the batch on
the device: so the batches are the same for any number of workers, and, on a CPU, the same as the resident loader's bit for bit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.errors import AccelError, MissingError
from accel.trainers.ranks import ALONE, Ranks
from accel.trainers.views import Source, augmented, finished
from accel.types import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from accel.trainers.recipe import Recipe
    from accel.trainers.views import Colours

    Read = Callable[[Array], Array]

MOST = 8
"""Workers of a process; each holds two batches ready."""

MEASURED = 100
"""Images that are read at a time to be measured: float32, and there are two such batches for each worker."""


def count(ranks: Ranks = ALONE) -> int:
    """Workers for this process: one for each processor that it may use, those of its host shared out among its ranks, at most MOST."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors // ranks.beside, MOST))


class Streamed(Source):
    """Of images that are read batch by batch.

    Args:
        read: int64 (B,) → uint8 B×H×W×3, the images with these numbers; runs in the workers.
        labels: int64 (N,), on the device that the batches are for.
        size: height and width of what `read` gives.
        colours: mean and standard deviation of the channels, of images scaled to 0..1.
        dtype: of the batches.
        workers: processes; 0 reads in this one.
    """

    def __init__(
        self,
        read: Read,
        labels: Tensor,
        recipe: Recipe,
        *,
        size: tuple[int, int],
        colours: Colours,
        dtype: torch.dtype,
        num_classes: int,
        workers: int,
        ranks: Ranks = ALONE,
    ) -> None:
        import torch

        super().__init__(labels, recipe, size=size, generator=torch.Generator(), ranks=ranks)
        self._colours, self._dtype, self._num_classes = colours, dtype, num_classes
        self._orders: list[Array] = []
        self._loader = loader(read, self._orders, workers, self.device)

    def begin(self, epoch: int) -> None:
        import torch

        drawn = self._chosen(epoch)
        order = drawn.draws.order.numpy()
        self._orders[:] = [order[self._of_batch(index)] for index in range(len(order) // self._share)]
        self.waited_s = 0.0
        self._read = self._waited_for(lambda: enumerate(received(self._loader)))
        self._choices = drawn.each(lambda values: values.to(self.device) if isinstance(values, torch.Tensor) else values)

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """This rank's part of batch `index`, which must be the one after the last."""
        import torch

        number, pixels = self._waited_for(lambda: next(self._read))
        if number != index:
            raise ValueError(f"batch {index} was asked for; the next is {number}")
        part = self._of_batch(index)
        choices = self._choices.each(lambda values: values[part])
        labels = self._labels[choices.draws.order]
        # What was read lies in the order of the batch already.
        draws = dataclasses.replace(choices.draws, order=torch.arange(len(pixels), device=self.device))
        choices = dataclasses.replace(choices, draws=draws)
        images = augmented(pixels.to(self.device, non_blocking=True), choices, self._recipe, self._colours, self._dtype)
        return finished(images, labels, self._choices, part, self._recipe, self._num_classes)


class Measurable:
    """Batches of preprocessed images and their labels, read anew each time that they are gone through.

    Args:
        read: int64 (B,) → float32 B×3×H×W, the images with these numbers; runs in the workers.
        labels: int64 (N,), on the device that the batches are for.
    """

    def __init__(self, read: Read, labels: Tensor, workers: int) -> None:
        self._read, self._labels, self._workers = read, labels, workers

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        numbers = np.arange(len(self._labels))
        parts = np.split(numbers, range(MEASURED, len(numbers), MEASURED))
        device = self._labels.device
        images = received(loader(self._read, parts, self._workers, device))
        for batch, labels in zip(images, torch.split(self._labels, MEASURED), strict=True):
            yield batch.to(device, non_blocking=True), labels


def loader(read: Read, parts: Sequence[Array], workers: int, device: torch.device) -> Any:
    """A DataLoader of what `read` gives for each of `parts`, which are looked at anew each time that it is gone through."""
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        Reader(read),  # type: ignore[arg-type]
        sampler=parts,
        batch_size=None,  # a part is a batch already
        collate_fn=as_it_is,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the seeds that workers get, and do not use, must not come from what dropout draws from
    )


class Reader:
    """What a worker runs: the images with these numbers as a tensor, or the error that names the file which cannot be read."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, numbers: Array) -> Tensor | AccelError:
        import torch

        try:
            return torch.from_numpy(self.read(numbers))
        except AccelError as error:
            return error  # raised here it would come out as the text of a traceback


def as_it_is(batch: Any) -> Any:
    return batch


def received(batches: Any) -> Iterator[Tensor]:
    """What the workers of a DataLoader send.

    Raises:
        AccelError: what a worker met with. MissingError: one was killed.
    """
    iterator = iter(batches)
    # Called where a run fails: garbage collection would take the queues first, and then wait seconds for workers that no longer hear it.
    end_workers = getattr(iterator, "_shutdown_workers", lambda: None)

    def inner() -> Iterator[Tensor]:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                end_workers()
                if "DataLoader worker" not in str(error):
                    raise
                raise MissingError(
                    f"a process that read images ended ({str(error).splitlines()[0]})",
                    remedy="give the machine more memory, or more shared memory (docker: --shm-size), or use --loader gpu",
                ) from error
            if isinstance(batch, AccelError):
                end_workers()
                raise batch
            yield batch

    return inner()
