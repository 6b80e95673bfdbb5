"""Completion of a matrix from observed entries, and what comes out of it."""

from lowrank_opt.completion.als import als as als
from lowrank_opt.completion.bayes import bayesian as bayesian
from lowrank_opt.completion.bias import AdditiveBias as AdditiveBias
from lowrank_opt.completion.certificate import OptimalityCertificate as OptimalityCertificate
from lowrank_opt.completion.certificate import certify_completion as certify_completion
from lowrank_opt.completion.checkpoint import Checkpoint as Checkpoint
from lowrank_opt.completion.complete import complete as complete
from lowrank_opt.completion.conformal import Conformal as Conformal
from lowrank_opt.completion.conformal import calibrate as calibrate
from lowrank_opt.completion.conformal import conformal as conformal
from lowrank_opt.completion.conformal import conformal_intervals as conformal_intervals
from lowrank_opt.completion.conformal import residual_scale as residual_scale
from lowrank_opt.completion.conformal import row_importance as row_importance
from lowrank_opt.completion.convex_problem import ConvexProblem as ConvexProblem
from lowrank_opt.completion.drift import TimeBins as TimeBins
from lowrank_opt.completion.drift import fit_drifting_bias as fit_drifting_bias
from lowrank_opt.completion.drift import fit_with_drift as fit_with_drift
from lowrank_opt.completion.frank_wolfe import frank_wolfe as frank_wolfe
from lowrank_opt.completion.gauss_newton import gauss_newton as gauss_newton
from lowrank_opt.completion.history import History as History
from lowrank_opt.completion.history import Iteration as Iteration
from lowrank_opt.completion.max_norm import max_norm as max_norm
from lowrank_opt.completion.posterior import BayesianResult as BayesianResult
from lowrank_opt.completion.result import CompletionResult as CompletionResult
from lowrank_opt.completion.riemannian import riemannian as riemannian
from lowrank_opt.completion.scaled_gd import scaled_gd as scaled_gd
from lowrank_opt.completion.sgd import sgd as sgd
from lowrank_opt.completion.singular_value_projection import (
    singular_value_projection as singular_value_projection,
)
from lowrank_opt.completion.soft_impute import soft_impute as soft_impute
from lowrank_opt.completion.status import CompletionStatus as CompletionStatus
from lowrank_opt.completion.storage import check_writable as check_writable
from lowrank_opt.completion.variational import variational as variational
