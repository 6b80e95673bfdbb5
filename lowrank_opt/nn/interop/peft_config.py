"""The fields of PEFT's configurations: which matter, which say nothing, which are refused."""

from __future__ import annotations

import math
import re
from typing import cast

from lowrank_opt.errors import DataError
from lowrank_opt.parameterizations.config import Json, JsonObject

METHODS = ("LORA", "ADALORA", "DELORA")

# Read here; the importer acts on them.
_READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
    "modules_to_save", "init_r", "init_lora_weights", "bias", "delora_lambda", "lambda_pattern",
    "lora_bias", "trainable_token_indices", "ensure_weight_tying", "lora_dropout",
}  # fmt: skip

# They say how the adapter was trained or which modules it has. The first changes nothing in a
# finished adapter, and the second is in the names of the tensors; the layers of the model tell
# which of them keep their weights transposed (`fan_in_fan_out`).
_WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "peft_version", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out", "module_dropout", "init_weights", "eva_config",
    "loftq_config", "runtime_config", "megatron_core", "target_r", "tinit", "tfinal", "deltaT",
    "beta1", "beta2", "orth_reg_weight", "total_step", "qalora_group_size",
}  # fmt: skip

_MEANING = {
    "target_parameters": "it adapts parameters that are no layer's weight",
    "layer_replication": "it changes the model's layers",
    "alora_invocation_tokens": "it acts on some tokens only",
    "kasa_config": "it changes the base weights",
}

# Starts that leave the base weights what they are.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def method_of(config: JsonObject) -> str:
    """Return the method of a configuration, or raise DataError if its tensors are not known."""
    method = config.get("peft_type")
    if method not in METHODS:
        raise DataError(
            f"PEFT checkpoints of {', '.join(METHODS)} can be read; got {method!r}: import_peft "
            "reads OFT, BOFT and HRA into a model; convert others to LoRA with peft.save_as_lora"
        )
    return str(method)


def check(config: JsonObject) -> None:
    """Raise DataError unless everything in a configuration is understood, or has no effect."""
    method = method_of(config)
    for name, value in config.items():
        if name not in _READ | _WITHOUT_EFFECT and value:
            meaning = _MEANING.get(name, "its meaning is not known here")
            raise DataError(
                f"a PEFT configuration must be understood whole; got {name}={value!r}: {meaning}; "
                "merge the adapter with PEFT, or train it without"
            )
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise DataError(
            f"bias must be one of 'none', 'all', 'lora_only'; got bias={config['bias']!r}: merge "
            "the adapter with PEFT"
        )
    if config.get("use_dora") and config.get("lora_bias"):
        raise DataError("DoRA has no biases of its own; got lora_bias: merge the adapter with PEFT")
    start = config.get("init_lora_weights", True)
    if method == "LORA" and start not in _HARMLESS_STARTS:
        raise DataError(
            f"an adapter must belong to unchanged base weights; init_lora_weights={start!r} "
            "changed them: convert it with PEFT's save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...)"
        )


def scaling(config: JsonObject, name: str, rank: int) -> float:
    """Return the factor before ``B A``.

    ``alpha / r``, ``alpha / sqrt(r)`` for rsLoRA, and ``alpha / (r + 1e-5)`` with the initial r for
    AdaLoRA, as PEFT computes it; patterns match names or their ends after a dot, the first counts.
    """
    alpha = _number(_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8)))
    if config.get("peft_type") == "ADALORA":
        return (alpha if alpha > 0 else rank) / (_number(config.get("init_r", 12)) + 1e-5)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def dropout(config: JsonObject) -> float:
    """Return the probability of dropout of the updates' inputs."""
    p = _number(config.get("lora_dropout") or 0.0)
    if not 0 <= p < 1:
        raise DataError(f"lora_dropout must be a probability below 1; got {p!r}")
    return p


def modules_to_save(config: JsonObject) -> list[str]:
    """Return the names, or ends of names, of modules that were trained whole."""
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"modules_to_save must be a list of names; got {names!r}")
    return [str(name) for name in names]


def token_rows(config: JsonObject, layer: str) -> list[int]:
    """Return the rows of an embedding that were trained by themselves, in order."""
    given = config.get("trainable_token_indices")
    if isinstance(given, dict):
        given = next((v for k, v in given.items() if f".{layer}".endswith(f".{k}")), None)
    if not isinstance(given, list) or not all(isinstance(i, int) and i >= 0 for i in given):
        raise DataError(
            f"trainable_token_indices must name the rows of {layer}; got {given!r}: fetch it again"
        )
    return [i for i in given if isinstance(i, int)]


def _pattern(patterns: Json, name: str, default: Json) -> Json:
    for pattern, value in cast("JsonObject", patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _number(value: Json) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"a PEFT configuration must hold finite numbers; got {value!r}")
    return float(value)
