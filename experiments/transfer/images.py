"""Fashion-MNIST and KMNIST, read from files that the user has; nothing is fetched.

Looked for in the folder of ``LOWRANK_OPT_DATA`` and in the cache of the library, Fashion-MNIST also
where Debian's package ``dataset-fashion-mnist`` puts it.
"""

import gzip
import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.errors import DataError
from problems._download import cache_folder

_DEBIAN = Path("/usr/share/datasets")
_FIRST = 7011


def data_folder(name: str, wanted: str, advice: str) -> Path:
    """Return the folder of a data set, which contains a file `wanted`.

    Raises
    ------
    DataError
        If there is none; with an advice how to get it.
    """
    named = os.environ.get("LOWRANK_OPT_DATA")
    roots = [*([Path(named).expanduser()] if named else []), cache_folder(), _DEBIAN]
    for root in roots:
        if (root / name / wanted).is_file():
            return root / name
    raise DataError(
        f"{name} needs a folder with {wanted}; got none in {', '.join(map(str, roots))}: {advice}"
    )


def fashion_mnist(part: Literal["train", "t10k"]) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1], shape (count, 28, 28), and labels.

    Raises
    ------
    DataError
        If the files are not found.
    """
    advice = "install Debian's dataset-fashion-mnist, or set LOWRANK_OPT_DATA"
    folder = data_folder("fashion-mnist", f"{part}-images-idx3-ubyte.gz", advice)
    pixels = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16).view(-1, 28, 28)
    return pixels.float() / 255, _idx(folder / f"{part}-labels-idx1-ubyte.gz", 8).long()


def kmnist(part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1], shape (count, 28, 28), and labels: 7,011 to train, or 10,000.

    Those to train are the first ones of the official files, which are read if a file of only those,
    ``kmnist-train7011.npz`` with ``imgs`` and ``labels``, is not there.

    Raises
    ------
    DataError
        If the files are not found.
    """
    advice = "set LOWRANK_OPT_DATA to a folder that contains kmnist/"
    folder = data_folder("kmnist", "kmnist-test-imgs.npz", advice)
    first = folder / "kmnist-train7011.npz"
    if part == "train" and first.is_file():
        both = np.load(first)
        pixels, labels = both["imgs"], both["labels"]
    else:
        count = _FIRST if part == "train" else None
        pixels, labels = (
            np.load(folder / f"kmnist-{part}-{kind}.npz")["arr_0"][:count]
            for kind in ("imgs", "labels")
        )
    return torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels).long()


def _idx(path: Path, header: int) -> Tensor:
    with gzip.open(path) as file:
        return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())
