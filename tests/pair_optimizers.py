"""The optimizers over pairs, with the options that lead through other code."""

from lowrank_opt.training import (
    LoRAPro,
    LoRAProAdamW,
    LoRARite,
    ScaledAdamW,
    ScaledGD,
    SpectralDescent,
)

OPTIMIZERS = {
    "ScaledGD": lambda pairs: ScaledGD(pairs, lr=0.05),
    "ScaledGD damped": lambda pairs: ScaledGD(pairs, lr=0.05, damping=1e-3),
    "ScaledAdamW": lambda pairs: ScaledAdamW(pairs, lr=0.05),
    "LoRARite": lambda pairs: LoRARite(pairs, lr=0.05, escaped_mass=True),
    "LoRAPro": lambda pairs: LoRAPro(pairs, lr=0.05, momentum=0.9, normalized=True),
    "LoRAPro zero": lambda pairs: LoRAPro(pairs, lr=0.05, split="zero"),
    "LoRAProAdamW": lambda pairs: LoRAProAdamW(pairs, lr=0.05),
    "SpectralDescent": lambda pairs: SpectralDescent(pairs, lr=0.05),
}
