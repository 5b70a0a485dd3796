"""`python -m accel` is the console script `accel`."""

import sys

from accel.cli import main

if __name__ == "__main__":
    sys.exit(main())
