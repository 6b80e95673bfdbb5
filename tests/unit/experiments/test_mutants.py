"""The experiment on mutants: what it changes, what it leaves alone, which tests it chooses."""

import pytest

from experiments import mutants as experiment
from experiments.mutation.operators import mutants
from experiments.mutation.server import (
    Traced,
    files_of,
    functions_in_use,
    key_of,
    replace,
    selected,
)

SOURCE = '''
"""Docstrings stay."""

def checked(x: Literal[1, 2], *, size: int = 3) -> float:
    """And this 1 < 2."""
    if x < 0:
        raise ValueError(f"must be at least 0; got {x - 1}")
    check_rank(
        x,
    )
    return top(x, dim=4).mT

def __repr__(self):
    return 1 + 2
'''


def changes(source):
    return {(m.operator, m.before.split("(")[0], m.after) for m in mutants("f.py", source)}


def test_words_of_comments_are_no_operators():
    source = "def f(x, y):\n    return (\n        x  # ignore\n        or y\n    )\n"
    (mutant,) = [m for m in mutants("f.py", source) if m.operator == "and, or"]
    assert "x  # ignore\n        and y" in mutant.applied(source)


def test_mutants_are_those_of_behaviour():
    assert {
        ("constant", "3", "4"),
        ("condition false", "x < 0", "False"),
        ("condition true", "x < 0", "True"),
        ("comparison", "<", "<="),
        ("constant", "0", "1"),
        ("statement dropped", "check_rank", "pass"),
        ("attribute dropped", ".mT", ""),
        ("argument dropped", "dim=4", ""),
        ("constant", "4", "5"),
    } == changes(SOURCE)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("y = a +  b", "y = a -  b"),
        ("y = (a) is (b)", "y = (a) is not (b)"),
        ("y = not a", "y = a"),
        ("y = left", "y = right"),
        ("y = x.abs()", "y = x"),
        ("x += 1", "pass"),
        ("@no_grad()\ndef f(): return x", "\ndef f(): return x"),
        ("y = 'é' + left", "y = 'é' - left"),
    ],
)
def test_mutated_source(source, expected):
    assert expected in [m.applied(source) for m in mutants("f.py", source)]


def test_lines_keep_their_numbers():
    assert {SOURCE.count("\n")} == {m.applied(SOURCE).count("\n") for m in mutants("f", SOURCE)}


def test_names_stay_when_another_part_of_the_file_changes():
    other = SOURCE.replace('"""Docstrings stay."""', "y = 1\n")
    assert {m.id for m in mutants("f", SOURCE)} < {m.id for m in mutants("f", other)}


def ran(test, seconds, *functions, passed=True):
    return {"test": test, "seconds": seconds, "passed": passed, "functions": [*functions]}


def test_unlike_tests_come_first_and_strangers_not_at_all():
    first = mutants("f.py", "def f(x): return x < y")[0]
    key, other = key_of("f.py", "f"), key_of("f.py", "g")
    known = [ran("slow", 0.5, key), ran("t[1]", 0.1, key), ran("t[2]", 0.2, key)]
    known += [ran("no", 0.1, other), ran("broken", 0.1, key, passed=False)]
    assert (["t[1]", "slow", "t[2]"], pytest.approx(0.8)) == selected(first, known, 9.0)


def test_the_first_test_runs_whatever_it_costs():
    first = mutants("f.py", "def f(x): return x < y")[0]
    known = [ran("t", 5.0, key_of("f.py", "f"))]
    assert ["t"] == selected(first, known, 1.0)[0]


def test_functions_in_use_get_the_mutated_code():
    path = "experiments/tables.py"
    source = (experiment.ROOT / path).read_text(encoding="utf-8")
    from experiments.tables import mean_and_spread

    [mutant] = [m for m in mutants(path, source) if "values) < 2" in m.text and m.after == "<="]
    known, code = functions_in_use({str(experiment.ROOT / path)}), mean_and_spread.__code__
    try:
        replace(mutant, source, known)
        assert "2" == mean_and_spread([1.0, 3.0], digits=0)
    finally:
        mean_and_spread.__code__ = code


def test_calls_are_noted_by_file_and_name():
    path = "experiments/tables.py"
    traced = Traced([path])
    with traced.active() as called:
        experiment.markdown_table(["a"], [["1"]])
    assert key_of(path, "markdown_table") in called


def test_files_of_tests_are_found_in_folders_and_by_name():
    found = files_of(["tests/unit/sets", "tests/unit/sets/test_sides.py", "lowrank_opt/sets"])
    names = [path.name for path in found]
    assert 1 == names.count("test_sides.py")
    assert {"test_sets.py", "image.py"} < {*names}
    assert "conftest.py" not in names


def test_sample_is_of_the_size_and_of_the_package():
    chosen = experiment.sample(experiment.population(["operator"]), 50, seed=1)
    assert 50 == len({m.id for m in chosen})
    assert {"lowrank_opt/operator.py"} == {m.path for m in chosen}


def test_scores_count_what_was_noticed():
    def line(outcome):
        return {"id": outcome, "outcome": outcome, "mutant": {"path": "lowrank_opt/operator.py"}}

    lines = [line(x) for x in ("killed", "stopped", "survived", "not run")]
    assert [["4", "2"]] * 3 == [row[1:3] for row in experiment.rows(lines)]


def test_a_sample_of_each_file_stays_in_the_places_that_are_named():
    found = experiment.population(["sets", "linalg"], ["sets/norm_ball.py", "sets/image.py"])
    each = experiment.sample_of_each(found, 3, seed=0)
    files = [f"lowrank_opt/sets/{name}.py" for name in ("image", "norm_ball")]
    assert [3, 3] == [sum(m.path == file for m in each) for file in files]
    assert 6 == len(each)
