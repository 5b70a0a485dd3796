"""The smallest network that the fused path can carry, written by hand: a global average and a linear layer, in every schedule.

It stands for the generator in tests of what comes after it: real CUDA C++ for NVRTC, and the same in numpy for a driver of host memory.
"""

from __future__ import annotations

import collections
import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel.exporters.fused.network import Linear, Network, Pool, Shape, refused
from accel.exporters.fused.program import Kernel, Program, Schedule

CHANNELS, HEIGHT, WIDTH, CLASSES = 6, 4, 4, 5
BIAS = -(-CLASSES * CHANNELS * 2 // 16) * 16
TIMED_OUT_AT_THE_SECOND_STEP = 1 | 2 << 8

COMMON = f"""
constexpr int CHANNELS = {CHANNELS}, PIXELS = {HEIGHT * WIDTH}, CLASSES = {CLASSES}, BIAS = {BIAS};
struct State {{ unsigned error, arrived, launches; }};
#define PARAMETERS const unsigned short* image, const unsigned char* weights, unsigned short* arena, float* logits, State* state

__device__ inline float widened(unsigned short half) {{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}}

__device__ inline unsigned short halved(float value) {{
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}}

__device__ inline void average(const unsigned short* image, unsigned short* arena) {{
    extern __shared__ float sums[];
    float sum = 0;
    for (int pixel = threadIdx.x; pixel < PIXELS; pixel += 32) sum += widened(image[blockIdx.x * PIXELS + pixel]);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int other = 1; other < 32; other++) sum += sums[other];
    arena[blockIdx.x] = halved(sum / PIXELS);
}}

__device__ inline void linear(const unsigned char* weights, const volatile unsigned short* arena, float* logits) {{
    if (threadIdx.x >= CLASSES) return;
    float sum = reinterpret_cast<const float*>(weights + BIAS)[threadIdx.x];
    const unsigned short* row = reinterpret_cast<const unsigned short*>(weights) + threadIdx.x * CHANNELS;
    for (int channel = 0; channel < CHANNELS; channel++) sum += widened(row[channel]) * widened(arena[channel]);
    logits[threadIdx.x] = sum;
}}
"""

CHAIN = (
    COMMON
    + """
extern "C" __global__ void __launch_bounds__(32) mean(PARAMETERS) { average(image, arena); }

extern "C" __global__ void __launch_bounds__(32) fc(PARAMETERS) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    linear(weights, arena, logits);
}
"""
)

GRID = (
    COMMON
    + """
extern "C" __global__ void __launch_bounds__(32) whole(PARAMETERS) {
    const unsigned target = (*(volatile unsigned*)&state->launches + 1) * CHANNELS;
    average(image, arena);
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(&state->arrived, 1);
    }
    if (blockIdx.x) return;
    __shared__ bool late;
    if (threadIdx.x == 0) {
        unsigned long long begin, now;
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
        do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
        while ((late = *(volatile unsigned*)&state->arrived < target) && now - begin < 1000000000ull);
        if (late) state->error = 1 | 2 << 8;
        else state->launches++;
        __threadfence();
    }
    __syncthreads();
    if (!late) linear(weights, arena, logits);
}
"""
)


def network() -> Network:
    draw = np.random.default_rng(3)
    weight, bias = (draw.standard_normal(shape).astype(np.float32) for shape in ((CLASSES, CHANNELS), CLASSES))
    image, vector = Shape(CHANNELS, HEIGHT, WIDTH), Shape(CHANNELS, 1, 1)
    mean = Pool("mean", "input", image, vector, "average", (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    return Network(image, (mean, Linear("fc", "mean", vector, Shape(CLASSES, 1, 1), weight, bias)))


def generate(network: Network, schedule: Schedule, *, sms: int = 132, **_: Any) -> Program:
    """As accel.exporters.fused.generate; `cluster` is refused."""
    pool, fc = network.layers
    assert isinstance(fc, Linear)
    if schedule == "cluster":
        raise refused(pool.name, "pool", "a cluster of one CTA is none")
    chain = schedule == "chain"
    second = Kernel("fc", 1, 32, 0, dependent=True, layers=(fc.name,), reads_image=False)
    kernels = (Kernel("mean", CHANNELS, 32, 128, layers=(pool.name,)), second)
    whole = Kernel("whole", CHANNELS, 32, 128, cooperative=True, layers=(pool.name, fc.name))
    steps = [{"name": layer.name, "layers": [layer.name], "predicted_us": 1.0} for layer in network.layers]
    return Program(
        schedule=schedule,
        source=CHAIN if chain else GRID,
        kernels=kernels if chain else (whole,),
        weights=fc.weight.astype(np.float16).tobytes().ljust(BIAS, b"\0") + fc.bias.tobytes(),
        arena_bytes=256,
        state_bytes=0 if chain else 12,
        input_shape=(1, CHANNELS, HEIGHT, WIDTH),
        input_dtype="float16",
        output_shape=(1, CLASSES),
        outputs={pool.name: (0, (1, 1, CHANNELS))},
        plan={"sms": sms, "predicted_us": 2.0 if chain else 3.0, "steps": steps},
    )


def build() -> Any:
    """The same network as a user's factory would build it, with its weights."""
    import torch

    fc = network().layers[-1]
    assert isinstance(fc, Linear)
    layers = {"mean": torch.nn.AdaptiveAvgPool2d(1), "flat": torch.nn.Flatten(), "fc": torch.nn.Linear(CHANNELS, CLASSES)}
    module = torch.nn.Sequential(collections.OrderedDict(layers))
    module.fc.load_state_dict({"weight": torch.from_numpy(fc.weight), "bias": torch.from_numpy(fc.bias)})
    return module.eval()


def answer(image: np.ndarray) -> np.ndarray:
    """What the network says of a float image, 1 × channels × height × width, with the roundings of its kernels."""
    fc = network().layers[-1]
    assert isinstance(fc, Linear)
    mean = image.astype(np.float16).astype(np.float32).mean((2, 3)).astype(np.float16).astype(np.float32)
    return mean @ fc.weight.astype(np.float16).astype(np.float32).T + fc.bias


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)


def mean(arguments: Sequence[int]) -> None:
    image, _, arena, _, _ = arguments
    pixels = _array(image, (CHANNELS, HEIGHT * WIDTH), np.float16).astype(np.float32)
    _array(arena, (CHANNELS,), np.float16)[:] = pixels.mean(1)


def fc(arguments: Sequence[int]) -> None:
    _, weights, arena, logits, _ = arguments
    rows = _array(weights, (CLASSES, CHANNELS), np.float16).astype(np.float32)
    bias = _array(weights + BIAS, (CLASSES,), np.float32)
    _array(logits, (CLASSES,), np.float32)[:] = rows @ _array(arena, (CHANNELS,), np.float16).astype(np.float32) + bias


def whole(arguments: Sequence[int]) -> None:
    mean(arguments)
    fc(arguments)


def late(arguments: Sequence[int]) -> None:
    """`whole`, whose barrier ran out."""
    _array(arguments[4], (1,), np.uint32)[:] = TIMED_OUT_AT_THE_SECOND_STEP


EMULATED = {"mean": mean, "fc": fc, "whole": whole}
