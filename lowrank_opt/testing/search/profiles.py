"""How hard a check tries: numbers of examples and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from lowrank_opt.errors import OptionError

ProfileName: TypeAlias = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True)
class Profile:
    """How hard a check tries.

    Attributes
    ----------
    examples : int
        Cases for each of the law's listed parameters or targets; the first is 1 x 1.
    free_examples : int
        Cases with parameters drawn at will.
    large_examples : int
        Such cases at shapes of some dozens of rows and columns.
    max_side : int
        Largest number of rows or columns.
    """

    examples: int
    free_examples: int
    large_examples: int
    max_side: int


_PROFILES: dict[ProfileName, Profile] = {
    "quick": Profile(examples=2, free_examples=4, large_examples=2, max_side=5),
    "standard": Profile(examples=4, free_examples=12, large_examples=12, max_side=7),
    "thorough": Profile(examples=12, free_examples=100, large_examples=30, max_side=24),
}


def profile_of(name: ProfileName) -> Profile:
    """Return the profile of a name.

    Raises
    ------
    OptionError
        If there is none.

    Examples
    --------
    >>> profile_of("quick").max_side
    5
    """
    if name not in _PROFILES:
        raise OptionError(f"profile must be one of {get_args(ProfileName)}; got {name!r}")
    return _PROFILES[name]
