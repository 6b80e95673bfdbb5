"""A PEFT checkpoint as named low-rank updates, before any model is there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from os import PathLike

import torch
from torch import Tensor

from lowrank_opt.errors import DataError
from lowrank_opt.nn.interop import peft_config, peft_folder
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.config import JsonObject

PREFIX = "base_model.model."
_BASE = ".base_layer.weight"
BASE_BIAS = ".base_layer.bias"
_TOKENS = ".token_adapter.trainable_tokens_delta"

# The tensors that PEFT keeps of one layer, by method, embedding or not: A, B, and what else.
_PARTS = re.compile(
    r"(?P<site>.+)\.(?:(?P<lora>lora_(?P<lora_part>[ABE]))(?:\.weight)?"
    r"|(?P<lora_bias>lora_B\.bias)"
    r"|lora_embedding_(?P<embedding_part>[AB])"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?"
    r"|delora_(?P<delora_part>A|B|lambda|w_norm))"
)
_NEEDED = {"LORA": {"A", "B"}, "ADALORA": {"A", "B", "E"}, "DELORA": {"A", "B", "lambda", "w_norm"}}


@dataclass(frozen=True)
class PeftSite:
    r"""What a checkpoint holds of one layer.

    Attributes
    ----------
    name : str
        The layer's name in the base model.
    method : str
        ``"LORA"``, ``"ADALORA"`` or ``"DELORA"``.
    embedding : bool
        Whether the factors are those of an embedding.
    scaling : float
        The factor before ``B A``; 1 for DeLoRA.
    tensors : dict of Tensor
        By their role: A, B; E of AdaLoRA; lambda, w_norm of DeLoRA; magnitude of DoRA; bias of B.
    """

    name: str
    method: str
    embedding: bool
    scaling: float
    tensors: dict[str, Tensor]

    @property
    def rank(self) -> int:
        """Number of rank-one terms; zero for a layer that AdaLoRA has pruned away."""
        return self.tensors["A"].shape[0]

    @property
    def numbers(self) -> int:
        """How many numbers were trained."""
        return sum(x.numel() for role, x in self.tensors.items() if role != "w_norm")

    def operator(self) -> LowRankOperator:
        r"""Return the update :math:`\Delta W` in float64, out by in; embeddings words by features.

        Convolutions are matrices of their flattened kernels.
        """
        A, B = (self.tensors[role].flatten(1).double() for role in "AB")
        scale = torch.full((self.rank,), self.scaling, dtype=torch.float64)
        if "E" in self.tensors:
            scale = scale * self.tensors["E"].double().flatten()
        if self.method == "DELORA":
            scale = self.tensors["lambda"].double() / max(1, self.rank)
            scale = scale / _clamped_norms(A.mT) / _clamped_norms(B)
            A = A * self.tensors["w_norm"].double()
        op = LowRankOperator(B, scale, A.mT)
        return op.mT if self.embedding else op


@dataclass(frozen=True)
class PeftAdapter:
    """A checkpoint.

    Attributes
    ----------
    config : dict
    sites : dict of PeftSite
        By the names of layers.
    trained : dict of Tensor
        All that is left, by their names: the tensors of modules that were trained whole, and
        biases.
    tokens : dict of Tensor
        Rows of embeddings that were trained by themselves, by the names of their layers.
    bases : dict of Tensor
        Copies of base weights, by the names of their layers: PEFT adds them where it adapts
        embeddings.
    """

    config: JsonObject
    sites: dict[str, PeftSite]
    trained: dict[str, Tensor]
    bases: dict[str, Tensor]
    tokens: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def read_adapter(path: str | PathLike[str]) -> PeftAdapter:
    """Return the adapter of a folder; every tensor of the file is in it.

    Raises
    ------
    DataError
        If a file is missing, damaged or pickled; if it is of another method; if a layer has not
        the tensors of its method.
    """
    config, tensors = peft_folder.read(path)
    method = peft_config.method_of(config)
    found: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    trained: dict[str, Tensor] = {}
    bases: dict[str, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    for key, x in tensors.items():
        name = key.removeprefix(PREFIX)
        match = _PARTS.fullmatch(name)
        if match is None:
            _sort(name, x, trained, bases, tokens)
            continue
        groups = match.groupdict()
        role = groups["lora_part"] or groups["embedding_part"] or groups["delora_part"]
        other = "bias" if groups["lora_bias"] else "magnitude"
        found.setdefault(groups["site"], {})[role or other] = x
        if groups["embedding_part"]:
            embeddings.add(groups["site"])
    sites = {
        name: _site(name, method, name in embeddings, parts, config, path)
        for name, parts in found.items()
    }
    return PeftAdapter(config, sites, trained, bases, tokens)


def _sort(
    name: str,
    x: Tensor,
    trained: dict[str, Tensor],
    bases: dict[str, Tensor],
    tokens: dict[str, Tensor],
) -> None:
    """Put a tensor that is no factor where it belongs."""
    if name.endswith(_BASE):
        bases[name.removesuffix(_BASE)] = x
    elif name.endswith(_TOKENS):
        tokens[name.removesuffix(_TOKENS)] = x
    elif name.endswith(BASE_BIAS):
        trained[f"{name.removesuffix(BASE_BIAS)}.bias"] = x
    else:
        trained[name] = x


def _site(
    name: str,
    method: str,
    embedding: bool,
    parts: dict[str, Tensor],
    config: JsonObject,
    path: str | PathLike[str],
) -> PeftSite:
    needed = _NEEDED[method] | ({"magnitude"} if config.get("use_dora") else set())
    needed = needed | ({"bias"} if config.get("lora_bias") and not embedding else set())
    if set(parts) != needed:
        raise DataError(
            f"a {method} checkpoint has {' and '.join(sorted(needed))} for each weight; "
            f"{name} has {sorted(parts)} in {str(path)!r}: fetch it again"
        )
    A, B = parts["A"], parts["B"]
    if A.ndim < 2 or B.ndim < 2 or A.shape[0] != B.shape[1]:
        shapes = f"A of shape {tuple(A.shape)} and B of {tuple(B.shape)}"
        raise peft_folder.damaged(path, f"{name} has {shapes}")
    if not all(bool(torch.isfinite(x).all()) for x in parts.values()):
        raise peft_folder.damaged(path, f"{name} has NaN or infinite numbers")
    rank = A.shape[0]
    factor = 1.0 if method == "DELORA" else peft_config.scaling(config, name, max(1, rank))
    return PeftSite(name, method, embedding, factor, parts)


def _clamped_norms(x: Tensor) -> Tensor:
    """Return the norms of columns, at least 1e-4 as PEFT takes them."""
    return torch.linalg.vector_norm(x, dim=0).clamp_min(1e-4)
