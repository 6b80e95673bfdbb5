"""An adapted model and its book, on which every operation is played side by side."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank_opt import nn as adapters
from lowrank_opt.errors import LowRankError, OptionError
from lowrank_opt.nn.adapters.weights import dropout_of
from lowrank_opt.nn.basis.cut import cut_as
from lowrank_opt.nn.basis.sharded import whole as in_whole
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.parameterizations.config import describe
from lowrank_opt.testing.cases.adapter_book import Book, Page
from lowrank_opt.testing.laws.adapter_stage import Operations, Stage, can_be_pickled, whole
from lowrank_opt.testing.search.verdict import Violation, expect

Make = Callable[[tuple[int, int]], Parameterization]
Wrap = Callable[[nn.Module], nn.Module] | None


class Play:
    """A model and its book; each step is taken by both, and they must stay equal.

    Parameters
    ----------
    stage : Stage
    make : callable
        From a shape to a parameterization.
    operations : Operations
    tolerance : float
        Of outputs, relative to size and one more.
    """

    def __init__(
        self,
        stage: Stage,
        make: Make,
        operations: Operations | None = None,
        *,
        tolerance: float = 1e-9,
    ) -> None:
        self.stage: Stage = stage
        self.make: Make = make
        self.do: Operations = Operations() if operations is None else operations
        self.model: nn.Module = stage.enter()
        self.book: Book = Book(stage.build().eval())
        self.original: nn.Module = copy.deepcopy(self.book.base)
        self.blocks: list[ExitStack] = []
        self.routed: list[ExitStack] = []
        self.draws: torch.Generator = torch.Generator().manual_seed(0)
        self.tolerance: float = tolerance
        self.steps: list[str] = []
        self.sharded: bool = False

    def step(self, act: str | Callable[..., None], /, **arguments: object) -> None:
        """Take one step, a method's name or a function of the play, and note what was done."""
        name = act if isinstance(act, str) else act.__name__
        self.steps.append(f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})")
        try:
            (getattr(self, act) if isinstance(act, str) else partial(act, self))(**arguments)
            self.check()
        except Violation as error:
            raise Violation(f"{error}; after {'; '.join(self.steps)}") from error

    def adapt(
        self, name: str, *, head: bool, magnitude: bool = False, dropout: float = 0.0
    ) -> None:
        """Add an adapter."""
        allowed = name not in self.book.pages and self.free
        modules = self.stage.heads if head and self.stage.heads else ()
        rate = dropout if self.stage.has_inputs else 0.0

        def act() -> None:
            self.model = self.do.adapt(
                self.model,
                self.make,
                targets=self.stage.targets,
                name=name,
                modules_to_train=modules,
                magnitude=magnitude,
                dropout=rate,
            )

        if self._try(act, allowed):
            self.book.pages[name], self.book.active = Page(dropout=rate), {name: 1.0}
            self._shake()
            self.read(name)

    def switch(self, weights: Mapping[str, float]) -> None:
        """Make adapters active."""
        known = all(name in self.book.pages for name in weights) and bool(self.book.pages)
        allowed = known and self.book.merged is None and self.book.agree(weights)
        if self._try(lambda: self.do.switch(self.model, dict(weights)), allowed):
            self.book.active = dict(weights)

    def combine(self, weights: Mapping[str, float], name: str) -> None:
        """Add the weighted sum of adapters as a new one."""
        known = all(key in self.book.pages for key in weights) and bool(weights)
        free = name not in self.book.pages and self.free
        rescaled = known and any(self.book.pages[key].lengths for key in weights)
        allowed = known and free and not rescaled and self.book.agree(weights)
        if self._try(lambda: self.do.combine(self.model, dict(weights), name=name), allowed):
            page = Page()
            for key, weight in weights.items():
                other = self.book.pages[key].copied()
                for place, update in other.updates.items():
                    page.updates[place] = page.updates.get(place, 0) + weight * update
                page.heads |= other.heads
                page.buffers |= other.buffers
            self.book.pages[name], self.book.active = page, {name: 1.0}

    def remove(self, name: str) -> None:
        """Remove an adapter."""
        allowed = name in self.book.pages and self.free
        if self._try(lambda: self.do.remove(self.model, name), allowed):
            del self.book.pages[name]
            self.book.active.pop(name, None)
            if not self.book.pages:
                self.leave_all()

    def merge(self) -> None:
        """Sum the active adapters into the weights."""
        allowed = bool(self.book.pages) and self.quiet
        if self._try(lambda: self.do.merge(self.model), allowed):
            self.book.merged = dict(self.book.active)

    def unmerge(self) -> None:
        """Take the sums away again."""
        if self._try(lambda: self.do.unmerge(self.model), self.book.merged is not None):
            self.book.merged = None

    def enter(self) -> None:
        """Open a block in which the base model computes."""
        stack = ExitStack()
        if self._try(
            lambda: stack.enter_context(self.do.disabled(self.model)), bool(self.book.pages)
        ):
            self.blocks.append(stack)
            self.book.disabled += 1

    def route(self, names: Sequence[str | None]) -> None:
        """Open a block in which each sample has an adapter of its own, if that is possible."""
        count, stack = self.stage.inputs[0].shape[0], ExitStack()
        chosen = ([*names] * count)[:count]
        try:
            stack.enter_context(self.do.per_sample(self.model, chosen, axis=0))
        except LowRankError:
            return
        self.blocks.append(stack)
        self.book.routings.append(chosen)
        self.routed.append(stack)

    @property
    def quiet(self) -> bool:
        """Whether nothing is merged, and no sample has an adapter of its own."""
        return self.book.merged is None and not self.book.routings

    @property
    def free(self) -> bool:
        """Whether adapters may come and go."""
        return self.quiet and not self.sharded

    def leave(self) -> None:
        """Close the innermost block."""
        if self.blocks:
            block = self.blocks.pop()
            block.close()
            if block in self.routed:
                self.routed.remove(block)
                self.book.routings.pop()
            else:
                self.book.disabled -= 1

    def leave_all(self) -> None:
        """Close every block."""
        while self.blocks:
            self.leave()

    def freeze(self) -> None:
        """Freeze everything, as for evaluation."""
        self.model.requires_grad_(False)

    def train(self) -> None:
        """Take a step of an optimizer on all that is not frozen, in training mode."""
        if not self.book.pages or self.book.routings:
            return
        free = [p for p in self.model.parameters() if p.requires_grad]
        self.book.move_buffers(self.stage.inputs)
        y = self._call(self.model.train())
        if free and y.requires_grad:
            optimizer = torch.optim.SGD(free, lr=0.05, weight_decay=0.1)
            y.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        for name in self.book.active:
            self.read(name, buffers=False)
        self.model.eval()

    def copy(self, how: str) -> None:
        """Go on with a copy, and spoil the original."""
        original = self.model
        self.leave_all()
        pickled = how == "pickle" and not self.stage.cut and can_be_pickled(self.book.base)
        self.model = pickle.loads(pickle.dumps(original)) if pickled else copy.deepcopy(original)
        with torch.no_grad():
            for p in original.parameters():
                p.zero_()

    def convert(self, dtype: torch.dtype = torch.float32) -> None:
        """Convert all numbers to a dtype and back."""
        before = next(self.model.parameters()).dtype
        self.model = self.model.to(dtype).to(before)
        self.book = self.book.converted(dtype).converted(before)
        self.original = self.original.to(dtype).to(before)
        self.tolerance = max(self.tolerance, 64 * torch.finfo(dtype).eps)

    def reload(self, name: str, new: str, *, fresh: bool, wrap: Wrap = None) -> None:
        """Save an adapter, and load it under a name: into a plain model, or into this one."""
        wrapped = (lambda model: model) if wrap is None else wrap
        if self.described(name) is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adapter"
            known = name in self.book.pages
            if not self._try(lambda: self.do.save(wrapped(self.model), path, name=name), known):
                return
            page = self.written(name)
            if fresh:
                self.leave_all()
                self.begin_anew(lambda model: self.do.load(wrapped(model), path, name=new))
                self.book.pages, self.book.active = {new: page}, {new: 1.0}
                return
            known = new in self.book.pages
            same = not known or self._alike(name, new, page)
            allowed = same and self.free
            if self._try(lambda: self.do.load(wrapped(self.model), path, name=new), allowed):
                self.book.pages[new] = page
                self.book.active = self.book.active if known else {new: 1.0}

    def begin_anew(self, load: Callable[[nn.Module], object]) -> None:
        """Go on with the original base model, into which something is loaded."""
        model = self.stage.build()
        model.load_state_dict(self.original.state_dict())
        model = model if self.stage.cut is None else self.stage.cut(model)
        load(model)
        self.model, self.book = model.eval(), Book(copy.deepcopy(self.original))
        self.sharded = False

    def written(self, name: str) -> Page:
        """Return what must be in a folder: a page, and what was trained of the base model."""
        page = self.book.pages[name].copied()
        before = dict(self.original.named_parameters(remove_duplicate=False))
        for key, p in self.book.base.named_parameters(remove_duplicate=False):
            if key not in page.heads and not torch.equal(p, before[key]):
                page.heads[key] = p.detach().clone()
        return page

    def state(self, *, assign: bool = False) -> None:
        """Write the state dict into a copy whose numbers are all others, or assign it there."""
        other = copy.deepcopy(self.model)
        with torch.no_grad():
            for p in (*other.parameters(), *other.buffers()):
                p.zero_()
        self.leave_all()
        if self.book.merged is not None:
            return
        other.load_state_dict(self.model.state_dict(), assign=assign)
        self.model = other

    def check(self) -> None:
        """Expect the model to be equal to its book, with gradients and without."""
        truth = self.book.output(self.stage.inputs)
        with torch.no_grad():
            plain = self._call(self.model.eval())
        found = torch.stack((plain, self._call(self.model).detach()))
        error = float((found - truth).abs().max())
        size = 1 + float(truth.abs().max())
        expect(
            error <= self.tolerance * size,
            f"the model is off by {error:.2e} from F(x; W0 + dW, heads, buffers) with "
            f"active={self.book.active}, merged={self.book.merged}, disabled={self.book.disabled}",
        )
        own = self.model.state_dict()
        moved = [
            key
            for key, x in self.book.base.state_dict().items()
            if key not in own or not torch.equal(x, whole(own[key]))
        ]
        expect(not moved, f"the base model's own {moved[:3]} have changed")
        rates = {name: dropout_of(self.model, name) for name in self.book.pages}
        kept = {name: page.dropout for name, page in self.book.pages.items()}
        expect(rates == kept, f"dropout must be {kept}; got {rates}")
        idle = {f".{name}." for name in self.book.pages if name not in self.book.active}
        free = [n for n, p in self.model.named_parameters() if p.requires_grad]
        awake = [n for n in free if any(part in n for part in idle)]
        expect(not awake, f"parameters of adapters that are not active are trained: {awake[:3]}")

    def check_samples(self, names: list[str | None]) -> None:
        """Expect each sample to be computed by its own adapter, if that is possible."""
        count = self.stage.inputs[0].shape[0]
        chosen = (names * count)[:count]
        try:
            with self.do.per_sample(self.model, chosen, axis=0), torch.no_grad():
                found = self._call(self.model.eval())
        except LowRankError:
            return
        if self.book.disabled:
            chosen = [None] * count
        truth = self.book.of_each(chosen, self.stage.inputs)
        error = float((found - truth).abs().max())
        expect(
            error <= self.tolerance * (1 + float(truth.abs().max())),
            f"per_sample with {chosen} is off by {error:.2e}",
        )

    @torch.no_grad()
    def read(self, name: str, *, buffers: bool = True) -> None:
        """Write the present numbers of an adapter, which has just been made or trained, down."""
        page = self.book.pages[name]
        with in_whole(self.model):
            for found in adapters.adapted_weights(self.model, {name}):
                before = found.totals_before_rescaling()
                dense = torch.stack([update().to_dense() for update in before])
                page.updates[found.name] = dense.reshape(found.slot.parameter.shape).clone()
                if found.magnitude is not None:
                    axis = 2 if found.magnitude.side == "rows" else 1
                    page.lengths[found.name] = found.magnitude.lengths.unsqueeze(axis).clone()
            for key, x in self._own(name).items():
                if buffers or isinstance(x, nn.Parameter):
                    kept = page.heads if isinstance(x, nn.Parameter) else page.buffers
                    kept[key] = x.detach().clone()

    def _own(self, name: str) -> dict[str, Tensor]:
        """Return the tensors that the model reads with that adapter alone, where they differ."""
        base = dict(self.model.named_parameters(remove_duplicate=False))
        found: dict[str, Tensor] = {}
        for key in [*base, *dict(self.book.base.named_buffers())]:
            if "lowrank_adapters" in key:
                continue
            prefix, _, leaf = key.rpartition(".")
            store = getattr(self.model.get_submodule(prefix), "lowrank_adapters", None)
            part = None if store is None else store.part(name)
            own = None if part is None else part.own.get(leaf)
            if own is not None:
                found[key] = own
        return found

    def _try(self, act: Callable[[], object], allowed: bool) -> bool:
        """Return whether an operation was done; refused, it must have changed nothing."""
        before = self._call(self.model.eval()).detach().clone()
        try:
            act()
        except LowRankError as error:
            expect(
                not allowed, f"an operation must be possible here: {type(error).__name__}: {error}"
            )
            same = torch.equal(before, self._call(self.model.eval()).detach())
            expect(same, f"an operation that was refused has changed the model: {error}")
            return False
        expect(allowed, "an operation must be refused here, and was done")
        return True

    def _alike(self, name: str, other: str, mine: Page) -> bool:
        theirs = self.book.pages[other]
        keys = mine.heads.keys() == theirs.heads.keys()
        keys = keys and mine.lengths.keys() == theirs.lengths.keys()
        return keys and self.described(name) == self.described(other)

    def described(self, name: str) -> dict[str, list[object]] | None:
        """Return the methods of an adapter, or None if they cannot be written down."""
        try:
            return {
                found.name: [describe(update) for update in found.updates]
                for found in adapters.adapted_weights(self.model, {name})
            }
        except OptionError:
            return None

    @torch.no_grad()
    def _shake(self) -> None:
        for p in (p for p in self.model.parameters() if p.requires_grad):
            drawn = 0.4 * torch.randn(p.shape, generator=self.draws)
            p.copy_(drawn.to(p) if whole(p) is p else cut_as(drawn.to(p.dtype), p))

    def _call(self, model: nn.Module) -> Tensor:
        y = model(*self.stage.inputs)
        return whole(y[0] if isinstance(y, tuple) else y)
