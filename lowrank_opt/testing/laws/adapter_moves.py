"""Further steps of a play: wrappers, checkpoints, PEFT folders, base parameters set free."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from lowrank_opt.errors import LowRankError, OptionError
from lowrank_opt.nn.adapters.store import STORE
from lowrank_opt.nn.adapters.weights import adapted_weights
from lowrank_opt.testing.laws.adapter_play import Play
from lowrank_opt.testing.laws.adapter_stage import whole
from lowrank_opt.testing.search.verdict import Violation, expect


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # pyright: ignore[reportReturnType]


WRAPPERS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "compile": _compiled,
    "data parallel": nn.DataParallel,
    "checkpoint": checkpoint_wrapper,
}


def reload_wrapped(play: Play, *, name: str, new: str, fresh: bool, wrapper: str) -> None:
    """Save and load through a wrapper, which adds nothing to names."""
    play.reload(name, new, fresh=fresh, wrap=WRAPPERS[wrapper])


def exchange_with_peft(play: Play, *, name: str, new: str) -> None:
    """Go on with what PEFT's format holds of an adapter, in a plain model, if it can hold it."""
    if name not in play.book.pages:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            play.do.export_peft(play.model, Path(folder) / "peft", name=name)
        except (LowRankError, OptionError):
            return
        page = play.written(name)
        play.leave_all()
        play.begin_anew(lambda model: play.do.import_peft(model, Path(folder) / "peft", name=new))
    play.book.pages, play.book.active = {new: page}, {new: 1.0}
    play.check()
    page.heads.clear()
    page.buffers.clear()
    play.read(new)


def shard(play: Play, *, cut: Callable[[nn.Module], nn.Module]) -> None:
    """Cut the model with its adapters among processes, where none may come or go."""
    play.leave_all()
    if play.quiet and not play.sharded:
        play.model, play.sharded = cut(play.model), True


def set_free(play: Play, *, name: str) -> None:
    """Let everything be trained, save, load into a plain model, and freeze the base again."""
    if name not in play.book.pages or play.described(name) is None or play.blocks:
        return
    play.model.requires_grad_(True)
    other = copy.deepcopy(play)
    other.reload(name, name, fresh=True)
    other.check()
    for key, p in play.model.named_parameters():
        if STORE not in key:
            p.requires_grad_(False)
    for store in (m for m in play.model.modules() if hasattr(m, "parts") and hasattr(m, "record")):
        for key, part in store.parts().items():  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            part.train_only_if(key in play.book.active)


def freeze_one(play: Play, *, which: int) -> None:
    """Expect a parameter that is frozen by itself to stay so, whatever is active meanwhile."""
    free = [p for p in play.model.parameters() if p.requires_grad and play.book.pages]
    # With all frozen, as for evaluation, the next switch lets adapters be trained again.
    if len(free) < 2 or play.book.merged is not None or not play.book.agree(play.book.active):
        return
    one, active = free[which % len(free)], dict(play.book.active)
    one.requires_grad_(False)
    for weights in (active, {}, active):
        play.do.switch(play.model, weights)
        expect(not one.requires_grad, f"a frozen parameter is trained after switch({weights})")
        awake = [p for p in free if p.requires_grad]
        many = len(free) - 1 if weights else 0
        expect(len(awake) == many, f"{many} parameters must be trained; got {len(awake)}")
    one.requires_grad_(True)
    play.do.switch(play.model, active)


def write(play: Play, *, name: str, through_data: bool) -> None:
    """Write to the numbers of an adapter, in ways that optimizers do not."""
    if name not in play.book.pages or play.book.merged is not None:
        return
    for found in adapted_weights(play.model, {name}, tied=False):
        for p in (p for update in found.updates for p in update.parameters()):
            if through_data:
                p.data.mul_(-0.75)
            else:
                with torch.no_grad():
                    p.mul_(-0.75)
    play.read(name, buffers=False)


def train_base(play: Play, *, which: int) -> None:
    """Train a parameter of the base model, as a caller may, and freeze it again."""
    if not play.book.pages or play.book.merged is not None:
        return
    own = dict(play.book.base.named_parameters())
    key = sorted(own)[which % len(own)]
    with torch.no_grad():
        stored(play.model, key).add_(0.125)
        own[key].add_(0.125)


def stored(model: nn.Module, key: str) -> Tensor:
    """Return a parameter as it stands in a module itself."""
    prefix, _, leaf = key.rpartition(".")
    found = model.get_submodule(prefix)._parameters[leaf]  # pyright: ignore[reportPrivateUsage]
    assert found is not None, "base parameters exist"
    return found


def switch_before_backward(play: Play, *, weights: Mapping[str, float]) -> None:
    """Expect the gradients of a checkpoint that is repeated after a switch to be those without."""
    known = all(name in play.book.pages for name in weights)
    quiet = not play.blocks and play.book.merged is None
    if not known or not quiet or not play.book.agree(weights) or not play.book.active:
        return
    model = copy.deepcopy(play.model).eval()
    free = {key: p for key, p in model.named_parameters() if p.requires_grad}
    first = model(*play.stage.inputs)
    truth = _gradients(first[0] if isinstance(first, tuple) else first, free)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = checkpoint(model, *play.stage.inputs, use_reentrant=False)
    play.do.switch(model, dict(weights))
    try:
        found = _gradients(y[0] if isinstance(y, tuple) else y, free)  # pyright: ignore[reportIndexIssue]
    except RuntimeError as error:
        raise Violation(f"a checkpoint cannot be repeated after a switch: {error}") from error
    wrong = [key for key, x in truth.items() if not _close(x, found[key])]
    expect(not wrong, f"gradients of a repeated checkpoint are another adapter's: {wrong[:3]}")


def _gradients(y: Tensor, free: Mapping[str, nn.Parameter]) -> dict[str, Tensor | None]:
    for p in free.values():
        p.grad = None
    if y.requires_grad:
        y.square().mean().backward()
    return {key: None if p.grad is None else whole(p.grad).clone() for key, p in free.items()}


def _close(x: Tensor | None, y: Tensor | None) -> bool:
    if x is None or y is None:
        return x is y
    return torch.allclose(x, y, rtol=1e-6, atol=1e-9)
