"""``python -m lowrank_opt`` is the command ``lowrank-opt``."""

from __future__ import annotations

import sys

from lowrank_opt.cli import main

if __name__ == "__main__":
    sys.exit(main())
