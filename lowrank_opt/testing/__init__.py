"""The laws of parameterizations, as checks that look for a counter-example.

Five rooms: `cases` (what is tried), `search` (how), `laws` (what is asked), `subjects` (of whom),
`reports` (what is printed); each imports those before it. Nothing else in the package imports this
one; it needs the extra ``testing`` (hypothesis, pytest).
"""

from lowrank_opt.extras import extra

with extra("testing"):
    import hypothesis  # noqa: F401  # pyright: ignore[reportUnusedImport]
    import pytest  # noqa: F401  # pyright: ignore[reportUnusedImport]

from lowrank_opt.testing.cases.adapter_method import AdapterMethod as AdapterMethod
from lowrank_opt.testing.cases.case import Case as Case
from lowrank_opt.testing.cases.case import Factory as Factory
from lowrank_opt.testing.cases.case import Subject as Subject
from lowrank_opt.testing.cases.members import Member as Member
from lowrank_opt.testing.cases.parameters import FreeParameters as FreeParameters
from lowrank_opt.testing.cases.strategies import feasible_sets as feasible_sets
from lowrank_opt.testing.cases.strategies import free_parameters as free_parameters
from lowrank_opt.testing.cases.strategies import members as members
from lowrank_opt.testing.cases.strategies import observations as observations
from lowrank_opt.testing.cases.strategies import operators as operators
from lowrank_opt.testing.cases.strategies import shapes_and_ranks as shapes_and_ranks
from lowrank_opt.testing.dense_guard import forbid_dense as forbid_dense
from lowrank_opt.testing.laws import check_agreement as check_agreement
from lowrank_opt.testing.laws import check_certificate as check_certificate
from lowrank_opt.testing.laws import check_completeness as check_completeness
from lowrank_opt.testing.laws import check_contract as check_contract
from lowrank_opt.testing.laws import check_copies as check_copies
from lowrank_opt.testing.laws import check_dtype as check_dtype
from lowrank_opt.testing.laws import check_escape as check_escape
from lowrank_opt.testing.laws import check_in_place as check_in_place
from lowrank_opt.testing.laws import check_lmo as check_lmo
from lowrank_opt.testing.laws import check_membership as check_membership
from lowrank_opt.testing.laws import check_merge as check_merge
from lowrank_opt.testing.laws import check_never_dense as check_never_dense
from lowrank_opt.testing.laws import check_precision as check_precision
from lowrank_opt.testing.laws import check_projection as check_projection
from lowrank_opt.testing.laws import check_purity as check_purity
from lowrank_opt.testing.laws import check_rank as check_rank
from lowrank_opt.testing.laws import check_section as check_section
from lowrank_opt.testing.laws import check_smoothness as check_smoothness
from lowrank_opt.testing.laws import check_zero_start as check_zero_start
from lowrank_opt.testing.search.law import Law as Law
from lowrank_opt.testing.search.verdict import BrokenLawError as BrokenLawError
from lowrank_opt.testing.search.verdict import CheckResult as CheckResult
from lowrank_opt.testing.search.verdict import NotApplicable as NotApplicable
from lowrank_opt.testing.search.verdict import Violation as Violation
from lowrank_opt.testing.search.verdict import expect as expect
from lowrank_opt.testing.subjects.adapters import ADAPTER_LAWS as ADAPTER_LAWS
from lowrank_opt.testing.subjects.adapters import check_adapter as check_adapter
from lowrank_opt.testing.subjects.modules import MODULE_LAWS as MODULE_LAWS
from lowrank_opt.testing.subjects.modules import check_module as check_module
from lowrank_opt.testing.subjects.operators import OPERATOR_LAWS as OPERATOR_LAWS
from lowrank_opt.testing.subjects.operators import check_operator as check_operator
from lowrank_opt.testing.subjects.parameterizations import LAWS as LAWS
from lowrank_opt.testing.subjects.parameterizations import (
    check_parameterization as check_parameterization,
)
from lowrank_opt.testing.subjects.parameterizations import (
    parametrize_with_checks as parametrize_with_checks,
)
from lowrank_opt.testing.subjects.sets import SET_LAWS as SET_LAWS
from lowrank_opt.testing.subjects.sets import check_set as check_set
from lowrank_opt.testing.subjects.sets import check_spectral_set as check_spectral_set
from lowrank_opt.testing.subjects.solvers import SOLVER_LAWS as SOLVER_LAWS
from lowrank_opt.testing.subjects.solvers import check_solver as check_solver
