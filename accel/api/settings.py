"""The settings of one call of the API: what the caller passed, then `ACCEL_*`, then the file, then the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel import config
from accel.config import Settings


def resolve(flags: Mapping[str, Any]) -> Settings:
    """Resolve the settings and let those about the cache reach what reads the environment; raises ConfigError."""
    settings = config.resolve(flags)
    config.apply_environment(settings)
    return settings
