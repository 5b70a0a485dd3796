"""Bundles in other people's systems: a Triton model repository, an MLflow model, a Ray Serve deployment."""
