"""The inpainting experiment in small."""

import json

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


def test_record_and_figure_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_inpainting, "masks", lambda size: masks_that_fit(size))
    # What each method fills is tested above.
    monkeypatch.setattr(image_inpainting, "fill", lambda _, *given: fill("channel means", *given))
    assert 0 == image_inpainting.main(["--out", str(tmp_path), "--shrink", "24"])
    record = json.loads((tmp_path / "images.json").read_text("utf-8"))
    assert 3 * len(METHODS) == len(record["fits"])
    assert (tmp_path / "images.png").stat().st_size > 0
    assert "linear interpolation" in capsys.readouterr().out


def masks_that_fit(size):
    whole = masks((max(size[0], 13), max(size[1], 13)))
    return {name: mask[: size[0], : size[1]] for name, mask in whole.items()}


def test_absurd_size_is_an_error_message(tmp_path, capsys):
    assert 2 == image_inpainting.main(["--out", str(tmp_path), "--shrink", "0"])
    assert "shrink must be an integer in 1..427" in capsys.readouterr().err
