"""Sentences with labels, and pairs with similarities, read from files that the user has.

Looked for where images are: in the folder of ``LOWRANK_OPT_DATA`` and in the cache of the library.
"""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.transfer.images import data_folder

# Sentences and the names of their classes.
Labelled = tuple[list[str], list[str]]


def _banking77(folder: Path, part: str) -> Labelled:
    with (folder / f"{part}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def _clinc150(folder: Path, part: str) -> Labelled:
    rows: list[list[str]] = json.loads((folder / "data_full.json").read_text("utf-8"))[part]
    return [text for text, _ in rows], [label for _, label in rows]


def _trec(folder: Path, part: str) -> Labelled:
    lines = (folder / f"TREC.{part}.all").read_text("latin-1").splitlines()
    rows = [line.split(" ", 1) for line in lines if line.strip()]
    return [text for _, text in rows], [label for label, _ in rows]


_READERS: dict[str, tuple[str, Callable[[Path, str], Labelled]]] = {
    "banking77": ("train.csv", _banking77),
    "clinc150": ("data_full.json", _clinc150),
    "trec": ("TREC.train.all", _trec),
}
NAMES = tuple(_READERS)


def labelled(name: str) -> tuple[Labelled, Labelled]:
    """Return what is trained and chosen on, and the test.

    Raises
    ------
    DataError
        If the files are not found.
    """
    wanted, read = _READERS[name]
    folder = data_folder(name, wanted, f"set LOWRANK_OPT_DATA to a folder that contains {name}/")
    return read(folder, "train"), read(folder, "test")


def similar(part: str) -> tuple[list[str], list[str], list[float]]:
    """Return pairs of sentences of STS-B and their similarities, from 0 to 5.

    Raises
    ------
    DataError
        If the files are not found.
    """
    wanted = f"sts-{part}.csv"
    folder = data_folder("stsb", wanted, "set LOWRANK_OPT_DATA to a folder that contains stsb/")
    lines = (folder / wanted).read_text("utf-8").splitlines()
    fields: list[Sequence[str]] = [line.split("\t") for line in lines]
    return [f[5] for f in fields], [f[6] for f in fields], [float(f[4]) for f in fields]
