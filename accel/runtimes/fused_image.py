"""Where the kernels of a fused engine read the image: in the caller's own memory, so that no call copies it to a place of ours."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from accel import device
from accel.device import driver, kernels
from accel.device.graph import Call
from accel.device.kernels import Launch
from accel.engines.fused_plan import PARAMETERS
from accel.errors import AccelError
from accel.types import ITEMSIZE, Binding, DeviceArray

logger = logging.getLogger(__name__)

IMAGE = PARAMETERS.index("image")
NOWHERE = 0
"""No address: what the graph reads is not known, and is set anew before the next launch."""

Arrays = Mapping[str, DeviceArray]


def is_aligned(image: DeviceArray) -> bool:
    """Whether kernels can read it where it is: they read one value at a time (image.cuh), which must lie at a multiple of its size."""
    return image.ptr % ITEMSIZE[image.dtype] == 0


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """What `enqueue` does for one binding; `Binding.native` of a fused engine with a graph.

    Attributes:
        address: where the kernels read the image. setters: make the graph's kernels read it there, where they do not.
        calls: of every call: a copy where the image cannot be read where it is, and the graph's launch.
        held: what must live as long as the address is in the graph.
    """

    address: int
    setters: tuple[Call, ...]
    calls: tuple[Call, ...]
    held: tuple[object, ...]


class GraphCall:
    """`prepare` and `enqueue` of a captured graph whose kernels read the image wherever a binding has it.

    The address is an argument of the kernels that read the image. It is set in the graph (cuGraphExecKernelNodeSetParams) by the first call
    of a binding after one of another, for that launch and later ones: launches that are under way keep what they began with. Where the
    driver does not let it be set, the image is copied to its place in `home` instead, as before.

    Args:
        graph: captured with `keep`, of `launches`, which read the image at its place in `home`.

    Attributes:
        refused: why addresses cannot be set; empty where they can.
    """

    def __init__(self, graph: device.Graph, launches: Sequence[Launch], home: Arrays) -> None:
        self._graph, self._home, self.refused = graph, home, ""
        self._reading = [launch for launch in launches if launch.kernel.reads_image]
        self._nodes: tuple[object, ...] = ()
        (image,) = home.values()
        # What the graph reads now; kept with what holds that memory, so that the graph never has an address of memory that was given back.
        self._placed = Placed(image.ptr, (), (), (home,))
        self._address = image.ptr
        try:
            self._nodes = kernels.nodes_of(graph.kept, self._reading)
            # Tried once here, where a refusal can still be answered by copies.
            self._set(self.prepare(home))
        except AccelError as error:
            logger.warning("the image is copied in every call, because its address cannot be set in the graph: %s", error.message)
            self.refused, self._address, self._nodes = error.message, image.ptr, ()

    def prepare(self, given: Arrays) -> Placed:
        (image,) = given.values()
        if self.refused or not is_aligned(image):
            calls = self._graph.calls(self._home, given)
            (image,) = self._home.values()
        else:
            calls = self._graph.calls(self._home, self._home)
        if self.refused:
            return Placed(image.ptr, (), calls, (given,))
        launches = [launch.with_argument(IMAGE, image.ptr) for launch in self._reading]
        setters = tuple(
            kernels.argument_setter(self._graph.executable, node, launch) for node, launch in zip(self._nodes, launches, strict=True)
        )
        return Placed(image.ptr, setters, calls, (given, launches))

    def enqueue(self, binding: Binding) -> None:
        placed = binding.native
        if placed.address != self._address:
            self._set(placed)
        for call in placed.calls:
            result = call()
            if result[0]:
                driver.check(result, "replaying a CUDA graph")

    def _set(self, placed: Placed) -> None:
        # One of several that fails leaves them with different addresses.
        self._address = NOWHERE
        for setter in placed.setters:
            result = setter()
            if result[0]:
                driver.check(result, "setting the image's address in a CUDA graph")
        self._address, self._placed = placed.address, placed


class EagerCall:
    """The same without a graph: the kernels are launched one by one, those that read the image with the binding's address."""

    refused = ""

    def __init__(self, launches: Sequence[Launch], home: Arrays, stream: int) -> None:
        self._launches, self._home, self._stream = tuple(launches), home, stream

    def prepare(self, given: Arrays) -> tuple[tuple[Call, ...], tuple[Launch, ...]]:
        """The copies and the launches of one call."""
        (image,) = given.values()
        if not is_aligned(image):
            return device.copies(self._home, given, self._stream), self._launches
        placed = (launch.with_argument(IMAGE, image.ptr) if launch.kernel.reads_image else launch for launch in self._launches)
        return (), tuple(placed)

    def enqueue(self, binding: Binding) -> None:
        copies, launches = binding.native
        for copy in copies:
            result = copy()
            if result[0]:
                driver.check(result, "copying the image to its place")
        for launch in launches:
            launch()
