"""Laws of adapters: forward, merging and training against the dense formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.testing.cases.adapter_method import METHOD, AdapterMethod, small_models
from lowrank_opt.testing.cases.calls import call
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.laws import adapter_laws, adapter_uses
from lowrank_opt.testing.laws.adapter_laws import AdapterTrial, Models
from lowrank_opt.testing.search.check import AnyLaw, CheckOptions, check
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import CheckResult

_BODIES = (
    ("start", "The adapted model starts as the base model.", adapter_laws.start),
    ("forward", "The output is F(x; W0 + dW), training and evaluating.", adapter_laws.forward),
    (
        "gradients",
        "Gradients go to the adapter only, and are those of F(x; W0 + dW).",
        adapter_laws.gradients,
    ),
    (
        "merging",
        "The merged model computes F(x; W0 + dW); unmerging restores every bit.",
        adapter_laws.merging,
    ),
    (
        "disabling",
        "While disabled, merged or not, the model is the base model.",
        adapter_laws.disabling,
    ),
    ("frozen", "Training leaves the base weights as they are.", adapter_laws.frozen),
    ("state", "The state dict and a deep copy carry the adapted model.", adapter_laws.state),
    (
        "orders",
        "After any sequence of operations the model is F(x; W0 + dW, heads, buffers).",
        adapter_laws.orders,
    ),
)

_NEEDS = {
    "start": (),
    "orders": ("start", "forward", "merging", "gradients", "disabling", "frozen", "state"),
}

ADAPTER_LAWS: tuple[AnyLaw, ...] = (
    *(
        Law(
            name,
            statement,
            body,
            parameters=(FreeParameters("start"),),
            sides=(1, 6),
            max_rank=3,
            max_examples=2 if name == "orders" else 4,
            needs=_NEEDS.get(name, ("start",)),
            entry="check_adapter",
        )
        for name, statement, body in _BODIES
    ),
    *adapter_uses.LAWS,
)

_ORDERS = {1: ("shape",), 2: ("shape", "rank")}


def check_adapter(
    make: Callable[..., Parameterization],
    *,
    method: AdapterMethod = METHOD,
    models: Models = small_models,
    **options: Unpack[CheckOptions],
) -> list[CheckResult]:
    """Check every law of adapters on one parameterization, in small models of several kinds.

    Parameters
    ----------
    make : callable
        ``make(shape)`` or ``make(shape, rank)`` returns a parameterization, as for `adapt`.
    method : AdapterMethod
        How adapters are put in, merged and taken out; by default those of `lowrank_opt.nn`.
    models : callable
        From ``(m, n)`` to a dict of models and their inputs: linear layers, an embedding, a
        grouped convolution and self-attention by default.
    **options
        ``profile``, ``dtype``, ``seed``, ``on_fail`` and others, as for `check_parameterization`.

    Returns
    -------
    list of CheckResult

    Raises
    ------
    BrokenLawError
        With the smallest counter-example.
    TargetError
        If an option is not one of its choices, or names no law.

    Examples
    --------
    >>> from functools import partial
    >>> from lowrank_opt import NBLoRA
    >>> verdicts = check_adapter(partial(NBLoRA, radius=1.0), profile="quick")
    >>> {v.status for v in verdicts}
    {'passed'}
    """
    return check(ADAPTER_LAWS, adapter_trial(make, method, models), **options)


def adapter_trial(
    make: Callable[..., Parameterization],
    method: AdapterMethod = METHOD,
    models: Models = small_models,
) -> AdapterTrial:
    """Return what the laws of adapters are tried on."""

    def made(shape: tuple[int, int], rank: int) -> Parameterization:
        return call(make, _ORDERS, {"shape": shape, "rank": rank})

    given = {"method": (method, METHOD), "models": (models, small_models)}
    changed = {k: v for k, (v, default) in given.items() if v is not default}
    return AdapterTrial(made, method, models, written=make, options=changed)
