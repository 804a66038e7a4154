"""``python -m tracerouter``: the same as ``tracerouter``."""

import sys

from tracerouter.cli import main

if __name__ == "__main__":
    sys.exit(main())
