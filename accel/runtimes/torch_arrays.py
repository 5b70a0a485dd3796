"""Between DeviceArray and torch.Tensor, in both directions without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from accel.types import DeviceArray


def as_tensor(torch: Any, array: DeviceArray) -> Any:
    """A tensor over the memory of `array`, which it keeps alive."""
    tensor = torch.from_numpy(array.owner) if array.device == "cpu" else torch.as_tensor(array, device=array.device)
    return tensor.view(torch.bfloat16) if array.dtype == "bfloat16" else tensor


def as_device_array(torch: Any, tensor: Any) -> DeviceArray:
    """The memory of `tensor`, which is kept alive; one that is not C-contiguous (channels_last) is copied on its stream first."""
    dense = tensor.detach().contiguous()
    dtype = dtype_name(dense.dtype)
    if dense.device.type == "cpu":
        # numpy has no bfloat16, and torch's views go by way of a signed type of the same size.
        owner = dense.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else dense.numpy()
        return DeviceArray(dense.data_ptr(), tuple(dense.shape), dtype, "cpu", owner)
    return DeviceArray(dense.data_ptr(), tuple(dense.shape), dtype, f"cuda:{dense.device.index}", dense)


def dtype_name(dtype: Any) -> str:
    """`float32` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")
