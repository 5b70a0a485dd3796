"""What exporters and runtimes share of TensorRT and TensorRT-RTX: the library that is installed, its log, and a plan's header."""

from accel.trt.library import FLAVORS, Flavor, Library, load
from accel.trt.plan import PlanHeader, read_header

__all__ = ["FLAVORS", "Flavor", "Library", "PlanHeader", "load", "read_header"]
