"""Questions with choices, and encyclopedic text, read from files that the user has.

Looked for where images are: in the folder of ``LOWRANK_OPT_DATA`` and in the cache of the library.
A folder with ARC's own files, as ``ARC-Easy-Train.jsonl``, is read too.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.transfer.images import data_folder
from experiments.transfer.sentences import labelled
from lowrank_opt.errors import DataError

# In the order of the labels 0 to 5 of the files.
_KINDS = ("description", "thing", "abbreviation", "person", "place", "number")


class Question(NamedTuple):
    """What is asked, what may be answered, and which of these is right."""

    prompt: str
    choices: tuple[str, ...]
    right: int


def trec() -> tuple[list[Question], list[Question]]:
    """Return TREC's questions to train and choose on, and those of the test; asked is their kind.

    Raises
    ------
    DataError
        If the files are not found.
    """
    choices = tuple(f" {kind}" for kind in _KINDS)
    first, second = (
        [
            Question(f"Question: {text}\nThe answer is a", choices, int(label))
            for text, label in zip(*part, strict=True)
        ]
        for part in labelled("trec")
    )
    return first, second


def arc(folder: Path) -> tuple[list[Question], list[Question]]:
    """Return the questions of ``*-Train.jsonl`` and ``*-Test.jsonl`` of ARC.

    Raises
    ------
    DataError
        If there is not one file of each.
    """
    found: list[list[Question]] = []
    for part in ("Train", "Test"):
        files = sorted(folder.glob(f"*-{part}.jsonl"))
        if len(files) != 1:
            raise DataError(
                f"questions need one file *-{part}.jsonl in their folder; got "
                f"{[file.name for file in files]} in {folder}: give the folder of one set of ARC"
            )
        found.append([_of_arc(line) for line in files[0].read_text("utf-8").splitlines() if line])
    return found[0], found[1]


def _of_arc(line: str) -> Question:
    row = json.loads(line)
    choices = row["question"]["choices"]
    return Question(
        f"Question: {row['question']['stem']}\nAnswer:",
        tuple(f" {choice['text']}" for choice in choices),
        [choice["label"] for choice in choices].index(row["answerKey"]),
    )


def encyclopedia(*, test: bool) -> Sequence[str]:
    """Return the articles' paragraphs of WikiText-2, those of the validation part or of the test.

    Raises
    ------
    DataError
        If the files are not found.
    """
    name = "test.txt" if test else "valid.txt"
    advice = "set LOWRANK_OPT_DATA to a folder that contains wikitext2/"
    lines = (data_folder("wikitext2", name, advice) / name).read_text("utf-8").splitlines()
    return [line for line in lines if len(line) > 200]
