"""Laws that are known not to hold, read from ``law=reason`` words and from files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lowrank_opt.errors import OptionError
from lowrank_opt.testing.subjects.targets import Target

Known = dict[str, str]


def with_expectations(targets: Iterable[Target], words: Iterable[str]) -> list[Target]:
    """Return targets that know which of their laws are expected to fail.

    Parameters
    ----------
    targets : iterable of Target
    words : iterable of str
        ``law=reason``, for all targets; or the path of a TOML file with such lines, and with
        tables ``["package.module:Class"]`` for those of one target.

    Raises
    ------
    OptionError
        If a word is neither, a file is not of that form, or a law does not exist.

    Examples
    --------
    >>> from lowrank_opt.testing.subjects.targets import load_target
    >>> target = load_target("lowrank_opt:Factored")
    >>> with_expectations([target], ["certificate=not proved yet"])[0].known
    {'certificate': 'not proved yet'}
    """
    general: Known = {}
    special: dict[str, Known] = {}
    for word in words:
        path = Path(word)
        if path.is_file():
            _read(path, general, special)
        else:
            general |= _pair(word)
    asked = list(targets)
    _check(general, special, asked)
    return [replace(t, known={**t.known, **general, **special.get(t.name, {})}) for t in asked]


def _pair(word: str) -> Known:
    law, equals, reason = word.partition("=")
    if not equals or not reason.strip():
        raise OptionError(
            f"an expected failure must be law=reason or a file of such lines; got {word!r}"
        )
    return {law.strip(): reason.strip()}


def _read(path: Path, general: Known, special: dict[str, Known]) -> None:
    try:
        content: Mapping[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f'{path} must be TOML, as in: rank = "reason"; {error}') from None
    for key, value in content.items():
        if isinstance(value, dict):
            special.setdefault(key, {}).update({str(k): str(v) for k, v in value.items()})
        else:
            general[key] = str(value)


def _check(general: Known, special: Mapping[str, Known], targets: list[Target]) -> None:
    laws = list(dict.fromkeys(law.name for target in targets for law in target.laws))
    used = {*general, *(law for known in special.values() for law in known)}
    if unknown := sorted(used - set(laws)):
        raise OptionError(f"expected failures must name laws, {laws}; got {unknown}")
