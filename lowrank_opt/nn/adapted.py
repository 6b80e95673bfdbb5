r"""One wrapper for every layer and every parameterization: ``F(x; W_0 + dW)``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowrank_opt.errors import ShapeError
from lowrank_opt.nn.errors import AdapterStateError
from lowrank_opt.nn.sites import LayerKind, kind_of
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization


class Adapter(nn.Module):
    """The parameterizations that one named adapter has for one layer.

    Parameters
    ----------
    parts : mapping from weight names to sequences of Parameterization
        One parameterization for each matrix of the weight.
    """

    def __init__(self, parts: Mapping[str, Sequence[Parameterization]]) -> None:
        super().__init__()
        self.names = tuple(parts)
        self.parts = nn.ModuleList(nn.ModuleList(members) for members in parts.values())

    def items(self) -> Iterator[tuple[str, list[Parameterization]]]:
        """Yield each weight's name and its parameterizations."""
        for name, members in zip(self.names, self.parts, strict=True):
            yield name, list(members)  # pyright: ignore[reportArgumentType]

    def extended(self, parts: Mapping[str, Sequence[Parameterization]]) -> Adapter:
        """Return an adapter with more weights; the present ones are shared."""
        return Adapter({**dict(self.items()), **parts})


class AdaptedModule(nn.Module):
    r"""A layer with frozen weights :math:`W_0` and named low-rank updates :math:`\Delta W`.

    Linear layers, embeddings and convolutions compute ``base(x)`` plus the update from its
    factors. Attention, recurrent layers and bare parameters need the dense weight inside their
    kernels: for them, :math:`W_0 + \Delta W` is formed at each call (`effective_weight`, the one
    place that does). The base module and its parameters are never written to.

    Reading an adapted weight as an attribute, as ``nn.TransformerEncoderLayer`` does on its fast
    path, gives the effective weight as well; other attributes are those of the base module.

    Parameters
    ----------
    base : nn.Module
        The layer; kept as it is, at ``.base``.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> layer = AdaptedModule(nn.Linear(4, 6))
    >>> layer.add("default", {"weight": [NBLoRA((6, 4), rank=2, radius=1.0)]})
    >>> x = torch.randn(3, 4)
    >>> torch.equal(layer(x), layer.base(x))
    True
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.kind: LayerKind = kind_of(base)
        self.adapters = nn.ModuleDict()
        self.names: tuple[str, ...] = ()
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.routing: tuple[str | None, ...] | None = None
        self.merged: tuple[str, ...] = ()
        self.train(base.training)

    def add(self, name: str, parts: Mapping[str, Sequence[Parameterization]]) -> None:
        """Add parameterizations to the adapter of that name and make it the active one."""
        adapter = (self.adapter(name) or Adapter({})).extended(parts)
        adapter.train(self.training)
        self.adapters[_key(name)] = adapter
        self.names = tuple(dict.fromkeys((*self.names, name)))
        self.active = (name,)

    def adapter(self, name: str) -> Adapter | None:
        """Return the adapter of that name, or None if this layer has none."""
        if name not in self.names:
            return None
        found = self.adapters[_key(name)]
        assert isinstance(found, Adapter)
        return found

    def updates(self, names: Iterable[str] | None = None) -> dict[str, list[LowRankOperator]]:
        """Return, for each adapted weight, the sum of the updates of some adapters.

        Parameters
        ----------
        names : iterable of str, optional
            Of adapters; the active ones by default, none while disabled or merged.
        """
        if names is None:
            names = self.active if self.enabled and not self.merged else ()
        total: dict[str, list[LowRankOperator]] = {}
        for adapter in (self.adapter(name) for name in names):
            for weight, members in adapter.items() if adapter is not None else ():
                ops = [member() for member in members]
                if weight in total:
                    ops = [a + b for a, b in zip(total[weight], ops, strict=True)]
                total[weight] = ops
        return total

    def effective_weight(self, name: str) -> Tensor:
        r"""Return the dense :math:`W_0 + \Delta W` of one weight; without updates W_0 itself."""
        ops = self.updates().get(name)
        weight = self.base.get_parameter(name)
        return weight if ops is None else add_dense(weight, ops)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return ``F(x; W_0 + dW)``, with the arguments of the base module."""
        if self.routing is not None and self.enabled and not self.merged:
            return self._routed(self.routing, *args, **kwargs)
        updates = self.updates()
        if not updates:
            return self.base(*args, **kwargs)
        if self.kind.update is None:
            return self._with_dense_weights(updates, args, kwargs)
        return self._with_update(updates, args, kwargs)

    def _with_dense_weights(
        self,
        updates: dict[str, list[LowRankOperator]],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        weights = {k: add_dense(self.base.get_parameter(k), ops) for k, ops in updates.items()}
        return functional_call(self.base, weights, args, kwargs)

    def _with_update(
        self,
        updates: dict[str, list[LowRankOperator]],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> Tensor:
        y = self.base(*args, **kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        assert self.kind.update is not None
        assert isinstance(x, Tensor)
        ((op,),) = updates.values()
        return y + self.kind.update(self.base, op, x, y).to(y.dtype)

    def _routed(self, routing: tuple[str | None, ...], *args: object, **kwargs: object) -> Tensor:
        y = self.base(*args, **kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        assert self.kind.update is not None
        assert isinstance(x, Tensor)
        if x.shape[0] != len(routing) or y.shape[0] != len(routing):
            raise ShapeError(
                f"per_sample needs one adapter for each entry of axis 0; got {len(routing)} names "
                f"for an input of shape {tuple(x.shape)}"
            )
        for name in dict.fromkeys(n for n in routing if n is not None):
            for (op,) in self.updates([name]).values():
                rows = torch.tensor([i for i, n in enumerate(routing) if n == name])
                rows = rows.to(x.device)
                part = self.kind.update(self.base, op, x[rows], y[rows])
                y = y.index_add(0, rows, part.to(y.dtype))
        return y

    def exchange(self, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Put other parameters in the base module's places and return those that were there."""
        previous = {name: self.base.get_parameter(name) for name in weights}
        for name, weight in weights.items():
            setattr(self.base, name, weight)
        return previous

    def keep(self, originals: Mapping[str, nn.Parameter], merged: tuple[str, ...]) -> None:
        """Hold the base weights while merged ones stand in their places."""
        for name, weight in originals.items():
            self.register_parameter(f"original_{name}", weight)
        self.merged = merged

    def originals(self) -> dict[str, nn.Parameter]:
        """Return the base weights that are held while the module is merged."""
        own = self._parameters.items()
        return {k.removeprefix("original_"): p for k, p in own if p is not None}

    def release(self) -> None:
        """Forget the held base weights: they are back in their places."""
        for name in list(self._parameters):
            delattr(self, name)
        self.merged = ()

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None or name.startswith("__"):
                raise
        if self._adapts(name):
            return self.effective_weight(name)
        return getattr(base, name)

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        if isinstance(value, Tensor) and self._adapts(name):
            raise AdapterStateError(
                f"an adapted weight cannot be replaced; got a new {name!r}: assign it to "
                f".base.{name}, or before adapting (tie weights before, too)"
            )
        super().__setattr__(name, value)

    def _adapts(self, weight: str) -> bool:
        adapters = self.__dict__.get("_modules", {}).get("adapters", nn.ModuleDict())
        return any(weight in a.names for a in adapters.values() if isinstance(a, Adapter))

    def extra_repr(self) -> str:
        """Return the state in one line."""
        merged = f", merged={list(self.merged)}" if self.merged else ""
        return f"active={list(self.active)}{merged}{'' if self.enabled else ', disabled'}"


def _key(name: str) -> str:
    """Return a key for a ModuleDict, which takes no names of its own attributes ("half")."""
    return f"{name}_" if hasattr(nn.ModuleDict(), name) else name


def add_dense(weight: Tensor, ops: Sequence[LowRankOperator]) -> Tensor:
    r"""Return the dense :math:`W_0 + \Delta W`, rounded once to the dtype of `weight`."""
    dense = [op.to_dense() for op in ops]
    update = dense[0] if len(dense) == 1 else torch.stack(dense)
    total = (weight + update.reshape(weight.shape)).to(weight.dtype)
    # torch's matmul folds its input by this flag of the weight, with grad or without: as trainable
    # weights have it, the zero start gives what they gave, to the last bit.
    return total if total.requires_grad else total.requires_grad_()


def check_not_merged(modules: Iterable[AdaptedModule], action: str) -> None:
    """Raise AdapterStateError if one of the modules is merged."""
    merged = next((m.merged for m in modules if m.merged), None)
    if merged is not None:
        raise AdapterStateError(
            f"{action} needs a model that is not merged; it holds {list(merged)} merged: "
            "call unmerge(model) first"
        )
