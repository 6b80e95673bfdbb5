"""Feasible sets: what a parameterization promises never to leave."""

from lowrank_opt.sets.base import FeasibleSet as FeasibleSet
from lowrank_opt.sets.base import NormBall as NormBall
from lowrank_opt.sets.base import RankAtMost as RankAtMost
from lowrank_opt.sets.base import SpectralSet as SpectralSet
from lowrank_opt.sets.base import relative_tolerance as relative_tolerance
from lowrank_opt.sets.derived import NestedSet as NestedSet
from lowrank_opt.sets.derived import ShiftedSet as ShiftedSet
from lowrank_opt.sets.derived import WeightedSchattenBall as WeightedSchattenBall
from lowrank_opt.sets.derived import WeightedSet as WeightedSet
from lowrank_opt.sets.image import ImageSet as ImageSet
from lowrank_opt.sets.spectral import KyFanBall as KyFanBall
from lowrank_opt.sets.spectral import SchattenBall as SchattenBall
from lowrank_opt.sets.spectral import SingularValueBox as SingularValueBox
