"""A wider transformer on turned digits: runs, their intruder dimensions and what changes do."""

import copy
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import lowrank_opt as lo
from experiments.training_methods import adamw
from experiments.training_vit import (
    Split,
    batches,
    digits,
    loss_and_accuracy,
    trained_upright,
    turned,
)
from lowrank_opt.merging import (
    ModelSpectralReport,
    SingularBasis,
    SpectralReport,
    SpectralWarning,
    add_updates,
    model_updates,
    rescale_intruders,
    shrunk_to_norm_of,
    spectral_report,
)
from lowrank_opt.nn import adapt
from lowrank_opt.operator import LowRankOperator

WIDTH, STEPS = 64, 150
FACTORS = (0.7, 0.3, 0.0)


class WideViT(nn.Module):
    """The transformer of `training_vit` in width 64: wide enough for its vectors to differ."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, kernel_size=2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(16, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (batch, 10)."""
        tokens = self.patches(images).flatten(2).mT + self.position
        return self.head(self.blocks(tokens).mean(dim=1))


@cache
def pretrained() -> WideViT:
    """Return the network after 400 steps on all upright digits."""
    return trained_upright(WideViT)


@cache
def bases() -> dict[str, SingularBasis]:
    """Return the bases of the eight matrices with at least 64 rows and columns."""
    return {
        name: SingularBasis.of(weight)
        for name, weight in pretrained().named_parameters()
        if weight.ndim == 2 and min(weight.shape) >= WIDTH
    }


@dataclass(frozen=True)
class Setting:
    """One configuration of the sweep; radius 0 stands for no bound."""

    method: str
    rank: int
    radius: float
    lr: float

    @property
    def name(self) -> str:
        """Return what the table calls it."""
        if self.method == "all weights":
            return self.method
        bound = f", radius {self.radius:g}" if self.radius else ""
        return f"{self.method}, rank {self.rank}{bound}"

    def make(self, shape: tuple[int, int], generator: torch.Generator) -> lo.Parameterization:
        """Return the update of one matrix."""
        rank = min(self.rank, *shape)
        if self.method == "NBLoRA":
            return lo.NBLoRA(shape, rank, radius=self.radius, generator=generator)
        if self.method == "DeLoRA":
            return lo.DeLoRA(shape, rank, radius=self.radius, generator=generator)
        return lo.Factored(shape, rank, generator=generator)


SETTINGS = (
    *(Setting("LoRA", 1, 0, lr) for lr in (1e-2, 3e-2, 1e-1)),
    *(Setting("LoRA", 4, 0, lr) for lr in (3e-3, 1e-2, 3e-2, 1e-1)),
    *(Setting("LoRA", 16, 0, lr) for lr in (3e-3, 1e-2, 3e-2)),
    *(Setting("NBLoRA", 4, radius, lr) for radius in (0.25, 0.5, 1, 2) for lr in (1e-2, 3e-2)),
    *(Setting("DeLoRA", 4, radius, lr) for radius in (1, 2, 4, 8) for lr in (1e-2, 3e-2)),
    *(Setting("all weights", 0, 0, lr) for lr in (1e-3, 3e-3, 1e-2)),
)


@dataclass(frozen=True)
class Change:
    """What became of a run after its update was changed; losses are mean cross entropies."""

    kind: str
    factor: float
    upright_loss: float
    turned_loss: float
    turned_accuracy: float
    frobenius: float


@dataclass(frozen=True)
class Outcome:
    """One training run: the new task, what is left of the old one, and the spectra."""

    setting: Setting
    seed: int
    turned_accuracy: float
    turned_loss: float
    upright_loss: float
    upright_accuracy: float
    intruders: int
    by_span: int
    looked_at: int
    undetermined: int
    energy_share: float
    relative_size: float
    frobenius: float
    changes: tuple[Change, ...]


def train(index: int, seed: int, steps: int = STEPS) -> Outcome:
    """Train once on turned digits and look at the result."""
    setting, task = SETTINGS[index], turned(seed)
    model = start(setting, seed)
    optimizer = adamw(model, setting.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in batches(len(task.training.labels), steps, seed):
        optimizer.zero_grad()
        logits = model(task.training.images[batch])
        nn.functional.cross_entropy(logits, task.training.labels[batch]).backward()
        optimizer.step()
        schedule.step()
    dense = setting.method == "all weights"
    updates = dense_differences(model) if dense else model_updates(model)
    report = quiet_report({name: updates[name] for name in bases()})
    upright = Split(*digits())
    turned_loss, turned_accuracy = loss_and_accuracy(model, task.test)
    upright_loss, upright_accuracy = loss_and_accuracy(model, upright)
    return Outcome(
        setting=setting,
        seed=seed,
        turned_accuracy=turned_accuracy,
        turned_loss=turned_loss,
        upright_loss=upright_loss,
        upright_accuracy=upright_accuracy,
        intruders=report.count,
        by_span=report.span_count,
        looked_at=report.looked_at,
        undetermined=sum(len(site.undetermined()) for site in report.values()),
        energy_share=report.energy_share,
        relative_size=statistics.fmean(site.relative_size for site in report.values()),
        frobenius=total_norm(updates),
        changes=() if dense else changes(updates, report, task.validation),  # pyright: ignore[reportArgumentType]
    )


def start(setting: Setting, seed: int) -> nn.Module:
    """Return a copy of the network with an update on every matrix, or all of it trainable."""
    model = copy.deepcopy(pretrained())
    if setting.method == "all weights":
        return model
    generator = torch.Generator().manual_seed(seed)
    return adapt(
        model, lambda shape: setting.make(shape, generator), targets=".*", exclude="position"
    )


def dense_differences(model: nn.Module) -> dict[str, Tensor]:
    """Return how far each matrix of a fully trained network is from its start."""
    before = dict(pretrained().named_parameters())
    return {
        name: (weight - before[name]).detach()
        for name, weight in model.named_parameters()
        if name in bases()
    }


def quiet_report(updates: Mapping[str, LowRankOperator | Tensor]) -> ModelSpectralReport:
    """Return the report; what it would warn of is in the record."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralWarning)
        return spectral_report(bases(), updates)


def total_norm(updates: Mapping[str, LowRankOperator | Tensor]) -> float:
    """Return the Frobenius norm of all updates of the eight matrices together."""
    norms = (
        torch.linalg.vector_norm(x) if isinstance(x, Tensor) else x.schatten_norm(2)
        for name, x in updates.items()
        if name in bases()
    )
    return float(torch.stack([norm.detach() for norm in norms]).norm())


def changes(
    updates: Mapping[str, LowRankOperator], report: ModelSpectralReport, split: Split
) -> tuple[Change, ...]:
    """Rescale the top intruder of each matrix, or a neighbour of it, or shrink the whole update."""
    if report.count == 0:
        return ()
    own = {name: updates[name] for name in report}
    found = [_measured("unchanged", 1.0, updates, own, split)]
    for factor in FACTORS:
        rescaled = rescale_intruders(own, report, factor=factor)
        shrunk = {name: shrunk_to_norm_of(own[name], rescaled[name]) for name in own}
        other = {name: _neighbour_rescaled(own[name], report[name], factor) for name in own}
        found += [
            _measured("intruder", factor, updates, rescaled, split),
            _measured("same norm", factor, updates, shrunk, split),
            _measured("neighbour", factor, updates, other, split),
        ]
    return tuple(found)


def _neighbour_rescaled(
    op: LowRankOperator, report: SpectralReport, factor: float
) -> LowRankOperator:
    """Rescale the vector that is no intruder and has the singular value nearest to the top one."""
    if report.count in (0, len(report.values)):
        return op
    distance = (report.values - report.values[report.positions[0] - 1]).abs()
    j = int(distance.where(~report.intruders, torch.inf).argmin())
    left, scale, right = report.triples
    part = LowRankOperator(left[:, j : j + 1], scale[j : j + 1], right[:, j : j + 1])
    return op + ((factor - 1) * part).to(dtype=op.dtype)


def _measured(
    kind: str,
    factor: float,
    updates: Mapping[str, LowRankOperator],
    changed: Mapping[str, LowRankOperator],
    split: Split,
) -> Change:
    fresh = copy.deepcopy(pretrained())
    model = add_updates(fresh, {**updates, **changed}, name="changed").eval()
    turned_loss, accuracy = loss_and_accuracy(model, split)
    upright_loss = loss_and_accuracy(model, Split(*digits()))[0]
    return Change(kind, factor, upright_loss, turned_loss, accuracy, total_norm(changed))
