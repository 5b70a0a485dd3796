"""A `tensorrt` module that runs plans of our own making in host memory, on the driver of fake_cuda.

What a GPU would refuse can be asked for here, and every call is seen. A plan is TensorRT's header followed by JSON; each output is a
factor times the sum of the inputs.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import FakeDriver

Tensors = dict[str, tuple[str, tuple[int, ...]]]


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class Logger:
    Severity = Severity


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT32 = "int32"
    FP8 = "fp8"


class Mode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class Location(enum.Enum):
    DEVICE = 0
    HOST = 1


class Format(enum.Enum):
    LINEAR = 0
    CHW4 = 1


def write_plan(
    path: Path,
    inputs: Tensors,
    outputs: dict[str, tuple[str, tuple[int, ...], float]],
    *,
    version: tuple[int, int, int, int] = (8, 6, 0, 0),
    magic: bytes = b"ftrt",
    **more: Any,
) -> Path:
    """A plan; `more` are keys of the JSON: `profile` [min, max], `host` and `packed` (names of tensors)."""
    header = magic + bytes(20) + bytes(version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + json.dumps({"inputs": inputs, "outputs": outputs, **more}).encode())
    return path


class FakeTensorRT(types.ModuleType):
    """`fail` names the methods that refuse; `made` counts engines. Calls are noted in the driver's own list, so that order is seen."""

    ILogger, DataType, TensorIOMode, TensorLocation, TensorFormat = Logger, DataType, Mode, Location, Format

    def __init__(self, driver: FakeDriver, version: str = "8.6.0", name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__version__ = version
        self.driver = driver
        self.fail: set[str] = set()
        self.made = 0
        self.host_code: list[bool] = []
        self.Runtime = lambda log: FakeRuntime(self, log)

    def asked(self, method: str, log: Any) -> bool:
        """Note the call; False if it is one that fails, with a line in the log."""
        self.driver.calls.append(method)
        if method in self.fail:
            log.log(Severity.ERROR, f"[{method}] the fake says no")
            return False
        return True


class FakeRuntime:
    engine_host_code_allowed = False

    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self.trt, self.log = trt, log

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        self.trt.host_code.append(self.engine_host_code_allowed)
        if not self.trt.asked("deserialize_cuda_engine", self.log):
            return None
        self.trt.made += 1
        return FakeEngine(self.trt, self.log, json.loads(data[28:]))


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, log: Any, plan: dict[str, Any]) -> None:
        self.trt, self.log, self.plan = trt, log, plan
        self.tensors = {**plan["inputs"], **plan["outputs"]}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.plan["inputs"] else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.tensors[name][1])

    def get_tensor_location(self, name: str) -> Location:
        return Location.HOST if name in self.plan.get("host", ()) else Location.DEVICE

    def get_tensor_format(self, name: str) -> Format:
        return Format.CHW4 if name in self.plan.get("packed", ()) else Format.LINEAR

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        low, high = self.plan["profile"]
        return [[low, *self.get_tensor_shape(name)[1:]], [low, *self.get_tensor_shape(name)[1:]], [high, *self.get_tensor_shape(name)[1:]]]

    def create_execution_context(self) -> FakeContext | None:
        return FakeContext(self) if self.trt.asked("create_execution_context", self.log) else None


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.batch = 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return self.engine.trt.asked("set_input_shape", self.engine.log)

    def infer_shapes(self) -> list[str]:
        return [] if self.engine.trt.asked("infer_shapes", self.engine.log) else list(self.engine.plan["inputs"])

    def get_tensor_shape(self, name: str) -> list[int]:
        shape = self.engine.get_tensor_shape(name)
        # Only the first dimension follows the batch: a later one that is open depends on the values.
        return [self.batch if size == -1 and at == 0 else size for at, size in enumerate(shape)]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.engine.trt.asked("set_tensor_address", self.engine.log)

    def execute_async_v3(self, stream: int) -> bool:
        assert isinstance(stream, int)
        if not self.engine.trt.asked("execute_async_v3", self.engine.log):
            return False
        addresses = dict(self.addresses)  # those of this call, as a captured graph keeps them

        def work() -> None:
            total = sum(self._array(name, addresses).astype(np.float64) for name in self.engine.plan["inputs"])
            for name, (_, _, factor) in self.engine.plan["outputs"].items():
                self._array(name, addresses)[...] = factor * total

        self.engine.trt.driver.enqueue(work)
        return True

    def _array(self, name: str, addresses: dict[str, int]) -> np.ndarray:
        dtype, shape = np.dtype(self.engine.tensors[name][0]), self.get_tensor_shape(name)
        memory = (ctypes.c_ubyte * (int(np.prod(shape)) * dtype.itemsize)).from_address(addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)
