"""`accel version`"""

from __future__ import annotations

import platform


def version() -> None:
    """Print the version of accel and of Python."""
    from accel import __version__

    print(f"accel-engines {__version__} (Python {platform.python_version()})")
