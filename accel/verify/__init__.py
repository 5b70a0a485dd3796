"""Is an engine still right? Parity against the golden samples, and top-1 on the real test set beside the FP32 reference."""
