"""Classify the frames of a video, or of a folder of pictures, as they come, and say when what is seen changes.

    pip install 'accel-engines[ort,images]' 'imageio[ffmpeg]'      # imageio for a video file; a folder needs none
    python examples/video_loop.py engines/mobilenetv3_small.accel clip.mp4

One frame alone is often wrong: the logits of the last few are averaged. The engine is warmed up before the first frame, and what a frame
took is measured from its pixels to its logits.
"""

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

import accel
from accel import pictures
from accel.engines import Bundle

SMOOTHED = 8  # frames


def frames_of(source: Path) -> Iterator[np.ndarray]:
    """uint8 H×W×3 RGB, one frame after another."""
    if source.is_dir():
        yield from map(pictures.read, pictures.below(source).files)
    else:
        import imageio.v3

        yield from imageio.v3.imiter(source)


def watch(bundle: Path, frames: Iterable[np.ndarray]) -> Iterator[tuple[int, str, float]]:
    """(frame, label, seconds that the frame took) for each frame."""
    labels = Bundle.open(bundle).labels
    recent: deque[np.ndarray] = deque(maxlen=SMOOTHED)
    with accel.load(bundle) as engine:
        engine(np.zeros(engine.inputs[0].fixed(1), np.float32))
        for number, frame in enumerate(frames):
            began = time.perf_counter()
            recent.append(engine.predict(frame)[0])
            taken = time.perf_counter() - began
            yield number, labels[int(np.mean(recent, axis=0).argmax())], taken


def main(bundle: Path, source: Path) -> None:
    seen, times = "", []
    for number, label, taken in watch(bundle, frames_of(source)):
        times.append(taken)
        if label != seen:
            print(f"frame {number}: {label}")
            seen = label
    print(f"{len(times)} frames, median {np.median(times) * 1e3:.2f} ms a frame" if times else "no frames")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
