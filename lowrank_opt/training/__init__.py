"""Training methods for low-rank factors: optimizers, perturbation, chains, allocation of rank."""

from lowrank_opt.training.chain import ChainOfLowRank as ChainOfLowRank
from lowrank_opt.training.chain import Link as Link
from lowrank_opt.training.factor_optimizer import FactorOptimizer as FactorOptimizer
from lowrank_opt.training.flat_perturbation import FlatPerturbation as FlatPerturbation
from lowrank_opt.training.flat_perturbation import cosine_increase as cosine_increase
from lowrank_opt.training.galore import GaLore as GaLore
from lowrank_opt.training.lora_plus import lora_plus_groups as lora_plus_groups
from lowrank_opt.training.lora_pro import LoRAPro as LoRAPro
from lowrank_opt.training.lora_pro import LoRAProAdamW as LoRAProAdamW
from lowrank_opt.training.lora_rite import LoRARite as LoRARite
from lowrank_opt.training.roles import FactorPair as FactorPair
from lowrank_opt.training.roles import factor_pairs as factor_pairs
from lowrank_opt.training.scaled_gd import ScaledAdamW as ScaledAdamW
from lowrank_opt.training.scaled_gd import ScaledGD as ScaledGD
from lowrank_opt.training.scaled_gd import spectral_start as spectral_start
from lowrank_opt.training.spectral_descent import SpectralDescent as SpectralDescent
