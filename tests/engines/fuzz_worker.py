"""A process that checks and loads bundles as it is told, a line of JSON each: if it crashes or hangs, it is not the tests that do.

It is started with the folder of a whole bundle, whose golden samples say which answer is right.
"""

from __future__ import annotations

import functools
import json
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MEMORY = 6 << 30
"""Bytes of address space; what asks for more gets a MemoryError, which is a crash here."""


def main(whole: Path) -> None:
    import accel
    from accel.api import bundling
    from accel.engines import Bundle

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    bundle = Bundle.open(whole)
    golden = bundle.golden()
    inputs, right = golden.inputs[bundle.inputs[0].name], golden.outputs[bundle.outputs[0].name]

    def check(path: Path, trusted: bool) -> str:
        problem = bundling.check(path).problem
        if problem is not None:
            raise problem
        return "whole"

    def load(path: Path, variant: str, trusted: bool, strict: bool) -> str:
        with accel.load(path, variant, device="cpu", trusted=trusted, threads=1, strict=strict) as engine:
            answer = engine(inputs)
        return "right" if answer.shape == right.shape and np.allclose(answer, right, atol=1e-4) else "wrong"

    print("ready", flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        path, variant, strict = Path(request["path"]), request["variant"], request["strict"]
        trusted = variant != "onnxruntime:fp32"
        checked = outcome(lambda path=path: check(path, False))
        loaded = outcome(functools.partial(load, path, variant, trusted, strict)) if variant else None
        print(json.dumps({"checked": checked, "loaded": loaded}), flush=True)


def outcome(step: Callable[[], str]) -> dict[str, Any]:
    """What became of it: `whole`, `right`, `wrong`, `refused` by an error of ours, or `crashed`."""
    from accel.errors import AccelError

    try:
        return {"end": step()}
    except AccelError as error:
        return {"end": "refused", "error": type(error).__name__, "exit_code": error.exit_code, "said": str(error)[:2000]}
    except BaseException:
        return {"end": "crashed", "said": traceback.format_exc()[-3000:]}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
