from __future__ import annotations

import pytest

from accel.bench.proof import mismatches, recompiled
from accel.types import Variant

RIGHT = {"precision": "fp32", "tf32_matmul": "ieee", "tf32_conv": "ieee", "cpu_nodes": 0}


@pytest.mark.parametrize(
    ("asked", "facts", "reason"),
    [
        ("eager:fp32", RIGHT, ""),
        ("eager:fp32", {}, ""),
        ("eager:fp16", {"precision": "fp16", "tf32_conv": "tf32"}, ""),
        ("eager:tf32", {"precision": "tf32", "tf32_matmul": "tf32", "tf32_conv": True}, ""),
        ("eager:fp16", RIGHT, "fp16 was asked for and fp32 was computed"),
        ("eager:fp32", RIGHT | {"tf32_matmul": True}, "tf32_matmul is on"),
        ("eager:fp32", RIGHT | {"tf32_conv": "tf32"}, "tf32_conv is on"),
        ("eager:tf32", {"precision": "tf32", "tf32_conv": "ieee"}, "tf32_conv is off"),
        ("onnxruntime:fp32", RIGHT | {"cpu_nodes": 3}, "3 nodes of the graph ran on the CPU although cuda:0 was asked for"),
    ],
)
def test_what_ran_must_be_what_was_asked_for(asked, facts, reason):
    found = mismatches(facts, Variant.parse(asked), "cuda:0")

    assert len(found) == bool(reason)
    assert all(reason in item.reason for item in found)


def test_on_a_cpu_every_node_is_on_the_cpu():
    assert mismatches({"precision": "fp32", "cpu_nodes": 20}, Variant.parse("onnxruntime:fp32"), "cpu") == []


def test_both_misdeeds_of_one_run_are_named():
    facts = {"precision": "fp32", "cpu_nodes": 3, "recompiles": 0}

    assert [item.name for item in mismatches(facts, Variant.parse("onnxruntime:fp16"), "cuda:0")] == ["PRECISION", "CPU_NODES"]
    assert not recompiled(facts)
    assert [item.name for item in recompiled({"recompiles": 1})] == ["RECOMPILED"]
