"""Lines that change their process: collectives of torch.distributed, counted in bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True, eq=False)
class Processes:
    """A group of processes, and what this one has sent to the others of it.

    Parameters
    ----------
    group : ProcessGroup, optional
        By default the one of all processes.
    sent : Counter
        Bytes by kind of collective, counted as a ring would send them: a sum of b bytes over P
        processes sends 2 b (P - 1) / P, a gather b (P - 1) for b bytes of one's own, an exchange
        what goes elsewhere.

    Examples
    --------
    Of one process, as without torchrun:

    >>> store = dist.HashStore()
    >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> Processes().total(torch.ones(2)).tolist()
    [1.0, 1.0]
    >>> dist.destroy_process_group()
    """

    group: dist.ProcessGroup | None = None
    sent: Counter[str] = field(default_factory=Counter[str])

    @property
    def rank(self) -> int:
        """Where this process is among those of the group."""
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return dist.get_world_size(self.group)

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Types of the devices whose tensors the group sends: not the CPU's, for NCCL alone."""
        # Such as "cpu:gloo,cuda:nccl".
        pairs = dist.get_backend_config(self.group).split(",")
        return tuple(pair.partition(":")[0] for pair in pairs)

    def sendable(self, x: Tensor) -> Tensor:
        """Return a tensor where the group sends it: on another device if it has to be."""
        x = x.detach()
        if x.device.type in self.devices:
            return x.contiguous()
        return x.to(torch.device(self.devices[0])).contiguous()

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over the processes; its gradient is that of each one's own part."""
        return _Total.apply(x, self)

    def shared(self, x: Tensor) -> Tensor:
        """Return a tensor that all have, such that its gradient is the sum of theirs."""
        return _Shared.apply(x, self)

    def largest(self, x: Tensor) -> Tensor:
        """Return the elementwise maximum."""
        return self._reduced(x, dist.ReduceOp.MAX)

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum, without a gradient."""
        return self._reduced(x, dist.ReduceOp.SUM)

    def gather(self, x: Tensor, sizes: list[int]) -> Tensor:
        """Return the lines of all processes, one after another.

        Parameters
        ----------
        x : Tensor, shape (sizes[rank], ...)
        sizes : list of int
        """
        padded = self.sendable(x.new_zeros(max(sizes), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        self.sent["gather"] += padded.numel() * padded.element_size() * (self.size - 1)
        pairs = zip(parts, sizes, strict=True)
        return torch.cat([part[:size] for part, size in pairs]).to(x.device)

    def counts(self, count: int, like: Tensor) -> list[int]:
        """Return a number of each process."""
        mine = torch.tensor([count], dtype=torch.int64).to(like.device)
        return self.gather(mine, [1] * self.size).tolist()

    def exchange(self, x: Tensor, sizes: list[int]) -> tuple[Tensor, list[int]]:
        """Send each process its lines; return those that came, by sender, and how many of each.

        Parameters
        ----------
        x : Tensor, shape (k, ...)
            Sorted by receiver.
        sizes : list of int
            Lines for each one.
        """
        asked = self.sendable(torch.tensor(sizes, dtype=torch.int64))
        offered = torch.empty_like(asked)
        dist.all_to_all_single(offered, asked, group=self.group)
        come, y = offered.tolist(), self.sendable(x)
        out = y.new_empty(sum(come), *x.shape[1:])
        dist.all_to_all_single(out, y, come, sizes, group=self.group)
        line = x[0].numel() * x.element_size() if len(x) > 0 else 0
        self.sent["exchange"] += line * (len(x) - sizes[self.rank])
        return out.to(x.device), come

    def from_first(self, x: Tensor) -> Tensor:
        """Return the tensor of the first process."""
        y = self.sendable(x).clone()
        dist.broadcast(y, dist.get_global_rank(self.group, 0) if self.group else 0, self.group)
        self.sent["broadcast"] += y.numel() * y.element_size() if self.rank == 0 else 0
        return y.to(x.device)

    def _reduced(self, x: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        y = self.sendable(x).clone()
        dist.all_reduce(y, how, self.group)
        self.sent["sum"] += round(2 * y.numel() * y.element_size() * (self.size - 1) / self.size)
        return y.to(x.device)


class _Total(Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, processes: Processes) -> Tensor:
        _ = ctx
        return processes.summed(x)

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        _ = ctx
        return grad_outputs[0], None


class _Shared(Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes  # pyright: ignore[reportAttributeAccessIssue]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        processes: Processes = ctx.processes  # pyright: ignore[reportAttributeAccessIssue]
        return processes.summed(grad_outputs[0]), None
