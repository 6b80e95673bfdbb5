"""Flat-LoRA: train the low-rank update under random perturbations of the full weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import final

import torch
from torch import Tensor, nn

from lowrank_opt.errors import LowRankError
from lowrank_opt.nn.adapters.adapted import read_by_forward
from lowrank_opt.training.perturbation.row_scale import filter_scale
from lowrank_opt.training.perturbation.seeded_noise import SeededNoise, mix_seed, regenerated
from lowrank_opt.training.perturbation.targets import NamedOperators, PerturbedWeight, find_targets


def cosine_increase(progress: float) -> float:
    r"""Return :math:`(1 - \cos \pi x)/2`: no noise at the start, all of it at the end.

    Examples
    --------
    >>> [cosine_increase(x) for x in (0.0, 0.5, 1.0)]
    [0.0, 0.5, 1.0]
    """
    return 0.5 * (1 - math.cos(math.pi * min(max(progress, 0.0), 1.0)))


@final
class FlatPerturbation:
    r"""Minimise the expected loss :math:`E_\epsilon L(W + B A + \epsilon)` by one draw a step.

    :math:`\epsilon_{ij} \sim N(0, f_t^2 \sigma^2 |W'_i|^2 / n)`, one scale for each filter
    (row) of the *merged* weight :math:`W' = W + BA`. Any adapter without magnitudes, any
    optimizer: inside of `perturbed` a forward pass uses :math:`W + \epsilon`; the weights
    themselves are never written, so nothing drifts in half precision. Noise is stored as a seed
    and drawn again in backward: no copy of a weight is kept, and gradients are those at the
    perturbed point.

    For losses quadratic in W (completion with squared errors, linear regression) this is a no-op
    in expectation: the expected gradient is the gradient without noise. With
    ``detach_scale=False`` it is there ridge regression on the merged rows instead.

    Parameters
    ----------
    model : nn.Module
    sigma : float
        Strength; 0.05 to 0.15 in the paper, up to 0.5 on small networks.
    total_steps : int
        T of the schedule, in optimizer steps.
    targets : str, optional
        Regular expression; parameters whose full name it matches are perturbed. By default exactly
        the adapted weights, as in the paper: those with an active adapter or an update of their
        shape beside them. In a model without either, every ``weight`` of two or more axes.
    updates : mapping of str to callable, optional
        By parameter name: returns the `LowRankOperator` that an adapter adds to that weight. Where
        a weight has exactly one parameterization of its shape beside or below it, that one is
        taken by itself.
    axes : mapping of str to int, optional
        By parameter name: the axis that counts filters, where it is not the usual one. Transposed
        convolutions and the ``Conv1D`` of GPT-2 are known.
    schedule : callable
        f, of the progress in [0, 1].
    detach_scale : bool
        Whether the scale of the noise is a constant to autograd.
    seed : int

    Notes
    -----
    A weight has to be read in the forward of the module that owns it. With activation
    checkpointing, call backward inside of `perturbed`. Under autocast, backward keeps the
    low-precision copy that autocast makes.

    References
    ----------
    Li et al., Flat-LoRA (arXiv 2409.14396), eqs. (6) and (7).

    Examples
    --------
    >>> model = nn.Linear(3, 2)
    >>> flat = FlatPerturbation(model, sigma=0.1, total_steps=10, seed=0)
    >>> for _ in range(2):
    ...     with flat.perturbed():
    ...         model(torch.ones(1, 3)).sum().backward()
    >>> flat.step
    2
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sigma: float = 0.05,
        total_steps: int,
        targets: str | None = None,
        updates: NamedOperators | None = None,
        axes: Mapping[str, int] | None = None,
        schedule: Callable[[float], float] = cosine_increase,
        detach_scale: bool = True,
        seed: int = 0,
    ) -> None:
        if not (math.isfinite(sigma) and sigma >= 0 and total_steps >= 1):
            raise ValueError(
                f"sigma must be >= 0 and finite and total_steps >= 1; got sigma={sigma!r}, "
                f"total_steps={total_steps!r}"
            )
        self.sigma: float
        self.total_steps: int
        self.schedule: Callable[[float], float]
        self.sigma, self.total_steps, self.schedule = sigma, total_steps, schedule
        self.detach_scale: bool
        self.seed: int
        self.detach_scale, self.seed, self.step = detach_scale, seed, 0
        self._targets = find_targets(model, targets, dict(updates or {}), dict(axes or {}))

    @property
    def names(self) -> list[str]:
        """Names of the perturbed parameters."""
        return [target.name for target in self._targets]

    @contextmanager
    def perturbed(self) -> Generator[None]:
        """Perturb forward passes of this optimizer step; all micro-batches see the same draw.

        Leaving the block ends the step. Without noise (sigma or f 0) the model is not touched.
        """
        strength = self.sigma * self.schedule(self.step / self.total_steps)
        with self._installed(strength, self.seed, self.step):
            yield
        self.step: int
        self.step += 1

    def sharpness(
        self, loss: Callable[[], Tensor], *, sigma: float | None = None, draws: int = 8
    ) -> float:
        """Return the mean increase of a loss under noise of full strength; changes nothing.

        Parameters
        ----------
        loss : callable
            Evaluates the model, in a deterministic mode, and returns a scalar.
        sigma : float, optional
            Instead of the training strength.
        draws : int
            The same ones at every call.
        """
        strength = self.sigma if sigma is None else sigma
        with torch.no_grad():
            plain = float(loss())
            noisy = [self._noisy(loss, strength, k) for k in range(draws)]
        return sum(noisy) / draws - plain

    def _noisy(self, loss: Callable[[], Tensor], strength: float, draw: int) -> float:
        with self._installed(strength, self.seed, f"sharpness {draw}"):
            return float(loss())

    @contextmanager
    def _installed(self, strength: float, seed: int, step: object) -> Generator[None]:
        if strength == 0.0:
            yield
            return
        with ExitStack() as stack:
            for target in self._targets:
                target.reads = 0
                noise = self._noise(target, strength, mix_seed(seed, step, target.name))
                for module, name in target.owners:
                    stack.enter_context(_wrapped(module, name, target, noise))
            yield
        if not any(target.reads for target in self._targets):
            raise LowRankError(
                f"a perturbed weight must be read by the forward of its own module; none of "
                f"{self.names} was: run the model inside of the block, or choose other targets"
            )

    def _noise(self, target: PerturbedWeight, strength: float, seed: int) -> SeededNoise:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_scale):
            updates = [] if target.updates is None else target.updates()
            module = target.owners[0][0]
            std = strength * filter_scale(module, target.weight, updates, axis=target.axis)
        return SeededNoise(std, seed)


@contextmanager
def _wrapped(
    module: nn.Module, name: str, target: PerturbedWeight, noise: SeededNoise
) -> Generator[None]:
    """Let `module.forward` see the perturbed weight, for this block."""
    inner = module.forward
    own = "forward" in vars(module)

    def forward(*args: object, **kwargs: object) -> object:
        target.reads += 1
        # What stands there now: functional_call may have put another tensor in.
        weight = read_by_forward(module, name)
        assert isinstance(weight, Tensor), "a weight is a tensor"
        perturbed = noise.perturb(weight)
        with _replaced(module, name, perturbed), regenerated(perturbed, weight, noise):
            return inner(*args, **kwargs)

    module.forward = forward
    try:
        yield
    finally:
        if own:
            module.forward = inner
        else:
            del module.forward


@contextmanager
def _replaced(module: nn.Module, name: str, value: Tensor) -> Generator[None]:
    """Let the attribute `name` be `value` instead of the parameter, for this block."""
    # An instance attribute hides the parameter and leaves the order of the parameters alone.
    vars(module)[name] = value
    try:
        yield
    finally:
        del vars(module)[name]
