"""``python -m lowrank_opt``: the command without its script."""

import sys

from lowrank_opt.cli import main

if __name__ == "__main__":
    sys.exit(main())
