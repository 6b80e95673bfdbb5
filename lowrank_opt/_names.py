"""The names of the package: each comes from the room that it lives in."""

from lowrank_opt import solvers as solvers
from lowrank_opt.completion import CompletionProblem as CompletionProblem
from lowrank_opt.completion import CompletionResult as CompletionResult
from lowrank_opt.completion import CompletionStatus as CompletionStatus
from lowrank_opt.completion import complete as complete
from lowrank_opt.linalg import extend_basis as extend_basis
from lowrank_opt.observations import Observations as Observations
from lowrank_opt.operator import LowRankOperator as LowRankOperator
from lowrank_opt.parameterizations import ETHER as ETHER
from lowrank_opt.parameterizations import AdaLoRA as AdaLoRA
from lowrank_opt.parameterizations import BatchedParameterization as BatchedParameterization
from lowrank_opt.parameterizations import Complement as Complement
from lowrank_opt.parameterizations import Contractions as Contractions
from lowrank_opt.parameterizations import DeLoRA as DeLoRA
from lowrank_opt.parameterizations import DenseCore as DenseCore
from lowrank_opt.parameterizations import DynamicRank as DynamicRank
from lowrank_opt.parameterizations import ETHERPlus as ETHERPlus
from lowrank_opt.parameterizations import Factored as Factored
from lowrank_opt.parameterizations import HomogeneousBall as HomogeneousBall
from lowrank_opt.parameterizations import Inductive as Inductive
from lowrank_opt.parameterizations import NBLoRA as NBLoRA
from lowrank_opt.parameterizations import NestedSVD as NestedSVD
from lowrank_opt.parameterizations import NormalizedLoRA as NormalizedLoRA
from lowrank_opt.parameterizations import Offset as Offset
from lowrank_opt.parameterizations import Orthogonal as Orthogonal
from lowrank_opt.parameterizations import Parameterization as Parameterization
from lowrank_opt.parameterizations import RadialBall as RadialBall
from lowrank_opt.parameterizations import ScaledRotation as ScaledRotation
from lowrank_opt.parameterizations import SimplexRankOnes as SimplexRankOnes
from lowrank_opt.parameterizations import SpectralLoRA as SpectralLoRA
from lowrank_opt.parameterizations import SVDFrames as SVDFrames
from lowrank_opt.parameterizations import VeRA as VeRA
from lowrank_opt.parameterizations import WeightDecomposed as WeightDecomposed
from lowrank_opt.parameterizations import Weighted as Weighted
from lowrank_opt.parameterizations import activation_weighted_frames as activation_weighted_frames
from lowrank_opt.parameterizations import boft as boft
from lowrank_opt.parameterizations import clora as clora
from lowrank_opt.parameterizations import from_peft_rotation as from_peft_rotation
from lowrank_opt.parameterizations import goft as goft
from lowrank_opt.parameterizations import hra as hra
from lowrank_opt.parameterizations import inf_lora as inf_lora
from lowrank_opt.parameterizations import lora_null as lora_null
from lowrank_opt.parameterizations import lora_xs as lora_xs
from lowrank_opt.parameterizations import nora as nora
from lowrank_opt.parameterizations import o_lora as o_lora
from lowrank_opt.parameterizations import oft as oft
from lowrank_opt.parameterizations import olora as olora
from lowrank_opt.parameterizations import oplora as oplora
from lowrank_opt.parameterizations import osf as osf
from lowrank_opt.parameterizations import pissa as pissa
from lowrank_opt.parameterizations import polar as polar
from lowrank_opt.parameterizations import psoft as psoft
from lowrank_opt.parameterizations import rslora as rslora
from lowrank_opt.parameterizations import stella as stella
from lowrank_opt.sets import ComplementSet as ComplementSet
from lowrank_opt.sets import FeasibleSet as FeasibleSet
from lowrank_opt.sets import ImageSet as ImageSet
from lowrank_opt.sets import KyFanBall as KyFanBall
from lowrank_opt.sets import NestedSet as NestedSet
from lowrank_opt.sets import NormBall as NormBall
from lowrank_opt.sets import OrthogonalSet as OrthogonalSet
from lowrank_opt.sets import RankAtMost as RankAtMost
from lowrank_opt.sets import SchattenBall as SchattenBall
from lowrank_opt.sets import ShiftedSet as ShiftedSet
from lowrank_opt.sets import SingularValueBox as SingularValueBox
from lowrank_opt.sets import SpectralSet as SpectralSet
from lowrank_opt.sets import WeightedSchattenBall as WeightedSchattenBall
from lowrank_opt.sets import WeightedSet as WeightedSet

__all__ = [
    "ETHER",
    "AdaLoRA",
    "BatchedParameterization",
    "Complement",
    "ComplementSet",
    "CompletionProblem",
    "CompletionResult",
    "CompletionStatus",
    "Contractions",
    "DeLoRA",
    "DenseCore",
    "DynamicRank",
    "ETHERPlus",
    "Factored",
    "FeasibleSet",
    "HomogeneousBall",
    "ImageSet",
    "Inductive",
    "KyFanBall",
    "LowRankOperator",
    "NBLoRA",
    "NestedSVD",
    "NestedSet",
    "NormBall",
    "NormalizedLoRA",
    "Observations",
    "Offset",
    "Orthogonal",
    "OrthogonalSet",
    "Parameterization",
    "RadialBall",
    "RankAtMost",
    "SVDFrames",
    "ScaledRotation",
    "SchattenBall",
    "ShiftedSet",
    "SimplexRankOnes",
    "SingularValueBox",
    "SpectralLoRA",
    "SpectralSet",
    "VeRA",
    "WeightDecomposed",
    "Weighted",
    "WeightedSchattenBall",
    "WeightedSet",
    "activation_weighted_frames",
    "boft",
    "clora",
    "complete",
    "extend_basis",
    "from_peft_rotation",
    "goft",
    "hra",
    "inf_lora",
    "lora_null",
    "lora_xs",
    "nora",
    "o_lora",
    "oft",
    "olora",
    "oplora",
    "osf",
    "pissa",
    "polar",
    "psoft",
    "rslora",
    "solvers",
    "stella",
]
