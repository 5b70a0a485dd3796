"""Untrained modules, one factory a file; each is named by `accel.trainers.MODELS`.

A file may have, beside `build`, another form that its network is deployed in: `deployed(module)` turns a trained `build(num_classes)`
into it, and `build_deployed(num_classes)` is its factory, whose state dict has the same names and shapes. A checkpoint then
holds the deployed form and nothing else knows of two.

It may also have `initialise(module, images)`, which sets first weights that depend on the data: called once before training, with some
train images as float32 N×3×H×W, normalised and not augmented, on the module's device.
"""
