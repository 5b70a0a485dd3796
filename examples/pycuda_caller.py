"""Call an engine with a PyCUDA array: from GPU memory to GPU memory, nothing through the host.

    pip install 'accel-engines[ort]' pycuda      # PyCUDA is built from source: it needs nvcc
    python examples/pycuda_caller.py engines/mobilenetv3_small.accel

PyCUDA must use the primary context, as accel and torch do: `pycuda.autoprimaryctx`, not `pycuda.autoinit`. The array has the engine's own
dtype (float16 for an FP16 engine) and whole batches, and what writes it must be done: PyCUDA's arrays do not say on which stream that is.
The call returns when the answer is there, so nothing has to be waited for after it.
"""

import sys
from pathlib import Path

import numpy as np
import pycuda.autoprimaryctx  # noqa: F401  (makes the context)
from pycuda import driver, gpuarray

import accel


def main(bundle: Path, runtime: str = "auto") -> np.ndarray:
    """The answer to a batch of zeros, on the host."""
    with accel.load(bundle, runtime, device="cuda") as engine:
        (native,) = engine.explain()["inputs"]
        given = gpuarray.to_gpu(np.zeros(native["shape"], native["dtype"]))
        driver.Context.synchronize()
        answer = engine(given)
        told = answer.__cuda_array_interface__
        host = np.empty(told["shape"], told["typestr"])
        driver.memcpy_dtoh(host, told["data"][0])
        print(f"{engine.variant} on {engine.device}: {host.shape} {host.dtype}, the largest is class {host[0].argmax()}")
        return host


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
