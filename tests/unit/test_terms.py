"""The page of terms names things that exist, each once."""

import re

import lowrank_opt as lo
from lowrank_opt.parameterizations import certificate
from lowrank_opt.sets import sides
from tests.preloaded import ROOT

PAGE = (ROOT / "docs/explanation/terms.md").read_text(encoding="utf-8")
TERMS = [
    t.strip() for line in re.findall(r"^(.+)\n: ", PAGE, re.MULTILINE) for t in line.split(",")
]
# What the names in code on the page may belong to.
OWNERS = (lo, lo.Parameterization, lo.SchattenBall, lo.NBLoRA, certificate, sides)
NAMES = {*lo.LowRankOperator.__dataclass_fields__, *(x for owner in OWNERS for x in dir(owner))}


def test_no_term_is_explained_twice() -> None:
    assert sorted(set(TERMS)) == sorted(TERMS)


def test_the_page_names_what_there_is() -> None:
    assert set() == set(re.findall(r"`(\w+)(?:\(\))?`", PAGE)) - NAMES
