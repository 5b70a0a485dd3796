"""Untrained modules, one factory a file; each is named by `accel.trainers.MODELS`."""
