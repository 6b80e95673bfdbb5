"""Unconstrained but complete low-rank parameterizations, and what is built on them.

Names load their module when they are asked for: the command prints its help without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank_opt import solvers as solvers
    from lowrank_opt.completion import CompletionProblem as CompletionProblem
    from lowrank_opt.completion import CompletionResult as CompletionResult
    from lowrank_opt.completion import CompletionStatus as CompletionStatus
    from lowrank_opt.completion import complete as complete
    from lowrank_opt.observations import Observations as Observations
    from lowrank_opt.operator import LowRankOperator as LowRankOperator
    from lowrank_opt.parameterizations import ETHER as ETHER
    from lowrank_opt.parameterizations import AdaLoRA as AdaLoRA
    from lowrank_opt.parameterizations import BatchedParameterization as BatchedParameterization
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
    from lowrank_opt.parameterizations import Offset as Offset
    from lowrank_opt.parameterizations import Parameterization as Parameterization
    from lowrank_opt.parameterizations import RadialBall as RadialBall
    from lowrank_opt.parameterizations import SimplexRankOnes as SimplexRankOnes
    from lowrank_opt.parameterizations import SpectralLoRA as SpectralLoRA
    from lowrank_opt.parameterizations import SVDFrames as SVDFrames
    from lowrank_opt.parameterizations import VeRA as VeRA
    from lowrank_opt.parameterizations import WeightDecomposed as WeightDecomposed
    from lowrank_opt.parameterizations import Weighted as Weighted
    from lowrank_opt.parameterizations import (
        activation_weighted_frames as activation_weighted_frames,
    )
    from lowrank_opt.parameterizations import lora_xs as lora_xs
    from lowrank_opt.parameterizations import nora as nora
    from lowrank_opt.parameterizations import olora as olora
    from lowrank_opt.parameterizations import pissa as pissa
    from lowrank_opt.parameterizations import rslora as rslora
    from lowrank_opt.sets import FeasibleSet as FeasibleSet
    from lowrank_opt.sets import ImageSet as ImageSet
    from lowrank_opt.sets import KyFanBall as KyFanBall
    from lowrank_opt.sets import NestedSet as NestedSet
    from lowrank_opt.sets import RankAtMost as RankAtMost
    from lowrank_opt.sets import SchattenBall as SchattenBall
    from lowrank_opt.sets import ShiftedSet as ShiftedSet
    from lowrank_opt.sets import SingularValueBox as SingularValueBox
    from lowrank_opt.sets import SpectralSet as SpectralSet
    from lowrank_opt.sets import WeightedSchattenBall as WeightedSchattenBall
    from lowrank_opt.sets import WeightedSet as WeightedSet

_HOMES = {
    "completion": "complete CompletionProblem CompletionResult CompletionStatus",
    "observations": "Observations",
    "operator": "LowRankOperator",
    "parameterizations": (
        "activation_weighted_frames AdaLoRA BatchedParameterization Contractions DeLoRA "
        "DenseCore DynamicRank ETHER ETHERPlus Factored HomogeneousBall Inductive lora_xs "
        "NBLoRA NestedSVD nora Offset olora Parameterization pissa RadialBall rslora "
        "SimplexRankOnes SpectralLoRA SVDFrames VeRA WeightDecomposed Weighted"
    ),
    "sets": (
        "FeasibleSet ImageSet KyFanBall NestedSet RankAtMost SchattenBall ShiftedSet "
        "SingularValueBox SpectralSet WeightedSchattenBall WeightedSet"
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name in _HOME:
        found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        found = _room(name)
    globals()[name] = found
    return found


def _room(name: str) -> object:
    """Return a subpackage."""
    full = f"{__name__}.{name}"
    try:
        if name.startswith("_"):
            raise ModuleNotFoundError(name=full)
        return import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
