"""A model with each layer that PEFT adapts, its checkpoints, and what PEFT makes of them."""

import json
import re

import safetensors.torch
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.nn import (
    adapt,
)
from tests.oracles import normal

PREFIX = "base_model.model."
INDICES = torch.arange(14).reshape(2, 7) % 9


class Small(nn.Module):
    """One layer of each kind that PEFT adapts; two names of which one ends like the other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)
        self.block = nn.ModuleDict({"fc": nn.Linear(5, 4)})
        self.head = nn.Linear(4, 2)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.table(indices).mT).mT
        return self.head(torch.tanh(self.block["fc"](torch.tanh(self.fc(x)))))


LAYERS = {"table": (9, 4), "conv": (6, 12), "fc": (6, 5)[::-1], "block.fc": (4, 5)}


def small() -> Small:
    torch.manual_seed(0)
    return Small().double().eval()


def checkpoint(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    named = {f"{PREFIX}{key}": x.contiguous() for key, x in tensors.items()}
    safetensors.torch.save_file(named, folder / "adapter_model.safetensors")
    return folder


def lora(names, rank=2):
    """Return the tensors of LoRA for some layers, and B A of each in the shape of its weight."""
    tensors, products = {}, {}
    for seed, name in enumerate(names):
        m, n = LAYERS[name]
        B, A = normal(m, rank, seed=seed), normal(rank, n, seed=seed + 50)
        products[name] = B @ A
        if name == "table":
            tensors |= {f"{name}.lora_embedding_A": B.mT, f"{name}.lora_embedding_B": A.mT}
        elif name == "conv":
            tensors[f"{name}.lora_A.weight"] = A.reshape(rank, 4, 3)
            tensors[f"{name}.lora_B.weight"] = B.reshape(m, rank, 1)
        else:
            tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    return tensors, products


def with_weights(updates):
    """Return the model with other weights: the oracle."""
    model = small()
    for name, update in updates.items():
        weight = model.get_submodule(name).weight
        weight.data += update.reshape(weight.shape)
    return model


MAKES = {
    "Factored": lambda s: lo.Factored(s, 2, scaling=3.0),
    "ranks and scalings": lambda s: lo.Factored(s, 1 + s[0] % 3, scaling=1.0 + s[0]),
    "NBLoRA": lambda s: lo.NBLoRA(s, 2, radius=0.5),
    "NBLoRA p=1": lambda s: lo.NBLoRA(s, 3, radius=0.5, p=1),
    "SpectralLoRA": lambda s: lo.SpectralLoRA(s, 2, radius=0.5),
    "DeLoRA": lambda s: lo.DeLoRA(s, 3, radius=2.0, column_norms=torch.ones(s[1]) / 2),
    "AdaLoRA": lambda s: lo.AdaLoRA(s, 3, scaling=2.0),
    "VeRA": lambda s: lo.VeRA(s, 3),
    "NestedSVD": lambda s: lo.NestedSVD(torch.randn(*s), lo.NBLoRA((3, 3), 2, radius=0.5)),
    "Offset": lambda s: lo.Offset(lo.HomogeneousBall(s, 1, radius=0.3)),
}


def adapted(make, **options):
    options = {"targets": "table|conv|fc", "exclude": "head", **options}
    model = adapt(small(), make, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def as_peft_reads(folder):
    """Return the updates in a folder, by PEFT's rules, written down once more."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    updates = {}
    for name in LAYERS:
        alpha, rank = (
            next((v for k, v in config[p].items() if _fits(k, name)), config[default])
            for p, default in (("alpha_pattern", "lora_alpha"), ("rank_pattern", "r"))
        )
        if name == "table":
            A, B = (tensors[f"{PREFIX}{name}.lora_embedding_{x}"].double() for x in "AB")
            update = (B @ A).mT
        else:
            A, B = (tensors[f"{PREFIX}{name}.lora_{x}.weight"].double() for x in "AB")
            update = B.flatten(1) @ A.flatten(1)
        assert rank == A.shape[0]
        updates[name] = alpha / rank * update
    return config, updates


def _fits(pattern, name):
    return re.match(rf"(.*\.)?({pattern})$", name)
