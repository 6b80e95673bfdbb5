"""Maps from free parameters to factor triples: the contract, options and the table of methods.

In `free`, `balls` and `turned` stand the maps, in `composed` what goes around one, in `published`
functions that compose them. What trains, merges or completes with them is elsewhere.
"""

from lowrank_opt.parameterizations.balls.contractions import Contractions as Contractions
from lowrank_opt.parameterizations.balls.delora import DeLoRA as DeLoRA
from lowrank_opt.parameterizations.balls.homogeneous import HomogeneousBall as HomogeneousBall
from lowrank_opt.parameterizations.balls.nb_lora import NBLoRA as NBLoRA
from lowrank_opt.parameterizations.balls.radial import RadialBall as RadialBall
from lowrank_opt.parameterizations.balls.simplex import SimplexRankOnes as SimplexRankOnes
from lowrank_opt.parameterizations.balls.spectral_lora import SpectralLoRA as SpectralLoRA
from lowrank_opt.parameterizations.balls.svd_frames import SVDFrames as SVDFrames
from lowrank_opt.parameterizations.base import Parameterization as Parameterization
from lowrank_opt.parameterizations.batched import (
    BatchedParameterization as BatchedParameterization,
)
from lowrank_opt.parameterizations.certificate import Certificate as Certificate
from lowrank_opt.parameterizations.composed.complement import Complement as Complement
from lowrank_opt.parameterizations.composed.inductive import Inductive as Inductive
from lowrank_opt.parameterizations.composed.nested_svd import NestedSVD as NestedSVD
from lowrank_opt.parameterizations.composed.offset import Offset as Offset
from lowrank_opt.parameterizations.composed.weight_decomposed import (
    WeightDecomposed as WeightDecomposed,
)
from lowrank_opt.parameterizations.composed.weighted import Weighted as Weighted
from lowrank_opt.parameterizations.free.adalora import AdaLoRA as AdaLoRA
from lowrank_opt.parameterizations.free.dense_core import DenseCore as DenseCore
from lowrank_opt.parameterizations.free.dynamic_rank import DynamicRank as DynamicRank
from lowrank_opt.parameterizations.free.factored import Factored as Factored
from lowrank_opt.parameterizations.free.normalized import NormalizedLoRA as NormalizedLoRA
from lowrank_opt.parameterizations.free.vera import VeRA as VeRA
from lowrank_opt.parameterizations.published.peft_rotations import (
    from_peft_rotation as from_peft_rotation,
)
from lowrank_opt.parameterizations.published.presets import (
    activation_weighted_frames as activation_weighted_frames,
)
from lowrank_opt.parameterizations.published.presets import lora_xs as lora_xs
from lowrank_opt.parameterizations.published.presets import nora as nora
from lowrank_opt.parameterizations.published.presets import polar as polar
from lowrank_opt.parameterizations.published.presets import stella as stella
from lowrank_opt.parameterizations.published.rotations import boft as boft
from lowrank_opt.parameterizations.published.rotations import goft as goft
from lowrank_opt.parameterizations.published.rotations import hra as hra
from lowrank_opt.parameterizations.published.rotations import oft as oft
from lowrank_opt.parameterizations.published.rotations import psoft as psoft
from lowrank_opt.parameterizations.published.starts import olora as olora
from lowrank_opt.parameterizations.published.starts import pissa as pissa
from lowrank_opt.parameterizations.published.starts import rslora as rslora
from lowrank_opt.parameterizations.published.subspaces import clora as clora
from lowrank_opt.parameterizations.published.subspaces import inf_lora as inf_lora
from lowrank_opt.parameterizations.published.subspaces import lora_null as lora_null
from lowrank_opt.parameterizations.published.subspaces import o_lora as o_lora
from lowrank_opt.parameterizations.published.subspaces import oplora as oplora
from lowrank_opt.parameterizations.published.subspaces import osf as osf
from lowrank_opt.parameterizations.turned.ether import ETHER as ETHER
from lowrank_opt.parameterizations.turned.ether import ETHERPlus as ETHERPlus
from lowrank_opt.parameterizations.turned.orthogonal import Orthogonal as Orthogonal
from lowrank_opt.parameterizations.turned.scaled_rotation import ScaledRotation as ScaledRotation
