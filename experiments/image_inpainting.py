"""Photographs with missing pixels: low-rank completion beside interpolation.

``python -m experiments.image_inpainting`` writes a table, a JSON record and a figure. The bound on
the nuclear norm, and the penalties, are chosen on a tenth of the *seen* pixels.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import lowrank_opt as lo
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from lowrank_opt.completion import als, soft_impute
from problems.images import block_mask, observe, photograph, random_mask, to_image, to_matrix
from problems.metrics import psnr

RANK = 40
RADII = (60.0, 100.0, 150.0, 220.0)
PENALTIES = (0.1, 0.3, 1.0, 3.0)
SEED = 0


class Filled(NamedTuple):
    """A completed image and what was chosen for it."""

    image: Tensor
    setting: float | None
    seconds: float


def low_rank(
    seen: lo.Observations,
    settings: Sequence[float],
    fit: Callable[[lo.Observations, float], Tensor],
) -> tuple[Tensor, float]:
    """Choose a setting on a tenth of the seen pixels, then fit all of them; return the matrix."""
    kept, held = seen.split(0.1, generator=torch.Generator().manual_seed(SEED))

    def error(setting: float) -> float:
        W = fit(kept, setting)
        return float((W[held.rows, held.cols] - held.values).square().mean())

    best = min(settings, key=error)
    return fit(seen, best), best


def rank_of(seen: lo.Observations) -> int:
    """Return the rank of all fits, less for tiny pictures."""
    return min(RANK, min(seen.shape) // 2)


def ball(seen: lo.Observations, radius: float) -> Tensor:
    """Fit a nuclear-norm ball with row and column biases."""
    generator = torch.Generator().manual_seed(SEED)
    weights = lo.HomogeneousBall(
        seen.shape, rank_of(seen), radius=radius, dtype=torch.float64, generator=generator
    )
    return lo.complete(seen, weights, tolerance=1e-4, max_iterations=300).to_dense()


def imputed(seen: lo.Observations, penalty: float) -> Tensor:
    """Fit with a nuclear penalty."""
    generator = torch.Generator().manual_seed(SEED)
    return soft_impute(
        seen, rank_of(seen), penalty=penalty, tolerance=1e-4, generator=generator
    ).to_dense()


def alternating(seen: lo.Observations, penalty: float) -> Tensor:
    """Fit by alternating least squares with penalties that grow with the counts."""
    generator = torch.Generator().manual_seed(SEED)
    return als(seen, rank_of(seen), penalty=penalty / 100, generator=generator).to_dense()


def channel_means(image: Tensor, mask: Tensor) -> Tensor:
    """Fill with the mean of the seen pixels of each channel."""
    return torch.where(mask.unsqueeze(-1), image, image[mask].mean(0))


def interpolated(image: Tensor, mask: Tensor) -> Tensor:
    """Fill by linear interpolation between seen pixels, nearest ones beyond their hull."""
    from scipy.interpolate import griddata

    places, wanted = mask.nonzero().numpy(), np.argwhere(np.ones(mask.shape, bool))
    values = image[mask].numpy()
    linear = griddata(places, values, wanted, method="linear")
    nearest = griddata(places, values, wanted, method="nearest")
    filled = np.where(np.isnan(linear), nearest, linear).reshape(image.shape)
    return torch.from_numpy(filled).clamp(0, 1)


def fill(method: str, image: Tensor, mask: Tensor) -> Filled:
    """Complete an image by one method; seen pixels stay as they are."""
    began, setting = time.process_time(), None
    seen = observe(image, mask)
    match method:
        case "channel means":
            found = channel_means(image, mask)
        case "linear interpolation":
            found = interpolated(image, mask)
        case "HomogeneousBall":
            W, setting = low_rank(seen, RADII, ball)
            found = to_image(W)
        case "soft_impute":
            W, setting = low_rank(seen, PENALTIES, imputed)
            found = to_image(W)
        case _:
            W, setting = low_rank(seen, PENALTIES, alternating)
            found = to_image(W)
    found = torch.where(mask.unsqueeze(-1), image, found)
    return Filled(found, setting, time.process_time() - began)


METHODS = ("channel means", "linear interpolation", "HomogeneousBall", "soft_impute", "als")


def masks(size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the three ways in which pixels are hidden."""
    g = torch.Generator().manual_seed(SEED)
    return {
        "30 % seen": random_mask(size, 0.3, generator=g),
        "50 % seen": random_mask(size, 0.5, generator=g),
        "blocks hidden": block_mask(size, blocks=25, side=12, generator=g),
    }


def draw(panels: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Draw images side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(panels), 2.6), layout="constrained")
    for ax, (title, image) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        ax.imshow(image.numpy())
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    figure.savefig(path, dpi=90)


def filled(method: str, name: str, shrink: int) -> Filled:
    """Complete the photograph by one method from one mask."""
    image = photograph("china", shrink=shrink)
    return fill(method, image, masks((image.shape[0], image.shape[1]))[name])


def study(session: Session) -> None:
    """Run the experiment."""
    shrink: int = session.options.shrink or (20 if session.smoke else 3)
    image = photograph("china", shrink=shrink)
    size = (image.shape[0], image.shape[1])
    hidden = masks(size)
    if session.smoke:
        hidden = {"50 % seen": hidden["50 % seen"]}
    cases = [(method, name) for method in METHODS for name in hidden]
    found = dict(
        zip(cases, session.run([partial(filled, *c, shrink) for c in cases], "fits"), strict=True)
    )
    decibels = {c: psnr(to_matrix(x.image), to_matrix(image)) for c, x in found.items()}
    fits: list[Json] = [
        {
            "method": method,
            "mask": name,
            "psnr": decibels[method, name],
            "setting": x.setting,
            "cpu_seconds": x.seconds,
        }
        for (method, name), x in found.items()
    ]
    header = ["method", *(f"{name}, dB" for name in hidden)]
    rows = [[m, *(f"{decibels[m, name]:.2f}" for name in hidden)] for m in METHODS]
    print(text_table(header, rows))
    shown = "50 % seen"
    mask = hidden[shown].unsqueeze(-1)
    panels = [("original", image), (shown, torch.where(mask, image, torch.ones(())))]
    panels += [(m, found[m, shown].image) for m in ("HomogeneousBall", "linear interpolation")]
    draw(panels, session.folder / "images.png")
    session.write(
        "images.json",
        settings={"rank": RANK, "shrink": shrink, "seed": SEED, "size": list(size)},
        fits=fits,
        table=markdown_table(header, rows),
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shrink", type=int, help="side of the squares that are averaged over")


main = experiment(study, __doc__, options=_options)

if __name__ == "__main__":
    sys.exit(main())
