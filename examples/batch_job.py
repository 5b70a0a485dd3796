"""Classify every picture below a folder, one JSON line each; run again, it goes on where it was stopped.

    pip install 'accel-engines[ort,images]'
    python examples/batch_job.py engines/mobilenetv3_small.accel pictures/ classes.jsonl

A line is written as soon as it is known. A picture that cannot be read gets a line with the reason, and the job ends with exit code 5.
With thousands of pictures export an engine with a larger batch: `accel export MODEL --to onnx --batch 32`.
"""

import json
import sys
from pathlib import Path

import accel
from accel import pictures


def done_before(output: Path) -> set[str]:
    """The files that have a line already; a line that was cut off by a crash does not count, and is cut off the file."""
    if not output.is_file():
        return set()
    lines = output.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if whole != lines:
        output.write_bytes(b"".join(whole))
    return {json.loads(line)["file"] for line in whole}


def main(bundle: Path, folder: Path, output: Path) -> int:
    known = done_before(output)
    left = [file for file in pictures.below(folder).files if str(file) not in known]
    print(f"{len(left)} pictures to do, {len(known)} done before", file=sys.stderr)
    if not left:
        return 0
    with output.open("a", encoding="utf-8", buffering=1) as lines:
        found = accel.predict(bundle, left, top_k=1, each=lambda picture: lines.write(json.dumps(picture.to_dict()) + "\n"))
    return found.problem.exit_code if found.problem is not None else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
