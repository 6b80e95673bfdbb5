"""Names and messages of the classes under test, made fit for reports."""

from __future__ import annotations

import re

# What XML 1.0 cannot hold, escaped or not: control characters and halves of pairs.
_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def fit_text(text: str) -> str:
    r"""Return text in which characters that no report can hold are replaced by U+FFFD.

    Examples
    --------
    >>> ascii(fit_text("a\x00b"))
    "'a\\ufffdb'"
    """
    return _UNFIT.sub("\ufffd", text)
