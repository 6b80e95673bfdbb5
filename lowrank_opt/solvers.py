"""Solvers of completion problems: frozen dataclasses of options, for `complete` and estimators.

Each has `traits`, which problems it takes, and `solve(problem, run)`.
"""

from lowrank_opt.completion.catalog import SOLVERS as SOLVERS
from lowrank_opt.completion.catalog import solver_of as solver_of
from lowrank_opt.completion.catalog import solvers_for as solvers_for
from lowrank_opt.completion.solver_list import *  # noqa: F403
