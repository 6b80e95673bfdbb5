"""The command ``lowrank-opt verify``: targets, options, exit status, what is printed."""

import io
import re
import sys
from pathlib import Path

import pytest
import torch

from lowrank_opt.cli import main
from lowrank_opt.cli.verify_console import Console
from lowrank_opt.errors import TargetError
from lowrank_opt.testing import ADAPTER_LAWS, LAWS, MODULE_LAWS, SOLVER_LAWS
from lowrank_opt.testing.reports.pytest_plugin import Settings
from lowrank_opt.testing.reports.session import run
from lowrank_opt.testing.subjects.library import library, library_target
from lowrank_opt.testing.subjects.operators import OPERATOR_LAWS
from lowrank_opt.testing.subjects.references import parse_reference
from lowrank_opt.testing.subjects.sets import SET_LAWS
from lowrank_opt.testing.subjects.targets import load_target
from tests.preloaded import run_script

SOURCE = """
from torch import nn

import lowrank_opt as lo
from lowrank_opt.completion import als

class Right(lo.HomogeneousBall):
    def __init__(self, shape, rank, *, radius=1.0, dtype=None):
        super().__init__(shape, rank, radius=radius, dtype=dtype)

class Wrong(Right):
    def factors(self):
        return 1.01 * super().factors()

class Interrupted(Right):
    def certify(self):
        raise KeyboardInterrupt

class Exits(Right):
    def factors(self):
        raise SystemExit(0)

class NeedsWeight(Right):
    def __init__(self, shape, rank, weight):
        super().__init__(shape, rank)

def make_right(shape, rank):
    return Right(shape, rank, radius=2.0)

class Passing(Right):
    def __init__(self, shape, rank, **options):
        super().__init__(shape, rank, **options)

def make_layer(shape, rank):
    return nn.Linear(shape[1], shape[0], bias=False)

def make_any(shape):
    return make_layer(shape, None)

def solve(observations, rank, generator):
    return als(observations, rank, penalty=1e-3, bias=None, generator=generator)

def make_list(shape, rank):
    return [shape, rank]

def in_the_distance(shape, rank):
    raise lo.errors.ShapeError("no shape is right")

class Other: ...
value = 3
"""
FEW = tuple(law for law in LAWS if law.name in ("contract", "membership", "purity"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package and a file, from which the command is run."""
    (tmp_path / "verified").mkdir()
    (tmp_path / "verified" / "__init__.py").touch()
    (tmp_path / "verified" / "shapes.py").write_text(SOURCE)
    (tmp_path / "verified_file.py").write_text(SOURCE)
    (tmp_path / "imports_nothing.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "divides.py").write_text("x = 1 / 0\n")
    (tmp_path / "no_python.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("verified", "verified.shapes", "verified_file"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr("lowrank_opt.testing.subjects.targets.LAWS", FEW)
    monkeypatch.setattr(
        "lowrank_opt.testing.subjects.targets.SET_LAWS", SET_LAWS[-3:] + SET_LAWS[5:6]
    )
    monkeypatch.setattr("lowrank_opt.testing.subjects.targets.OPERATOR_LAWS", OPERATOR_LAWS[:2])
    return tmp_path


def verify(*words: str) -> int:
    return main(["verify", "--profile", "quick", *words])


# Exit status and table


def test_sound_class_exits_with_zero(capsys) -> None:
    assert 0 == verify("verified.shapes:Right")
    out = capsys.readouterr().out
    assert "verified.shapes:Right: profile quick, float64 on cpu, seed 0" in out
    assert re.search(r"membership +\d+ +\d+\.\d\d s  holds", out)
    assert "3 hold, 0 broken, 0 not claimed" in out


def test_broken_class_exits_with_one_and_shows_a_program(capsys) -> None:
    assert 1 == verify("verified.shapes:Wrong")
    out = capsys.readouterr().out
    assert "verified.shapes:Wrong breaks the law 'membership'" in out
    assert "from verified.shapes import Wrong" in out
    assert "--dtype float64 --seed 0" in out


def test_counter_example_of_a_target_runs_elsewhere(tmp_path_factory) -> None:
    target = load_target("verified.shapes:Wrong")
    result = target.laws[1].verdict(target.make, profile="quick")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "program.py").write_text(result.code)
    shown = run_script(elsewhere / "program.py", folder=elsewhere)
    assert "excess over SchattenBall(p=1.0, radius=1.0" in shown.stdout
    assert "BrokenLawError: the law 'membership' is broken" in shown.stderr


def test_several_targets_get_a_line_each(capsys) -> None:
    assert 1 == verify("verified_file.py:Right(radius=3.0)", "verified/shapes.py:Wrong")
    out = capsys.readouterr().out
    assert re.search(r"verified_file.py:Right\(radius=3.0\) +\d+\.\d s  3 hold", out)
    assert re.search(r"verified/shapes.py:Wrong +\d+\.\d s  \d hold, BROKEN: membership", out)


def test_same_seed_prints_the_same_counter_example(capsys) -> None:
    def counter_example(seed: str) -> str:
        verify("verified.shapes:Wrong", "--seed", seed)
        return capsys.readouterr().out.partition("breaks the law")[2].partition(" in ")[0]

    assert counter_example("5") == counter_example("5")


def test_interrupt_says_what_was_done(capsys) -> None:
    assert 130 == verify("verified.shapes:Interrupted")
    assert "interrupted after 2 laws" in capsys.readouterr().out


def test_class_that_exits_is_broken(capsys) -> None:
    assert 1 == verify("verified.shapes:Exits")
    assert "BROKEN: SystemExit: 0" in capsys.readouterr().out


def test_expected_failures_count_as_known(folder, capsys) -> None:
    (folder / "known.toml").write_text(
        'purity = "of the same reason"\n["verified.shapes:Wrong"]\nmembership = "too large"\n'
    )
    assert 0 == verify("verified.shapes:Wrong", "--expected-failures", "known.toml")
    out = capsys.readouterr().out
    assert "known: too large (W leaves" in out
    assert "known not to hold" in out


def test_expected_failure_that_holds_is_said(capsys) -> None:
    assert 0 == verify("verified.shapes:Right", "--expected-failures", "membership=as a test")
    assert "holds, although expected to fail: as a test" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_reaches_the_module(dtype, capsys) -> None:
    verify("verified.shapes:Wrong", "--dtype", dtype)
    assert f"dtype=torch.{dtype})" in capsys.readouterr().out


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    verify("verified.shapes:Right")
    assert before == torch.get_num_threads()


@pytest.mark.slow
def test_jobs_change_nothing(folder, monkeypatch, capsys) -> None:
    # Other processes try all laws of a kind: those of operators take the least time.
    monkeypatch.setattr("lowrank_opt.testing.subjects.targets.OPERATOR_LAWS", OPERATOR_LAWS)
    (folder / "kinds.py").write_text(SETS)

    def broken(*words: str) -> str:
        assert 1 == verify("kinds.py:Entries", *words)
        return capsys.readouterr().out.partition("breaks the law")[2].partition(" in ")[0]

    assert broken() == broken("--jobs", "2")


# Wrong calls


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.at_all:A"], "there is no module 'nowhere' in .*; check the name"),
        (["verified.other:A"], "there is no module 'verified.other'"),
        (["no_file.py:A"], "there is no file .*no_file.py; check the path"),
        (["imports_nothing:A"], "failed with ModuleNotFoundError: .*no_such_module_anywhere"),
        (["divides.py:A"], r"failed with ZeroDivisionError: division by zero \(.*line 1\)"),
        (["no_python.py:A"], r"failed with SyntaxError: .*no_python.py, line 1\)"),
        (["verified.shapes:Wrnog"], "no 'Wrnog'; did you mean 'Wrong'"),
        (["verified.shapes:Other"], "must be a Parameterization, a FeasibleSet.*it has Right"),
        (["verified.shapes:value"], "got value, an instance of int"),
        (["verified.shapes:make_list"], "must return a Parameterization; .* returned list"),
        (["verified.shapes:make_layer"], "returned Linear: name its weight, as in --weight weight"),
        (["torch.nn:Linear"], "Linear is a module and no Parameterization: name its weight"),
        (["verified.shapes:Right(radus=1.0)"], "got TypeError: .*'radus'.*: give the arguments"),
        (["verified.shapes:Passing(radus=1.0)"], "got TypeError: .*'radus'.*: give the arguments"),
        (["verified.shapes:make_layer", "--weight", "wieght"], "weight must name a tensor"),
        (["verified.shapes:Right", "--as", "set"], "must be enough to build the set"),
        (["verified.shapes:NeedsWeight"], "missing a required argument: 'weight': give the arg"),
        (["verified.shapes:Right(radius=-1.0)"], "cannot be built: radius must be positive"),
        (["verified.shapes:in_the_distance"], "must accept some of the shapes"),
        (["lowrank_opt:Parameterization"], "must define factors.*is abstract"),
        (["only_a_name"], "must have the form package.module:Class"),
        (["verified.shapes:Right(3.0)"], "arguments must be given by name"),
        (["verified.shapes:Right(radius=f())"], r"must be literals .*got 'f\(\)'"),
        (["verified.shapes:Right(radius="], "arguments must be Python literals in brackets"),
        (["verified.shapes:Right", "--device", "nonsense"], "--device must be a device"),
        (["verified.shapes:Right", "--jobs", "0"], "--jobs must be at least 1; got 0"),
        (["verified.shapes:Right", "--report", "none/x.html"], "an existing folder"),
        (["verified.shapes:Right", "--expected-failures", "rank"], "must be law=reason"),
        (["verified.shapes:Right", "--expected-failures", "rnak=x"], r"laws, .*got \['rnak'\]"),
    ],
)
def test_wrong_calls_exit_with_two_and_one_line(words, message, capsys) -> None:
    assert 2 == verify(*words)
    lines = capsys.readouterr().err.splitlines()
    assert 1 == len(lines)
    assert re.search(f"^error: .*{message}", lines[0])


def test_without_hypothesis_the_extra_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert 2 == verify("verified.shapes:Right")
    assert "hypothesis is needed here and is in the extra 'testing'" in capsys.readouterr().err


# Targets


def test_functions_are_targets() -> None:
    made = load_target("verified.shapes:make_right").make((3, 2), 1)
    assert 2.0 == made.feasible_set.radius


def test_arguments_are_literals() -> None:
    reference = parse_reference("a.b:C(p=inf, radius=-2.5, bounds=[1, (2, 'x')])")
    assert {"p": float("inf"), "radius": -2.5, "bounds": [1, (2, "x")]} == reference.options


def test_nothing_in_a_name_is_evaluated() -> None:
    with pytest.raises(TargetError, match="must be literals"):
        parse_reference("a:B(x=__import__('os').getcwd())")


SETS = """
import lowrank_opt as lo

BALL = lo.SchattenBall(1, 2.0, 3)

class Loose(lo.SchattenBall):
    def project_singular_values(self, values):
        return 1.01 * super().project_singular_values(values)

class Entries(lo.LowRankOperator):
    def entries(self, rows, cols):
        return 1.01 * super().entries(rows, cols)
"""


@pytest.mark.parametrize(
    ("name", "status", "law"),
    [
        ("BALL", 0, "lmo"),
        ("Loose(p=1, radius=2.0)", 1, "projection"),
        ("Entries", 1, "agreement"),
    ],
)
def test_sets_and_operators_have_laws_of_their_own(folder, name, status, law, capsys) -> None:
    (folder / "kinds.py").write_text(SETS)
    assert status == verify(f"kinds.py:{name}")
    word = "BROKEN" if status else "holds"
    assert re.search(rf"  {law} +\d+ +\d+\.\d\d s  {word}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "message"),
    [("SchattenBall", "enough to build the set"), ("FeasibleSet", "is abstract")],
)
def test_sets_that_cannot_be_built_are_wrong_calls(name, message, capsys) -> None:
    assert 2 == verify(f"lowrank_opt:{name}")
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "laws"),
    [
        (["verified.shapes:Right", "--as", "adapter"], {"ADAPTER_LAWS": ADAPTER_LAWS[:2]}),
        (["verified.shapes:solve"], {"SOLVER_LAWS": SOLVER_LAWS[:2]}),
        (["lowrank_opt.solvers:GaussNewton"], {"SOLVER_LAWS": SOLVER_LAWS}),
        (["lowrank_opt.solvers:GaussNewton(max_iterations=90)"], {"SOLVER_LAWS": SOLVER_LAWS[:2]}),
        (["verified.shapes:make_any", "--weight", "weight"], {"MODULE_LAWS": MODULE_LAWS}),
        (["torch.nn:Bilinear(in1_features=2, in2_features=3, out_features=4)"], {}),
    ],
)
def test_adapters_solvers_and_modules_are_targets(words, laws, monkeypatch, capsys) -> None:
    for kind, few in laws.items():
        monkeypatch.setattr(f"lowrank_opt.testing.subjects.targets.{kind}", few)
    status = verify(*words)
    out = capsys.readouterr().out
    assert (0 if laws else 2) == status
    assert all(re.search(rf"  {law.name} +\d+ +\d", out) for few in laws.values() for law in few)


def test_a_module_has_the_set_that_is_named(capsys) -> None:
    words = ["verified.shapes:make_layer", "--weight", "weight"]
    ball = "lowrank_opt:SchattenBall(p=inf, radius=1.0)"
    assert 1 == verify(*words, "--feasible-set", ball)
    assert "W leaves SchattenBall(p=inf, radius=1.0" in capsys.readouterr().out


# The library


def test_library_has_every_parameterization_of_the_table() -> None:
    names = [target.name for target in library()]
    assert {"Factored", "NBLoRA(radius)", "nora", "ETHER(weight, blocks=r)"} <= set(names)
    assert "WeightDecomposed(inner, weight)" not in names


@pytest.mark.parametrize("name", ["NBLoRA(bounds)", "Contractions(bounds)", "nora"])
def test_factories_of_the_library_take_any_rank(name) -> None:
    assert {2} == {library_target(name).make((9, 8), rank).rank // rank * 2 for rank in (1, 2, 4)}


def test_library_target_has_code() -> None:
    code = library_target("nora").laws[0].verdict(_broken_nora).code
    assert "make = FromCatalog('nora')" in code


def _broken_nora(shape, rank):
    raise ValueError("as a test")


_broken_nora.source_code = library_target("nora").make.source_code


def test_without_a_target_the_library_is_verified(monkeypatch, capsys) -> None:
    monkeypatch.setattr("lowrank_opt.testing.subjects.targets.LAWS", FEW[:1])
    assert 0 == verify()
    out = capsys.readouterr().out
    assert f"{len(library())} targets: profile quick" in out
    assert re.search(r"NBLoRA\(bounds\) +\d+\.\d s  1 hold", out)


# A terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(target: str) -> str:
    """Return what a terminal is sent."""
    targets, settings = [load_target(target)], Settings("quick")
    console = Console(stream := Terminal(), targets, settings)
    with console:
        console.summary(run(targets, settings, console))
    return stream.getvalue()


def test_terminal_gets_colours(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    sent = on_terminal("verified.shapes:Wrong")
    assert "\x1b[32mholds\x1b[0m" in sent
    assert "\x1b[1;31mBROKEN\x1b[0m: W leaves" in sent


def test_colours_can_be_refused(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in on_terminal("verified.shapes:Right")


def test_pipe_gets_plain_lines(capsys) -> None:
    verify("verified.shapes:Right")
    assert "\x1b" not in capsys.readouterr().out
