"""Feasible sets: what a parameterization promises never to leave.

Norms, projections and oracles; maps onto the sets are in `parameterizations`.
"""

from lowrank_opt.sets.base import FeasibleSet as FeasibleSet
from lowrank_opt.sets.base import RankAtMost as RankAtMost
from lowrank_opt.sets.base import SpectralSet as SpectralSet
from lowrank_opt.sets.base import relative_tolerance as relative_tolerance
from lowrank_opt.sets.complement import ComplementSet as ComplementSet
from lowrank_opt.sets.linear_image import ImageSet as ImageSet
from lowrank_opt.sets.linear_image import LinearImage as LinearImage
from lowrank_opt.sets.linear_image import NestedSet as NestedSet
from lowrank_opt.sets.linear_image import WeightedSchattenBall as WeightedSchattenBall
from lowrank_opt.sets.linear_image import WeightedSet as WeightedSet
from lowrank_opt.sets.norm_ball import NormBall as NormBall
from lowrank_opt.sets.orthogonal import OrthogonalSet as OrthogonalSet
from lowrank_opt.sets.shifted import ShiftedSet as ShiftedSet
from lowrank_opt.sets.spectral import KyFanBall as KyFanBall
from lowrank_opt.sets.spectral import SchattenBall as SchattenBall
from lowrank_opt.sets.spectral import SingularValueBox as SingularValueBox
