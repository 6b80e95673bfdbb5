"""Adapters in Lightning's trainer: a callback that follows its steps and shortens checkpoints."""

from __future__ import annotations

from typing import Any

from torch import nn

from lowrank_opt.extras import imported
from lowrank_opt.nn.basis.originals import STORE
from lowrank_opt.nn.ecosystem.steps import AdapterSteps


def lightning_callback(steps: AdapterSteps, *, adapters_only: bool = True) -> Any:  # noqa: ANN401
    """Return a Lightning callback that calls `AdapterSteps` and logs what that returns.

    Parameters
    ----------
    steps : AdapterSteps
        Its steps are the trainer's ``global_step``: of the optimizers, not of batches.
    adapters_only : bool
        Whether the state dict of a checkpoint holds the adapters instead of the whole model. A
        trainer that has the callback leaves the rest of the module as it is when it loads one; all
        adapters must be there.

    Returns
    -------
    lightning.pytorch.Callback

    Raises
    ------
    MissingExtraError
        If lightning is not installed.
    """
    pytorch = imported("lightning.pytorch", "lightning_callback")
    seen = [0]

    def on_train_batch_end(
        self: object,
        trainer: Any,  # noqa: ANN401
        pl_module: Any,  # noqa: ANN401
        *others: object,
    ) -> None:
        if trainer.global_step == seen[0]:
            # The gradients of several batches are summed.
            return
        seen[0] = trainer.global_step
        figures = steps(pl_module, trainer.global_step, trainer.optimizers)
        if figures:
            pl_module.log_dict(figures)

    members: dict[str, object] = {"on_train_batch_end": on_train_batch_end}
    if adapters_only:
        members |= {"on_save_checkpoint": _shortened, "setup": _completing}
    return type("AdapterCallback", (pytorch.Callback,), members)()


def _shortened(
    self: object, trainer: object, pl_module: nn.Module, checkpoint: dict[str, Any]
) -> None:
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key: x for key, x in state.items() if _is_adapters(key)}


def _completing(self: object, trainer: object, pl_module: nn.Module, stage: str) -> None:
    """Let a module take what a short state dict leaves out from itself, and stay strict."""
    hooks = pl_module._load_state_dict_pre_hooks.values()  # pyright: ignore[reportPrivateUsage]
    if not any(getattr(hook, "hook", hook) is _complete for hook in hooks):
        pl_module.register_load_state_dict_pre_hook(_complete)


def _complete(module: nn.Module, state: dict[str, Any], prefix: str, *others: object) -> None:
    if state and all(_is_adapters(key) for key in state):
        base = module.state_dict(prefix=prefix)
        state.update({key: x for key, x in base.items() if not _is_adapters(key)})


def _is_adapters(key: str) -> bool:
    return STORE in key.split(".")
