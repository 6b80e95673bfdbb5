"""The printed program of a counter-example, run as a reader would."""

import contextlib
import io
import re

import pytest

from lowrank_opt.testing import BrokenLawError


def raises_again(broken: BrokenLawError, **given: object) -> None:
    """Run the program of a broken law: it shows something, and the check breaks the same law.

    What nothing importable names is ``...`` in the program, with its place: the reader puts in
    what is given.
    """
    program = re.sub(r"^(\w+) = \.\.\..*$", r"\1 = given['\1']", broken.code, flags=re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(BrokenLawError) as again:
        exec(compile(program, "program", "exec"), {"__name__": "program", "given": given})
    assert broken.law == again.value.law
    assert printed.getvalue()
