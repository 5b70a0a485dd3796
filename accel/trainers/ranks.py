"""The processes that train one model together, as torchrun starts them, and what they exchange.

    torchrun --nproc-per-node 2 -m accel train resnet18

Each process (a rank) holds the whole model and takes its own part of every batch; `batch_size` stays that of all parts together, so
that a recipe means the same on any number of GPUs. Once an update, DistributedDataParallel averages the gradients over the ranks.

BatchNorm's statistics are each rank's own, over its part of the batch: SyncBN would exchange them twice for every such layer and step,
which costs thin networks more than it gives where a part is as large as the batch that one GPU would train on. Stored are those of
rank 0, which alone measures, logs and writes. An image's partner in mixup and cutmix comes from the part of its own rank. A run is
resumed by as many processes as it began with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.errors import AccelError, ConfigError, DeviceUnavailable, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel.trainers.backend import Forward

logger = logging.getLogger(__name__)

PATIENCE = datetime.timedelta(hours=12)
"""How long a rank waits for the others, who may be measuring or compiling; torchrun ends all of them as soon as one has failed."""

VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Of the environment, beside WORLD_SIZE; torchrun sets them."""

FAILURES, FINISHED = "accel/failures", "accel/finished"
"""Keys of the store that all ranks share."""


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among `count`, counted from 0; on its host it is number `local` of `beside`."""

    rank: int = 0
    count: int = 1
    local: int = 0
    beside: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that measures, logs and writes."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device of this process, where `asked` (`auto`, `cpu` or `cuda`) is that of all.

        Raises:
            UsageError: a GPU was named, which all processes would share. DeviceUnavailable: there are fewer GPUs than processes.
        """
        if self.count == 1 or asked == "cpu":
            return asked
        if asked not in ("auto", "cuda"):
            raise UsageError(
                f"{asked} was asked for in {self.count} processes, of which each takes a GPU of its own",
                remedy="use --device auto, cuda or cpu",
            )
        import torch

        if asked == "auto" and not torch.cuda.is_available():
            return "cpu"
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.local >= found:
            raise DeviceUnavailable(
                f"{self.beside} processes on this host ask for a GPU each; torch {torch.__version__} sees {found} GPUs",
                remedy=f"--nproc-per-node {found}" if found else "use --device cpu",
            )
        return f"cuda:{self.local}"

    def share(self, batch_size: int) -> int:
        """Images of a batch that are this rank's.

        Raises:
            ConfigError: the batch cannot be shared out evenly.
        """
        if batch_size % self.count:
            raise ConfigError(
                f"batch_size = {batch_size} cannot be shared out evenly among {self.count} processes",
                remedy=f"--batch-size {max(round(batch_size / self.count), 1) * self.count}",
            )
        return batch_size // self.count

    def part(self, values: Any, batch_size: int) -> Any:
        """Of an epoch's values, one an image and in the order of its batches (a tensor or an array), those of this rank's images.

        Among several the last, partial batch is dropped.
        """
        if self.count == 1:
            return values
        steps, rest = len(values) // batch_size, values.shape[1:]
        batches = values[: steps * batch_size].reshape(steps, self.count, self.share(batch_size), *rest)
        return batches[:, self.rank].reshape(steps * self.share(batch_size), *rest)

    def together(self, objective: Forward, module: nn.Module) -> tuple[Forward, Callable[[], contextlib.AbstractContextManager[Any]]]:
        """`objective`, after whose backward pass the gradients of `module` are the ranks' mean; and a context where they are each's own.

        The objective is wrapped once it is compiled, so its graph holds no exchange: the gradients travel when the backward pass ends.
        """
        if self.count == 1:
            return objective, contextlib.nullcontext
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel

        class Objective(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                # Not the module itself, whose buffers (BatchNorm's statistics) would be overwritten by rank 0's before each step.
                self.weights = nn.ParameterList(module.parameters())

            def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
                return objective(images, targets)

        wrapped = DistributedDataParallel(Objective())
        return wrapped, wrapped.no_sync

    def total(self, values: Tensor) -> Tensor:
        """The sum over the ranks, on each of them."""
        if self.count > 1:
            import torch

            torch.distributed.all_reduce(values)
        return values

    def reseed(self, seed: int, epoch: int) -> None:
        """Give each rank draws of its own in `epoch` (dropout's); a process that is alone goes on with those that it has.

        By epoch, because the state of a run holds rank 0's generator only.
        """
        if self.count > 1:
            import torch

            torch.manual_seed(int(np.random.SeedSequence([seed, epoch, self.rank]).generate_state(1, np.uint64)[0]))


ALONE = Ranks()


def from_environment() -> Ranks:
    """Who this process is, by the variables that torchrun sets; ALONE without them.

    Raises:
        UsageError: WORLD_SIZE says that there are others, and a variable that says who and where is missing or wrong.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return ALONE
    try:
        if missing := [name for name in VARIABLES if name not in os.environ]:
            raise ValueError(f"{', '.join(missing)} not set")
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        return Ranks(int(os.environ["RANK"]), int(count), int(os.environ["LOCAL_RANK"]), beside)
    except ValueError as error:
        raise UsageError(
            f"WORLD_SIZE = {count} asks for training in several processes: {error}",
            remedy="start it by torchrun --nproc-per-node N -m accel train …, or unset WORLD_SIZE",
        ) from error


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that were started beside this one, over NCCL for GPUs and Gloo for CPUs; leave them at the end.

    At the end all wait for rank 0. If one fails, the first to do so says why, for all: its error and those of the others are marked as
    told. Below the severity of an error only rank 0 logs.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UsageError, DeviceUnavailable: as `from_environment` and `Ranks.device`.
        AccelError: another process has failed and this one could not go on without it.
    """
    ranks = from_environment()
    if ranks.count == 1:
        yield ranks
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    from accel.trainers import backend

    own = backend.find(ranks.device(device))
    if own.type == "cuda":
        torch.cuda.set_device(own)
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    distributed.init_process_group(
        "nccl" if own.type == "cuda" else "gloo", store=store, rank=ranks.rank, world_size=ranks.count, timeout=PATIENCE
    )
    logs = logging.getLogger("accel")
    level = logs.level
    if not ranks.leads:
        logs.setLevel(logging.ERROR)
    failed = True
    try:
        yield ranks
        if ranks.leads:
            store.set(FINISHED, "yes")
        else:
            store.wait([FINISHED], PATIENCE)
        failed = False
    except Exception as error:
        place = _place_among_failures(store)
        if place == 1:
            where = f"rank {ranks.rank} of {ranks.count}: " if not ranks.leads else ""
            logger.error("%s%s", where, error, exc_info=None if isinstance(error, AccelError) else error)
        if isinstance(error, AccelError):
            error.told = place is not None
        elif place != 1:
            gone = AccelError("another process of the run has failed, and this one ended with it")
            gone.told = place is not None
            raise gone from error
        raise
    finally:
        logs.setLevel(level)
        _leave(failed)


def _place_among_failures(store: Any) -> int | None:
    """1 for the first process that fails; None if the store went down with the process that held it."""
    try:
        return int(store.add(FAILURES, 1))
    except RuntimeError:
        return None


def _leave(failed: bool) -> None:
    from torch import distributed

    # NCCL waits for what it has begun; with a rank gone that would be for ever.
    abort = getattr(distributed.distributed_c10d, "_abort_process_group", None)
    if failed and abort is not None and distributed.get_backend() == "nccl":
        abort()
    else:
        distributed.destroy_process_group()
