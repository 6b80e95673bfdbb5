"""Misuse of an adapted model: merging twice, adapters that do not exist."""

from lowrank_opt.errors import LowRankError


class AdapterStateError(LowRankError, RuntimeError):
    """An operation that the present state of an adapted model does not allow."""
