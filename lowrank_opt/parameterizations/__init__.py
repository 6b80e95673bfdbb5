"""Maps from free parameters to factor triples, one family per file."""

from lowrank_opt.parameterizations.adalora import AdaLoRA as AdaLoRA
from lowrank_opt.parameterizations.base import Parameterization as Parameterization
from lowrank_opt.parameterizations.batched import (
    BatchedParameterization as BatchedParameterization,
)
from lowrank_opt.parameterizations.certificate import Certificate as Certificate
from lowrank_opt.parameterizations.complement import Complement as Complement
from lowrank_opt.parameterizations.contractions import Contractions as Contractions
from lowrank_opt.parameterizations.delora import DeLoRA as DeLoRA
from lowrank_opt.parameterizations.dense_core import DenseCore as DenseCore
from lowrank_opt.parameterizations.dynamic_rank import DynamicRank as DynamicRank
from lowrank_opt.parameterizations.ether import ETHER as ETHER
from lowrank_opt.parameterizations.ether import ETHERPlus as ETHERPlus
from lowrank_opt.parameterizations.factored import Factored as Factored
from lowrank_opt.parameterizations.homogeneous import HomogeneousBall as HomogeneousBall
from lowrank_opt.parameterizations.inductive import Inductive as Inductive
from lowrank_opt.parameterizations.nb_lora import NBLoRA as NBLoRA
from lowrank_opt.parameterizations.nested_svd import NestedSVD as NestedSVD
from lowrank_opt.parameterizations.normalized import NormalizedLoRA as NormalizedLoRA
from lowrank_opt.parameterizations.offset import Offset as Offset
from lowrank_opt.parameterizations.orthogonal import Orthogonal as Orthogonal
from lowrank_opt.parameterizations.presets import (
    activation_weighted_frames as activation_weighted_frames,
)
from lowrank_opt.parameterizations.presets import lora_xs as lora_xs
from lowrank_opt.parameterizations.presets import nora as nora
from lowrank_opt.parameterizations.presets import polar as polar
from lowrank_opt.parameterizations.presets import stella as stella
from lowrank_opt.parameterizations.radial import RadialBall as RadialBall
from lowrank_opt.parameterizations.rotations import boft as boft
from lowrank_opt.parameterizations.rotations import goft as goft
from lowrank_opt.parameterizations.rotations import hra as hra
from lowrank_opt.parameterizations.rotations import oft as oft
from lowrank_opt.parameterizations.rotations import psoft as psoft
from lowrank_opt.parameterizations.simplex import SimplexRankOnes as SimplexRankOnes
from lowrank_opt.parameterizations.spectral_lora import SpectralLoRA as SpectralLoRA
from lowrank_opt.parameterizations.starts import olora as olora
from lowrank_opt.parameterizations.starts import pissa as pissa
from lowrank_opt.parameterizations.starts import rslora as rslora
from lowrank_opt.parameterizations.subspaces import clora as clora
from lowrank_opt.parameterizations.subspaces import inf_lora as inf_lora
from lowrank_opt.parameterizations.subspaces import lora_null as lora_null
from lowrank_opt.parameterizations.subspaces import o_lora as o_lora
from lowrank_opt.parameterizations.subspaces import oplora as oplora
from lowrank_opt.parameterizations.subspaces import osf as osf
from lowrank_opt.parameterizations.svd_frames import SVDFrames as SVDFrames
from lowrank_opt.parameterizations.vera import VeRA as VeRA
from lowrank_opt.parameterizations.weight_decomposed import WeightDecomposed as WeightDecomposed
from lowrank_opt.parameterizations.weighted import Weighted as Weighted
