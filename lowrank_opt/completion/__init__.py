"""Completion of a matrix from observed entries: a problem, a solver, a result, and what follows.

The door is here: `complete`, the catalog of solvers, and the solvers as functions.
"""

from lowrank_opt.completion.after.conformal import Conformal as Conformal
from lowrank_opt.completion.after.conformal import calibrate as calibrate
from lowrank_opt.completion.after.conformal import conformal as conformal
from lowrank_opt.completion.after.conformal import conformal_intervals as conformal_intervals
from lowrank_opt.completion.after.conformal import residual_scale as residual_scale
from lowrank_opt.completion.after.conformal import row_importance as row_importance
from lowrank_opt.completion.after.drift import fit_drifting_bias as fit_drifting_bias
from lowrank_opt.completion.after.drift import fit_with_drift as fit_with_drift
from lowrank_opt.completion.after.time_bins import TimeBins as TimeBins
from lowrank_opt.completion.certificates.certificate import (
    OptimalityCertificate as OptimalityCertificate,
)
from lowrank_opt.completion.certificates.certificate import certify_completion as certify_completion
from lowrank_opt.completion.certificates.convex_problem import ConvexProblem as ConvexProblem
from lowrank_opt.completion.complete import complete as complete
from lowrank_opt.completion.functions import als as als
from lowrank_opt.completion.functions import bayesian as bayesian
from lowrank_opt.completion.functions import frank_wolfe as frank_wolfe
from lowrank_opt.completion.functions import gauss_newton as gauss_newton
from lowrank_opt.completion.functions import max_norm as max_norm
from lowrank_opt.completion.functions import riemannian as riemannian
from lowrank_opt.completion.functions import scaled_gd as scaled_gd
from lowrank_opt.completion.functions import sgd as sgd
from lowrank_opt.completion.functions import singular_value_projection as singular_value_projection
from lowrank_opt.completion.functions import soft_impute as soft_impute
from lowrank_opt.completion.functions import variational as variational
from lowrank_opt.completion.loop.checkpoint import Checkpoint as Checkpoint
from lowrank_opt.completion.loop.history import History as History
from lowrank_opt.completion.loop.history import Iteration as Iteration
from lowrank_opt.completion.loop.status import CompletionStatus as CompletionStatus
from lowrank_opt.completion.model.bias import AdditiveBias as AdditiveBias
from lowrank_opt.completion.model.losses import EntryLoss as EntryLoss
from lowrank_opt.completion.model.problem import CompletionProblem as CompletionProblem
from lowrank_opt.completion.results.posterior import BayesianResult as BayesianResult
from lowrank_opt.completion.results.result import CompletionResult as CompletionResult
from lowrank_opt.completion.results.storage import check_writable as check_writable
