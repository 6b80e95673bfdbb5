"""Training methods for low-rank factors, in four rooms: optimizers, perturbation, ranks, algebra.

Here live `chain` (merge, start anew, go on), `roles` (which tensors are a pair), `start` (where
updates begin) and `forgetting`. Layers and adapters live in `nn`; what is done to finished updates
lives in `merging`.
"""

from lowrank_opt.training.chain import ChainOfLowRank as ChainOfLowRank
from lowrank_opt.training.chain import Link as Link
from lowrank_opt.training.optimizers.factor_optimizer import FactorOptimizer as FactorOptimizer
from lowrank_opt.training.optimizers.galore import GaLore as GaLore
from lowrank_opt.training.optimizers.lora_plus import lora_plus_groups as lora_plus_groups
from lowrank_opt.training.optimizers.lora_pro import LoRAPro as LoRAPro
from lowrank_opt.training.optimizers.lora_pro import LoRAProAdamW as LoRAProAdamW
from lowrank_opt.training.optimizers.lora_pro_full import LoRAProFull as LoRAProFull
from lowrank_opt.training.optimizers.lora_rite import LoRARite as LoRARite
from lowrank_opt.training.optimizers.scaled_gd import ScaledAdamW as ScaledAdamW
from lowrank_opt.training.optimizers.scaled_gd import ScaledGD as ScaledGD
from lowrank_opt.training.optimizers.scaled_gd import spectral_start as spectral_start
from lowrank_opt.training.optimizers.spectral_descent import SpectralDescent as SpectralDescent
from lowrank_opt.training.perturbation.flat_perturbation import FlatPerturbation as FlatPerturbation
from lowrank_opt.training.perturbation.flat_perturbation import cosine_increase as cosine_increase
from lowrank_opt.training.ranks.alpha_test import alpha_test as alpha_test
from lowrank_opt.training.ranks.budget import CubicBudget as CubicBudget
from lowrank_opt.training.ranks.budget import choose_modules as choose_modules
from lowrank_opt.training.ranks.budget import greedy_ranks as greedy_ranks
from lowrank_opt.training.ranks.budget import top_components as top_components
from lowrank_opt.training.ranks.importance import Importance as Importance
from lowrank_opt.training.ranks.importance import Magnitude as Magnitude
from lowrank_opt.training.ranks.importance import Sensitivity as Sensitivity
from lowrank_opt.training.ranks.importance import component_norms as component_norms
from lowrank_opt.training.ranks.importance import grad_norm as grad_norm
from lowrank_opt.training.ranks.importance import snip_score as snip_score
from lowrank_opt.training.ranks.importance import tangent_norm as tangent_norm
from lowrank_opt.training.ranks.module_allocator import ModuleAllocator as ModuleAllocator
from lowrank_opt.training.ranks.penalties import dispersion_penalty as dispersion_penalty
from lowrank_opt.training.ranks.penalties import orthogonality_penalty as orthogonality_penalty
from lowrank_opt.training.ranks.rank_allocator import RankAllocator as RankAllocator
from lowrank_opt.training.ranks.step_down import step_down_ as step_down_
from lowrank_opt.training.ranks.synflow import synflow_scores as synflow_scores
from lowrank_opt.training.roles import FactorPair as FactorPair
from lowrank_opt.training.roles import factor_pairs as factor_pairs
from lowrank_opt.training.start import start as start
