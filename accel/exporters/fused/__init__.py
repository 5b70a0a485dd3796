"""A whole network as CUDA kernels of its own: read, planned, generated as one source and compiled through NVRTC."""
