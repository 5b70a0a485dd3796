"""bfloat16 rounds to nearest even, keeps NaN and infinity, and widens exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.device.bfloat16 import from_float32, to_float32


@pytest.mark.parametrize(
    ("bits", "stored"),
    [
        (0x3F800000, 0x3F80),  # 1.0
        (0x3F808000, 0x3F80),  # a tie goes to the even one below
        (0x3F818000, 0x3F82),  # and to the even one above
        (0x3F808001, 0x3F81),
        (0x7F7FFFFF, 0x7F80),  # the largest float32 rounds to infinity
        (0xFF800000, 0xFF80),
        (0x7F800001, 0x7FC0),  # a NaN whose low bits alone say so
        (0xFFFFFFFF, 0xFFFF),
        (0x80000000, 0x8000),
    ],
)
def test_rounding(bits: int, stored: int) -> None:
    assert int(from_float32(np.array([bits], np.uint32).view(np.float32))[0]) == stored


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**120), max_value=2.0**120), min_size=1, max_size=50)
)
def test_no_value_moves_by_more_than_half_a_step(values: list[float]) -> None:
    exact = np.array(values, np.float32)
    error = np.abs(to_float32(from_float32(exact)).astype(np.float64) - exact)
    assert (error <= np.abs(exact.astype(np.float64)) * 2**-8 + 1e-40).all()


def test_widening_is_the_way_back() -> None:
    storage = np.arange(0, 0x7F80, 7, dtype=np.uint16).reshape(-1, 1)
    np.testing.assert_array_equal(from_float32(to_float32(storage)), storage)


def test_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(from_float32(values), theirs)
