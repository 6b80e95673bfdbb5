"""The laws: one file for each idea, one public check for each law.

How cases are drawn and shrunk is in `cases` and `search`.
"""

from lowrank_opt.testing.laws.maps.agreement import check_agreement as check_agreement
from lowrank_opt.testing.laws.maps.agreement import check_merge as check_merge
from lowrank_opt.testing.laws.maps.escape import check_escape as check_escape
from lowrank_opt.testing.laws.maps.gradients import check_smoothness as check_smoothness
from lowrank_opt.testing.laws.maps.inverse import check_completeness as check_completeness
from lowrank_opt.testing.laws.maps.inverse import check_section as check_section
from lowrank_opt.testing.laws.maps.membership import check_certificate as check_certificate
from lowrank_opt.testing.laws.maps.membership import check_contract as check_contract
from lowrank_opt.testing.laws.maps.membership import check_membership as check_membership
from lowrank_opt.testing.laws.maps.membership import check_rank as check_rank
from lowrank_opt.testing.laws.maps.precision import check_dtype as check_dtype
from lowrank_opt.testing.laws.maps.precision import check_precision as check_precision
from lowrank_opt.testing.laws.maps.zero_start import check_zero_start as check_zero_start
from lowrank_opt.testing.laws.modules.cost import check_never_dense as check_never_dense
from lowrank_opt.testing.laws.modules.purity import check_copies as check_copies
from lowrank_opt.testing.laws.modules.purity import check_in_place as check_in_place
from lowrank_opt.testing.laws.modules.purity import check_purity as check_purity
from lowrank_opt.testing.laws.sets.nearest import check_lmo as check_lmo
from lowrank_opt.testing.laws.sets.nearest import check_projection as check_projection
