"""Whether a map stays on the device of its parameters, found out without a second device."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from lowrank_opt.errors import ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.search.verdict import expect

_TWO_DEVICES = ("at least two devices", "two different devices")


def expect_device_independent(module: Parameterization) -> None:
    """Expect that W is where the parameters are, with all parameters and buffers on a GPU.

    No GPU is needed: the tensors have shapes, dtypes and a device, and no values. A map that
    branches on values, or copies to a device, cannot be followed like that and is not judged.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    try:
        devices = _devices(module, state)
    except Exception as error:
        # Tensors on two devices raise another type in older versions of torch.
        judged = isinstance(error, ShapeError) or any(words in str(error) for words in _TWO_DEVICES)
        expect(not judged, f"with all parameters and buffers on a GPU, factors() fails: {error}")
    else:
        there = all(kind == "cuda" for kind in devices)
        expect(there, f"with all parameters and buffers on a GPU, factors() are on {devices}")


def _devices(module: Parameterization, state: dict[str, torch.Tensor]) -> list[str]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = {
            name: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
            for name, x in state.items()
        }
        op: LowRankOperator = functional_call(module, fake, ())
        return [x.device.type for x in op]
