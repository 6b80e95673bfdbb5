"""The official splits of ML-100K, cut from its lines as the scripts of its archive cut them.

``mku.sh`` takes lines 20000 (k - 1) + 1 .. 20000 k for the test of fold k; ``allbut.pl`` the first
ten lines of each user for that of ``ua``, the next ten for ``ub``; the files are sorted by user and
item.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FOLD = 20_000
NAMES = ("u1", "u2", "u3", "u4", "u5", "ua", "ub")


def cut(lines: list[str], name: str) -> tuple[str, str]:
    """Return what the files of a split to train on, and to test, contain."""
    chosen = list(_tested(lines, name))
    parts = ([x for x, tested in zip(lines, chosen, strict=True) if tested is k] for k in (0, 1))
    train, test = ("".join(sorted(part, key=_user_and_item)) for part in parts)
    return train, test


def write_splits(lines: list[str], folder: Path) -> None:
    """Write ``u.data`` and the files of all splits."""
    folder.mkdir()
    (folder / "u.data").write_text("".join(lines))
    for name in NAMES:
        for suffix, text in zip(("base", "test"), cut(lines, name), strict=True):
            (folder / f"{name}.{suffix}").write_text(text)


def _tested(lines: list[str], name: str) -> Iterator[int]:
    if name[1].isdigit():
        yield from (int(k // FOLD == int(name[1]) - 1) for k in range(len(lines)))
        return
    before, first = Counter[int](), {"ua": 0, "ub": 10}[name]
    for line in lines:
        user, _ = _user_and_item(line)
        yield int(first <= before[user] < first + 10)
        before[user] += 1


def _user_and_item(line: str) -> tuple[int, int]:
    user, item, *_ = line.split("\t")
    return int(user), int(item)
