"""Goodbooks comes from a file as it stands, and a wrong one is refused."""

from pathlib import Path

import pytest

from lowrank_opt.errors import DataError, ObservationError
from problems import goodbooks


def written(folder: Path, text: str) -> Path:
    file = folder / "ratings.csv"
    file.write_text(text)
    return file


def test_the_last_rating_of_a_pair_counts(tmp_path: Path) -> None:
    text = "book_id,user_id,rating\n9,4,1\n7,5,3\n9,4,2\n"
    ratings = goodbooks.load(path=written(tmp_path, text))
    assert ratings.user_ids[ratings.user].tolist() == [5, 4]
    assert ratings.item_ids[ratings.item].tolist() == [7, 9]
    assert ratings.rating.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "book_id,user_id,rating\nx,1,2\n"])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="columns"):
        goodbooks.load(path=written(tmp_path, text))


def test_an_id_that_another_spelling_could_mean_is_refused(tmp_path: Path) -> None:
    text = "book_id,user_id,rating\n7,1,2\n007,1,2\n"
    with pytest.raises(DataError, match=r"line 3: book_id must be a whole number.*'007'"):
        goodbooks.load(path=written(tmp_path, text))


def test_a_rating_off_the_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ObservationError, match=r"6\.0"):
        goodbooks.load(path=written(tmp_path, "book_id,user_id,rating\n1,1,6\n"))


def test_without_a_folder_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWRANK_OPT_DATA", raising=False)
    with pytest.raises(DataError, match="LOWRANK_OPT_DATA"):
        goodbooks.load()


@pytest.mark.realdata
def test_every_line_of_the_real_file_is_accounted_for(
    goodbooks_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWRANK_OPT_DATA", str(goodbooks_file.parents[1]))
    header, *lines = goodbooks_file.read_text(encoding="utf-8").splitlines()
    at = [header.split(",").index(name) for name in ("user_id", "book_id")]
    pairs = {tuple(line.split(",")[i] for i in at) for line in lines}
    ratings = goodbooks.load()
    assert len(ratings.rating) == len(pairs)
    assert ratings.shape == (len({u for u, _ in pairs}), len({b for _, b in pairs}))
