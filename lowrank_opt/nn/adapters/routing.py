"""Another adapter for each sample: the rows of a layer's input that an adapter is for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_opt.errors import ShapeError
from lowrank_opt.nn.adapters.change import added
from lowrank_opt.nn.adapters.record import Routing
from lowrank_opt.nn.adapters.store import Store
from lowrank_opt.nn.basis.kinds import LayerKind


def routed(
    found: Store,
    kind: LayerKind,
    module: nn.Module,
    layer: nn.Module,
    routing: Routing,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """Return y with the change of each sample's adapter added to its rows."""
    axis, base = _axis(routing, layer, x, y), y
    state = found.record.state
    for name in dict.fromkeys(n for n in routing.names if n is not None):
        part = found.part(name)
        for weight in () if part is None else part.updates:
            change = found.change(module, weight, ((name, 1.0),), state)
            assert part is not None
            assert change is not None, "what is in a part is a change"
            chosen = [i for i, n in enumerate(routing.names) if n == name]
            rows = torch.tensor(chosen, device=x.device)
            own = dropped(x.index_select(axis, rows), part.dropout if module.training else 0.0)
            part_y = added(kind, layer, change, own, base.index_select(axis, rows))
            y = y.index_add(axis, rows, part_y)
    return y


def dropped(x: Tensor, p: float) -> Tensor:
    """Return the input of an update with dropout; indices have none."""
    return F.dropout(x, p) if p and x.is_floating_point() else x


def _axis(routing: Routing, layer: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the axis of the samples, or raise ShapeError if that is not certain."""
    count, axis = len(routing.names), routing.axis or 0
    leading = _leading(layer, x)
    if axis >= len(leading) or leading[axis] != count or y.shape[axis] != count:
        raise ShapeError(
            f"per_sample needs one adapter for each entry of axis {axis}; got {count} names "
            f"for an input of shape {tuple(x.shape)}: pass axis=, or run the model once for each "
            "adapter"
        )
    others = [*leading[:axis], *leading[axis + 1 :]]
    if isinstance(layer, nn.Embedding) and len(leading) == 1:
        # Positions, made inside the model, look like a batch if there are as many.
        others = [size for shape in routing.inputs for size in shape[1:]]
    if routing.axis is None and count > 1 and count in others:
        raise ShapeError(
            f"per_sample must know the axis of the samples; got {count} names for an input of "
            f"shape {tuple(x.shape)}, where two axes have that length: pass axis=0 or axis=1"
        )
    return axis


def _leading(layer: nn.Module, x: Tensor) -> Sequence[int]:
    """Return the sizes of an input without its features."""
    if isinstance(layer, nn.Embedding):
        return tuple(x.shape)
    spatial = next((d for d, kinds in _CONVOLUTIONS.items() if isinstance(layer, kinds)), None)
    return x.shape[:-1] if spatial is None else x.shape[: max(0, x.ndim - spatial - 1)]


_CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
