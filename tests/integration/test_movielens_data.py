"""The real data, where they are: counts, official splits, and the wheel's way to rebuild them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from problems import movielens
from problems.ratings import Ratings
from tests import grouplens

pytestmark = pytest.mark.realdata

# MD5 checksums of GroupLens' files: all lines, and training and test lines of each fold.
U_DATA = "6e47046882bad158b0efbb84cd5cb987"
FOLDS = {
    1: ("4325f44281c9f8c119a3694662d63fc2", "62d5d837e7c8e36550cc956b09c2ecc8"),
    2: ("79541afecccbd5365bb2c09b123a01c7", "1951a71b7e1f4ed254508007fa2f6b70"),
    3: ("55c67a63f516fa9e593d68c3be779970", "cb3e4d0a9152041772285232ca002d4f"),
    4: ("66f64a75eeeffd20ff09533bcd31adcf", "328acfca94e85d01b1d7e92c7d73df3b"),
    5: ("0becb3392339231c08ba316944c79095", "bec898f7091dba3b7bdf793d1998d2d6"),
}
ALL_BUT_TEN = {
    "ua": ("346eb46a756be3b382bdef4f7dcf3a01", "52e5d0355092dc1596899855b220508f"),
    "ub": ("e4ce94f6e01e45f65b91a70bb9e8da2f", "5292d1e388d156aa0c19c384cdf35aca"),
}
HEADER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


@pytest.fixture(scope="module")
def only_wheel(ml_100k_lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the wheel gives it: the lines of u.data below a header."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "ml-100k.inter").write_bytes(HEADER + "".join(ml_100k_lines).encode())
    return folder


def checksum(part: Ratings) -> str:
    """Return the MD5 checksum of the lines that GroupLens writes for these ratings."""
    table = part.to_pandas().to_numpy(dtype=int).tolist()
    return digest("".join("\t".join(map(str, line)) + "\n" for line in table))


def digest(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def test_ratings_are_those_of_grouplens(ml_100k: Path) -> None:
    assert U_DATA == checksum(movielens.load("ml-100k", path=ml_100k))


@pytest.mark.parametrize("number", FOLDS)
def test_folds_are_those_of_grouplens(ml_100k: Path, number: int) -> None:
    folds = movielens.split_ratings(f"u{number}", path=ml_100k)
    assert FOLDS[number] == tuple(map(checksum, folds))


@pytest.mark.parametrize("name", grouplens.NAMES)
def test_splits_cut_by_the_tests_are_those_of_grouplens(
    ml_100k_lines: list[str], name: str
) -> None:
    expected = ALL_BUT_TEN.get(name) or FOLDS[int(name[1])]
    assert expected == tuple(map(digest, grouplens.cut(ml_100k_lines, name)))


def test_ml_100k_has_its_published_counts(ml_100k: Path) -> None:
    ratings = movielens.load("ml-100k", path=ml_100k)
    assert (943, 1682) == ratings.shape
    assert 100_000 == len(ratings)
    assert [6110, 11370, 27145, 34174, 21201] == np.bincount(ratings.rating.astype(int))[
        1:
    ].tolist()
    assert list(range(1, 1683)) == ratings.item_ids.tolist()


def test_ml_1m_has_its_published_counts(ml_1m: Path) -> None:
    ratings = movielens.load("ml-1m", path=ml_1m)
    assert (6040, 3706) == ratings.shape
    assert 1_000_209 == len(ratings)
    items = movielens.items("ml-1m", path=ml_1m)
    users = movielens.users("ml-1m", path=ml_1m)
    assert (3883, 6040) == (len(items), len(users))
    assert set(ratings.item_ids.tolist()) <= set(items.index)
    assert ratings.user_ids.tolist() == users.index.tolist()


@pytest.mark.parametrize("name", grouplens.NAMES)
def test_split_holds_the_lines_of_the_official_files(movielens_data: Path, name: str) -> None:
    train, test = movielens.split_ratings(name, path=movielens_data)
    for part, suffix in ((train, "base"), (test, "test")):
        # Another reader, so that this parser is not compared with itself.
        text = (movielens_data / "ml-100k" / f"{name}.{suffix}").read_text()
        expected = [[int(field) for field in line.split()] for line in text.splitlines()]
        assert expected == part.to_pandas().to_numpy(dtype=int).tolist()


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_fold_rebuilt_from_the_wheel_is_the_official_one(
    movielens_data: Path, only_wheel: Path, number: int
) -> None:
    official = movielens.split_ratings(f"u{number}", path=movielens_data)
    rebuilt = movielens.split_ratings(f"u{number}", path=only_wheel)
    assert official[0].to_pandas().equals(rebuilt[0].to_pandas())
    assert official[1].to_pandas().equals(rebuilt[1].to_pandas())


def test_split_has_the_common_shape(ml_100k: Path) -> None:
    train, test = movielens.fold("ml-100k", 1, path=ml_100k)
    assert (943, 1682) == train.shape == test.shape
    assert (80_000, 20_000) == (len(train), len(test))


def test_side_tables_of_ml_100k_cover_the_ratings(grouplens_folder: Path) -> None:
    items = movielens.items("ml-100k", path=grouplens_folder)
    users = movielens.users("ml-100k", path=grouplens_folder)
    assert (1682, 943) == (len(items), len(users))
    assert "Toy Story (1995)" == items.loc[1, "title"]
    assert "Animation|Children's|Comedy" == items.loc[1, "genres"]
    assert [24, "M", "technician", "85711"] == users.loc[1].tolist()
