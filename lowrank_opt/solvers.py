"""Solvers of completion problems: frozen dataclasses of options, for `complete` and estimators.

Each has `traits`, which problems it takes, and `solve(problem, run)`.
"""

from lowrank_opt.completion.bayes.gibbs import Gibbs as Gibbs
from lowrank_opt.completion.bayes.variational import Variational as Variational
from lowrank_opt.completion.catalog import SOLVERS as SOLVERS
from lowrank_opt.completion.catalog import solver_of as solver_of
from lowrank_opt.completion.catalog import solvers_for as solvers_for
from lowrank_opt.completion.solvers.als import ALS as ALS
from lowrank_opt.completion.solvers.context import Run as Run
from lowrank_opt.completion.solvers.custom import Custom as Custom
from lowrank_opt.completion.solvers.fixed_rank.gauss_newton import GaussNewton as GaussNewton
from lowrank_opt.completion.solvers.fixed_rank.riemannian import Riemannian as Riemannian
from lowrank_opt.completion.solvers.fixed_rank.scaled_gd import ScaledGD as ScaledGD
from lowrank_opt.completion.solvers.fixed_rank.singular_value_projection import (
    SingularValueProjection as SingularValueProjection,
)
from lowrank_opt.completion.solvers.frank_wolfe import FrankWolfe as FrankWolfe
from lowrank_opt.completion.solvers.gradient import LBFGS as LBFGS
from lowrank_opt.completion.solvers.gradient import FirstOrder as FirstOrder
from lowrank_opt.completion.solvers.max_norm import MaxNorm as MaxNorm
from lowrank_opt.completion.solvers.sgd import SGD as SGD
from lowrank_opt.completion.solvers.soft_impute import SoftImpute as SoftImpute
from lowrank_opt.completion.solvers.traits import Solver as Solver
from lowrank_opt.completion.solvers.traits import Traits as Traits
