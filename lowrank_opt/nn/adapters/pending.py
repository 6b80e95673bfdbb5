r"""A weight that is summed when somebody computes with it, not when its dtype is asked for.

Models of transformers ask for ``layer.weight.dtype`` and then call the layer, which needs no
:math:`W_0 + \Delta W`: T5 does so three times in each block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from lowrank_opt.nn.adapters.reading import ALLOWED, EffectiveWeight

_T = TypeVar("_T")
_SUM = "lowrank_sum"
_TRAINED = Tensor.requires_grad.__get__  # pyright: ignore[reportAttributeAccessIssue]


class PendingWeight(EffectiveWeight):
    """An effective weight that knows its facts, and is the sum as soon as anything else is asked.

    It is made when the weight is read, of the adapters that count then; numbers that are written
    before it is used are seen, as in a parameter.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func in ALLOWED and args and isinstance(args[0], PendingWeight):
            if func == _TRAINED:
                # As trainable weights have it, whether something in the sum is trained or not.
                return True
            with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
                return func(*args, **(kwargs or {}))
        given = {key: _summed(x) for key, x in (kwargs or {}).items()}
        return func(*(_summed(x) for x in args), **given)

    def __deepcopy__(self, memo: dict[int, object]) -> nn.Parameter:
        return copy.deepcopy(_sum_of(self), memo)  # pyright: ignore[reportReturnType]

    def __reduce_ex__(self, protocol: object) -> object:
        return _sum_of(self).__reduce_ex__(protocol)  # pyright: ignore[reportArgumentType]


def pending(base: Tensor, form: Callable[[], Tensor]) -> Tensor:
    """Return a weight with the facts of its base, which is formed once it is needed.

    Parameters
    ----------
    base : Tensor
        Of torch's own class.
    form : function without arguments
        Returns the weight.
    """
    if torch.compiler.is_compiling():
        # After a break of the graph, for a recurrent layer say, this is compiled on its own.
        return form()
    made = base.detach().as_subclass(PendingWeight)
    vars(made)["lowrank_base"], vars(made)[_SUM] = base, form
    return made


def _sum_of(x: PendingWeight) -> Tensor:
    known: Tensor | Callable[[], Tensor] = vars(x)[_SUM]
    if not isinstance(known, Tensor):
        known = vars(x)[_SUM] = known()
    return known


def _summed(x: _T) -> _T:
    """Return an argument of a function of torch with sums in the place of pending weights."""
    if isinstance(x, PendingWeight):
        return cast("_T", _sum_of(x))
    if type(x) in (list, tuple):
        return cast("_T", type(x)(_summed(y) for y in x))  # pyright: ignore
    return x
