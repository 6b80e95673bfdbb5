"""Unconstrained but complete low-rank parameterizations, and what is built on them."""

from lowrank_opt.observations import Observations as Observations
from lowrank_opt.operator import LowRankOperator as LowRankOperator
from lowrank_opt.parameterizations import BatchedParameterization as BatchedParameterization
from lowrank_opt.parameterizations import DeLoRA as DeLoRA
from lowrank_opt.parameterizations import DenseCore as DenseCore
from lowrank_opt.parameterizations import Factored as Factored
from lowrank_opt.parameterizations import HomogeneousBall as HomogeneousBall
from lowrank_opt.parameterizations import NBLoRA as NBLoRA
from lowrank_opt.parameterizations import NestedSVD as NestedSVD
from lowrank_opt.parameterizations import Offset as Offset
from lowrank_opt.parameterizations import Parameterization as Parameterization
from lowrank_opt.parameterizations import Weighted as Weighted
from lowrank_opt.parameterizations import activation_weighted_frames as activation_weighted_frames
from lowrank_opt.parameterizations import lora_xs as lora_xs
from lowrank_opt.parameterizations import nora as nora
from lowrank_opt.sets import FeasibleSet as FeasibleSet
from lowrank_opt.sets import KyFanBall as KyFanBall
from lowrank_opt.sets import NestedSet as NestedSet
from lowrank_opt.sets import RankAtMost as RankAtMost
from lowrank_opt.sets import SchattenBall as SchattenBall
from lowrank_opt.sets import ShiftedSet as ShiftedSet
from lowrank_opt.sets import SingularValueBox as SingularValueBox
from lowrank_opt.sets import SpectralSet as SpectralSet
from lowrank_opt.sets import WeightedSchattenBall as WeightedSchattenBall
from lowrank_opt.sets import WeightedSet as WeightedSet
