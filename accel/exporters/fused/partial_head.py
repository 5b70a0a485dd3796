"""The head as partial sums of the last convolution's CTAs (templates/partial_head.cuh): for which plans, and what changes in them."""

from __future__ import annotations

import dataclasses

from accel.exporters.fused.plan import HEAD_OUTPUTS, Plan, Step
from accel.exporters.fused.tiles import CLOCK, LATENCY, WARPS, Cut

MOST_SENDERS = 512
"""Warps whose sums one CTA reads: 8 words of 16 bytes a thread."""
SHARE_BYTES = 4 * HEAD_OUTPUTS
"""That a warp sends."""
SUMMING = 350
"""Cycles to make a share and to add them up, beside the way through the L2; estimated from instructions, not measured."""


def drawn_in(plan: Plan) -> Plan:
    """`plan` with its head done by the CTAs of its last convolution; `plan` itself where that cannot be.

    It takes a global average right behind that convolution, which nobody else reads, one linear layer of up to HEAD_OUTPUTS outputs as
    the network's last, and no more than MOST_SENDERS warps.
    """
    if len(plan.steps) < 2 or plan.steps[-1].kind != "head":
        return plan
    last, head = plan.steps[-2:]
    behind = len(head.layers) == 2 and head.layers[0].source == last.layer_names[-1]
    if not last.cut or not behind or head.tiles > 1 or last.tiles * _senders(last.cut) > MOST_SENDERS:
        return plan
    constants = {**last.constants, "PARTIALS": plan.arena_bytes, "HEAD": plan.weights[head.name, "WEIGHTS"]}
    us = (LATENCY + SUMMING) / CLOCK / 1000
    drawn = dataclasses.replace(head, kind="partial_head", shared=2 * WARPS * SHARE_BYTES, body_us=us)
    return dataclasses.replace(plan, steps=(*plan.steps[:-2], dataclasses.replace(last, constants=constants), drawn))


def partial_bytes(plan: Plan) -> int:
    """Of an exchange, behind the activations: what the warps of the last convolution send."""
    if plan.steps[-1].kind != "partial_head":
        return 0
    last = plan.steps[-2]
    return last.tiles * _senders(last.cut) * SHARE_BYTES if last.cut else 0


def reader(plan: Plan, ctas: int) -> int:
    """The CTA that adds the shares up, as the template chooses it."""
    return ctas - 1 if plan.steps[-2].tiles < ctas else 0


def told(step: Step) -> str:
    """What the plan's comment says in the place of a tile."""
    return "in the step before" if step.kind == "partial_head" else step.kind


def _senders(cut: Cut) -> int:
    """Warps of a tile with results of their own: a fragment is 16 pixels × 8 channels."""
    return min(WARPS, cut.tile.y * cut.tile.x * cut.tile.n // 128)
