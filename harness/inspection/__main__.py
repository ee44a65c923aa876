"""`python -m harness.inspection`: `corematrix inspect` alone."""

import sys

from harness.inspection.command import main

if __name__ == "__main__":
    sys.exit(main())
