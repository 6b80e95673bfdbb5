"""Masks, matrices and images are what they say, and PSNR is its formula."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from lowrank_opt.errors import DataError, ObservationError, OptionError, ShapeError
from lowrank_opt.metrics import psnr
from problems.images import block_mask, observe, photograph, random_mask, to_image, to_matrix
from tests.builders import seeded


@pytest.mark.parametrize("name", ["china", "flower"])
def test_a_pixel_is_the_mean_of_its_square(name: str) -> None:
    image, pixels = photograph(name, shrink=3), load_sample_image(f"{name}.jpg")
    assert image.shape == (142, 213, 3)
    expected = pixels[9:12, 30:33].astype(np.float64).mean(axis=(0, 1)) / 255
    assert image[3, 10].tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_a_matrix_has_the_channels_side_by_side_and_goes_back() -> None:
    image = torch.rand(4, 5, 3, dtype=torch.float64, generator=seeded())
    assert torch.equal(to_matrix(image), torch.cat(list(image.unbind(2)), dim=1))
    assert torch.equal(to_image(to_matrix(image)), image)
    assert to_image(torch.tensor([[-1.0, 0.5, 2.0]])).tolist() == [[[0.0, 0.5, 1.0]]]


def test_observed_entries_are_those_of_the_mask_in_every_channel() -> None:
    image = torch.rand(6, 7, 3, dtype=torch.float64, generator=seeded())
    mask = random_mask((6, 7), 0.5, generator=seeded(1))
    seen = observe(image, mask)
    dense = torch.full((6, 21), torch.nan, dtype=torch.float64)
    dense[seen.rows, seen.cols] = seen.values
    expected = to_matrix(torch.where(mask[:, :, None], image, torch.nan))
    assert int(mask.sum()) == 21
    assert len(seen) == 63
    assert torch.equal(dense.nan_to_num(-1.0), expected.nan_to_num(-1.0))


def test_a_seed_repeats_a_mask_and_another_changes_it() -> None:
    first, again, other = (random_mask((20, 20), 0.3, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_blocks_hide_whole_squares() -> None:
    one = block_mask((30, 20), blocks=1, side=5, generator=seeded())
    rows, cols = (~one).nonzero(as_tuple=True)
    assert len(rows) == 25
    assert int(rows.max() - rows.min()) == 4 == int(cols.max() - cols.min())
    assert bool(block_mask((3, 3), blocks=0, side=1).all())
    assert not bool(block_mask((3, 3), blocks=1, side=3).any())


def test_psnr_equals_its_formula() -> None:
    x, y = np.random.default_rng(0).random((2, 8, 9))
    expected = 10 * math.log10(255**2 / np.mean((255 * x - 255 * y) ** 2))
    assert psnr(255 * x, 255 * y, peak=255) == pytest.approx(expected, rel=1e-12)
    assert psnr(x, y) == pytest.approx(expected, rel=1e-12)
    assert psnr(x, x) == math.inf
    assert math.isnan(psnr([math.nan], [0.0]))
    assert psnr([1e-300], [0.0]) == pytest.approx(6000.0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="china, flower"):
        photograph("cat")
    for shrink in (0, 428):
        with pytest.raises(OptionError, match="shrink"):
            photograph(shrink=shrink)
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(OptionError, match="share"):
            random_mask((3, 3), share)
    with pytest.raises(ObservationError, match="pixel"):
        random_mask((3, 3), 0.01)
    with pytest.raises(OptionError, match="side"):
        block_mask((3, 3), side=4)
    with pytest.raises(ShapeError, match="mask"):
        observe(torch.rand(3, 3, 3), torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ShapeError, match="side by side"):
        to_image(torch.rand(3, 4))
    with pytest.raises(ShapeError, match="image"):
        to_matrix(torch.rand(3, 4))
    for peak in (0.0, math.inf):
        with pytest.raises(OptionError, match="peak"):
            psnr([1.0], [0.0], peak=peak)
