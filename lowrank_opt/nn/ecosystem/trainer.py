"""Adapters in `transformers.Trainer`: what follows its steps, and checkpoints of adapters alone."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from lowrank_opt.errors import DataError, OptionError
from lowrank_opt.extras import imported
from lowrank_opt.nn.adapters.present import adapter_names
from lowrank_opt.nn.ecosystem.steps import AdapterSteps
from lowrank_opt.nn.folders.load import load_adapter
from lowrank_opt.nn.folders.save import save_adapter

# The folder of a checkpoint that holds one folder for each adapter.
_ADAPTERS = "adapters"


def follow_trainer(
    trainer: Any,  # noqa: ANN401
    steps: AdapterSteps,
    *,
    adapters_only: bool = True,
) -> Any:  # noqa: ANN401
    """Let a `transformers.Trainer` call `AdapterSteps` and log what that returns.

    The figures go where everything that the trainer logs goes: its history and every logger that it
    has. Loading a best model at the end and resuming work as ever.

    Parameters
    ----------
    trainer : transformers.Trainer
        Of an adapted model.
    steps : AdapterSteps
        Its steps are the trainer's, of the optimizer.
    adapters_only : bool
        Whether checkpoints hold the adapters instead of the whole model, as `save_adapter` writes
        them. Resuming needs the same base model with adapters of the same names.

    Returns
    -------
    transformers.Trainer
        The same.

    Raises
    ------
    MissingExtraError
        If transformers is not installed.
    OptionError
        If checkpoints are to hold adapters alone and the trainer shards the model.
    """
    transformers = imported("transformers", "follow_trainer")
    if adapters_only and getattr(trainer, "is_fsdp_enabled", False):
        raise OptionError(
            "checkpoints of adapters alone gather whole parameters in every process, where the "
            "trainer writes them in one; got a trainer that shards the model: pass "
            "adapters_only=False, and save_adapter in every process at the end"
        )

    def on_step_end(
        self: object,
        args: object,
        state: Any,  # noqa: ANN401
        control: object,
        model: nn.Module,
        optimizer: Any = None,  # noqa: ANN401
        **others: object,
    ) -> None:
        figures = steps(model, state.global_step, () if optimizer is None else (optimizer,))
        if figures:
            trainer.log(figures)

    members = {"on_step_end": on_step_end}
    trainer.add_callback(type("AdapterCallback", (transformers.TrainerCallback,), members)())
    if adapters_only:
        _save_adapters_only(trainer)
    return trainer


def _save_adapters_only(trainer: Any) -> None:  # noqa: ANN401
    def save(output_dir: str | None = None, state_dict: object = None) -> None:
        folder = Path(trainer.args.output_dir if output_dir is None else output_dir)
        if not trainer.args.should_save:
            return
        for name in adapter_names(trainer.model):
            save_adapter(trainer.model, folder / _ADAPTERS / name, name=name)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(folder)

    def load(checkpoint: str | PathLike[str], model: nn.Module | None = None) -> None:
        load_adapters(trainer.model if model is None else model, checkpoint)

    trainer._save = save
    trainer._load_from_checkpoint = load
    trainer._load_best_model = lambda: load(trainer.state.best_model_checkpoint)


def load_adapters(model: nn.Module, checkpoint: str | PathLike[str]) -> nn.Module:
    """Load all adapters of a checkpoint that a followed trainer wrote; names that exist are kept.

    Raises
    ------
    DataError
        If there are none, or they do not fit the model.
    """
    folders = sorted(path for path in (Path(checkpoint) / _ADAPTERS).glob("*") if path.is_dir())
    if not folders:
        raise DataError(
            f"a checkpoint of adapters has a folder {_ADAPTERS!r}; got {Path(checkpoint).name!r}: "
            "was it written with adapters_only=True?"
        )
    for folder in folders:
        load_adapter(model, folder, name=folder.name)
    return model
