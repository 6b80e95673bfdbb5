"""A module with one slip in its source, for checks that have to notice it."""

import sys
import types
from pathlib import Path
from unittest import mock


def mutated(module, old, new):
    """The module with one slip in its source."""
    source = Path(module.__file__).read_text()
    assert 1 == source.count(old)
    made = types.ModuleType(module.__name__ + "_mutated")
    # Dataclasses look their module up by name.
    with mock.patch.dict(sys.modules, {made.__name__: made}):
        exec(compile(source.replace(old, new), module.__file__, "exec"), made.__dict__)
    return made
