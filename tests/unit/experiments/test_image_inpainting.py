"""The inpainting experiment in small."""

import pytest
import torch

from experiments import image_inpainting
from experiments.image_inpainting import METHODS, fill, masks
from problems.images import photograph


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(image_inpainting, "RANK", 4)
    monkeypatch.setattr(image_inpainting, "RADII", (20.0, 40.0))
    monkeypatch.setattr(image_inpainting, "PENALTIES", (0.3, 1.0))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", METHODS)
def test_seen_pixels_stay_and_hidden_ones_are_filled(method):
    image = photograph("china", shrink=20)
    mask = masks((image.shape[0], 32))["50 % seen"][:, : image.shape[1]]
    found = fill(method, image, mask)
    assert torch.equal(found.image[mask], image[mask])
    assert bool(found.image.isfinite().all())
    assert float(found.image.min()) >= 0.0
    assert float(found.image.max()) <= 1.0


def test_absurd_size_is_an_error_message(tmp_path, capsys):
    assert 1 == image_inpainting.main(["--out", str(tmp_path), "--shrink", "-1"])
    assert "shrink must be an integer in 1..427" in capsys.readouterr().err
