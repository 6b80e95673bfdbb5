"""Finding, loading and splitting MovieLens, on small files written here."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lowrank_opt.errors import DataError, ObservationError
from problems import movielens
from problems._variants import VARIANTS
from problems.ratings import Ratings
from tests.unit.problems.lines import ROWS, tab_lines


@pytest.fixture(autouse=True)
def _no_other_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LOWRANK_OPT_DATA", raising=False)
    monkeypatch.setattr("problems._download.GROUPLENS", "http://127.0.0.1:9/never")


def load_text(folder: Path, text: str) -> Ratings:
    (folder / "u.data").write_bytes(text.encode("latin-1"))
    return movielens.load("ml-100k", path=folder, allow_partial=True)


def test_columns_are_contiguous_and_keep_the_order_of_the_file(folder: Path) -> None:
    ratings = load_text(folder, tab_lines(*ROWS))
    assert [1, 0, 1] == ratings.user.tolist()
    assert [1, 0, 0] == ratings.item.tolist()
    assert [5.0, 3.0, 1.0] == ratings.rating.tolist()
    assert [881250949, 891717742, 878887116] == ratings.timestamp.tolist()
    assert [1, 3] == ratings.user_ids.tolist()
    assert [10, 20] == ratings.item_ids.tolist()
    assert (2, 2) == ratings.shape


def test_observations_hold_the_ratings(folder: Path) -> None:
    obs = load_text(folder, tab_lines(*ROWS)).observations(dtype=torch.float64)
    assert (2, 2) == obs.shape
    assert torch.float64 == obs.values.dtype
    dense = torch.zeros(2, 2, dtype=torch.float64)
    dense[obs.rows, obs.cols] = obs.values
    assert [[3.0, 0.0], [1.0, 5.0]] == dense.tolist()


def test_frame_holds_the_original_ids(folder: Path) -> None:
    pytest.importorskip("pandas")
    frame = load_text(folder, tab_lines(*ROWS)).to_pandas()
    assert ["user_id", "item_id", "rating", "timestamp"] == list(frame.columns)
    assert [list(map(float, row)) for row in ROWS] == frame.to_numpy(dtype=float).tolist()


LAYOUTS = {
    "ml-1m": ("ml-1m", "ratings.dat", "::", ""),
    "ml-10m": ("ml-10M100K", "ratings.dat", "::", ""),
    "ml-25m": ("ml-25m", "ratings.csv", ",", "userId,movieId,rating,timestamp\n"),
    "ml-32m": ("ml-32m", "ratings.csv", ",", "userId,movieId,rating,timestamp\r\n"),
    "latest-small": ("ml-latest-small", "ratings.csv", ",", "userId,movieId,rating,timestamp\n"),
}


def layout_text(variant: str) -> str:
    _, _, separator, header = LAYOUTS[variant]
    newline = "\r\n" if header.endswith("\r\n") else "\n"
    rows = [(3, 20, "4.0", 881250949), (1, 10, "3.0", 0)]
    return header + "".join(separator.join(map(str, row)) + newline for row in rows)


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("variant", LAYOUTS)
def test_layout_of_each_variant_is_read_from_its_folder_or_the_one_above(
    tmp_path: Path, variant: str, below: bool
) -> None:
    folder, file, _, _ = LAYOUTS[variant]
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).write_bytes(layout_text(variant).encode())
    path = tmp_path / folder if below else tmp_path
    ratings = movielens.load(variant, path=path, allow_partial=True)
    assert [4.0, 3.0] == ratings.rating.tolist()
    assert [881250949, 0] == ratings.timestamp.tolist()


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("variant", LAYOUTS)
def test_layout_of_each_variant_is_read_from_its_archive(
    tmp_path: Path, variant: str, direct: bool
) -> None:
    folder, file, _, _ = LAYOUTS[variant]
    archive = tmp_path / ("ml-" + variant.removeprefix("ml-") + ".zip")
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(f"{folder}/{file}", layout_text(variant))
    ratings = movielens.load(variant, path=archive if direct else tmp_path, allow_partial=True)
    assert [20, 10] == ratings.item_ids[ratings.item].tolist()


def test_file_of_the_wheel_is_read(folder: Path) -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml-100k.inter").write_text(header + tab_lines(*ROWS))
    ratings = movielens.load("ml-100k", path=folder, allow_partial=True)
    assert [5.0, 3.0, 1.0] == ratings.rating.tolist()


def test_environment_names_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWRANK_OPT_DATA", str(folder.parent))
    (folder / "u.data").write_text(tab_lines(*ROWS))
    assert 3 == len(movielens.load("ml-100k", allow_partial=True))


def test_path_wins_over_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "u.data").write_text(tab_lines(*ROWS))
    (tmp_path / "b" / "u.data").write_text(tab_lines(*ROWS[:2]))
    monkeypatch.setenv("LOWRANK_OPT_DATA", str(tmp_path / "a"))
    assert 2 == len(movielens.load("ml-100k", path=tmp_path / "b", allow_partial=True))


def test_folder_of_another_variant_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "ml-32m").mkdir()
    (tmp_path / "ml-32m" / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,5,0\n")
    with pytest.raises(DataError, match=r"folder or the zip archive of ml-25m.*ratings\.csv"):
        movielens.load("ml-25m", path=tmp_path / "ml-32m", allow_partial=True)


def test_unknown_variant_is_an_error() -> None:
    with pytest.raises(DataError, match=r"one of ml-100k, ml-1m, .*; got 'ml-2m'"):
        movielens.load("ml-2m")


def test_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"path must be the folder.*got '.*nowhere'.*leave it out"):
        movielens.load("ml-100k", path=tmp_path / "nowhere")


def test_environment_that_names_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWRANK_OPT_DATA", "/no/such/folder")
    with pytest.raises(DataError, match=r"LOWRANK_OPT_DATA must name an existing.*unset it"):
        movielens.load("ml-100k")


def test_corrupt_archive_is_an_error(tmp_path: Path) -> None:
    archive = tmp_path / "ml-1m.zip"
    archive.write_bytes(b"PK\x03\x04 not really an archive")
    with pytest.raises(DataError, match=r"ml-1m\.zip must be a readable folder or zip archive"):
        movielens.load("ml-1m", path=archive)


def test_archive_with_a_flipped_byte_is_an_error(tmp_path: Path) -> None:
    archive = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("ml-1m/ratings.dat", "1::2::3::4\n")
    archive.write_bytes(archive.read_bytes().replace(b"1::2::3::4", b"1::2::5::4"))
    with pytest.raises(DataError, match=r"must be readable.*CRC"):
        movielens.load("ml-1m", path=archive, allow_partial=True)


def test_archive_without_the_ratings_is_an_error(tmp_path: Path) -> None:
    archive = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("ml-1m/README", "nothing else")
    with pytest.raises(DataError, match=r"archive of ml-1m.* with ratings\.dat"):
        movielens.load("ml-1m", path=archive)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ratings of the size of ML-100K, with split u2 made from the lines by sorting."""
    folder = tmp_path_factory.mktemp("full") / "ml-100k"
    folder.mkdir()
    rng = np.random.default_rng(0)
    places = rng.choice(943 * 1682, size=100_000, replace=False)
    stars = rng.integers(1, 6, size=100_000)
    lines = [
        f"{p // 1682 + 1}\t{p % 1682 + 1}\t{s}\t{p}\n" for p, s in zip(places, stars, strict=True)
    ]
    tested = lines[20_000:40_000]
    trained = lines[:20_000] + lines[40_000:]
    (folder / "u.data").write_text("".join(lines))
    (folder / "u2.base").write_text("".join(sorted(trained, key=line_key)))
    (folder / "u2.test").write_text("".join(sorted(tested, key=line_key)))
    return folder


def line_key(line: str) -> tuple[int, int]:
    user, item, *_ = line.split("\t")
    return int(user), int(item)


def test_fold_rebuilt_from_all_ratings_equals_the_official_files(
    full_size: Path, tmp_path: Path
) -> None:
    (tmp_path / "u.data").write_bytes((full_size / "u.data").read_bytes())
    official = movielens.split_ratings("u2", path=full_size)
    rebuilt = movielens.split_ratings("u2", path=tmp_path)
    expected, got = ([part.to_pandas() for part in pair] for pair in (official, rebuilt))
    assert expected[0].equals(got[0])
    assert expected[1].equals(got[1])


def test_fold_is_the_split_of_its_number(full_size: Path) -> None:
    train, test = movielens.fold("ml-100k", 2, path=full_size)
    assert (80_000, 20_000) == (len(train), len(test))
    assert (943, 1682) == train.shape == test.shape
    again, _ = movielens.split("u2", path=full_size)
    assert torch.equal(train.values, again.values)


def test_split_files_that_overlap_are_an_error(full_size: Path, tmp_path: Path) -> None:
    base, test = ((full_size / f"u2.{part}").read_text() for part in ("base", "test"))
    first = test.partition("\n")[0]
    (tmp_path / "u2.base").write_text(base.partition("\n")[2] + first + "\n")
    (tmp_path / "u2.test").write_text(test)
    with pytest.raises(ObservationError, match=r"u2\.test, line 1: .*again after .*u2\.base, line"):
        movielens.split("u2", path=tmp_path)


def test_split_files_that_lack_ratings_are_an_error(full_size: Path, tmp_path: Path) -> None:
    (tmp_path / "u2.base").write_text((full_size / "u2.base").read_text())
    (tmp_path / "u2.test").write_text("1\t1\t1\t1\n")
    with pytest.raises(DataError, match=r"u2\.base with .*u2\.test must hold the 100000"):
        movielens.split("u2", path=tmp_path)


def test_split_that_needs_its_files_says_which(full_size: Path) -> None:
    with pytest.raises(DataError, match=r"ml-100k, or .*with ua\.base with ua\.test"):
        movielens.split("ua", path=full_size)


@pytest.mark.parametrize("name", ["u6", "u0", "u", "uc", "U1", ""])
def test_unknown_split_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match=f"split must be one of u1, .*; got '{name}'"):
        movielens.split(name)


@pytest.mark.parametrize(("variant", "number"), [("ml-1m", 1), ("ml-100k", 0), ("ml-100k", 6)])
def test_fold_that_is_not_official_is_an_error(variant: str, number: int) -> None:
    with pytest.raises(DataError, match=r"official folds are 1\.\.5 of ml-100k.*problems\.splits"):
        movielens.fold(variant, number)


def test_items_of_both_data_sets_are_read(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    flags = "|".join("1" if genre in (1, 5) else "0" for genre in range(19))
    (tmp_path / "u.item").write_bytes(
        f"2|Caf\xe9\x85: 1995 (1995)|01-Jan-1995||http://x|{flags}\n".encode("latin-1")
    )
    (tmp_path / "movies.dat").write_bytes(b"7::Two: Parts (1999)::Drama|War\n")
    first = movielens.items("ml-100k", path=tmp_path)
    second = movielens.items("ml-1m", path=tmp_path)
    assert "Caf\xe9\x85: 1995 (1995)" == first.loc[2, "title"]
    assert "Action|Comedy" == first.loc[2, "genres"]
    assert "Two: Parts (1999)" == second.loc[7, "title"]


def test_users_of_both_data_sets_are_read(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "u.user").write_text("1|24|M|technician|85711\n")
    (tmp_path / "users.dat").write_text("6::F::50::9::55117\n")
    first = movielens.users("ml-100k", path=tmp_path)
    second = movielens.users("ml-1m", path=tmp_path)
    assert [24, "M", "technician", "85711"] == first.loc[1].tolist()
    assert [50, "F", "9", "55117"] == second.loc[6].tolist()


@pytest.mark.parametrize("line", ["1|old|M|technician|85711", "1|24|M|technician", ""])
def test_bad_line_of_a_side_table_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "u.user").write_text(f"1|24|M|technician|85711\n{line}\n")
    with pytest.raises(DataError, match=r"u\.user, line 2: must hold 5 fields"):
        movielens.users("ml-100k", path=tmp_path)


def test_side_table_of_a_csv_variant_is_an_error() -> None:
    with pytest.raises(DataError, match=r"read for ml-100k and ml-1m; got 'ml-25m'"):
        movielens.users("ml-25m")


def test_notice_is_printed_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    movielens.announce.cache_clear()
    load_text(folder, tab_lines(*ROWS))
    load_text(folder, tab_lines(*ROWS))
    printed = capsys.readouterr()
    assert "" == printed.out
    assert 1 == printed.err.count("10.1145/2827872")
    assert 1 == printed.err.count("no\nredistribution without permission")


def test_command_prints_a_summary(full_size: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = movielens.main(["--variant", "ml-100k", "--path", str(full_size)])
    lines = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[:5])
    assert 0 == status
    expected = {"MovieLens": "ml-100k", "users": "943", "items": "1,682", "ratings": "100,000"}
    assert expected | {"density": "6.30%"} == lines


def test_command_prints_an_error_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 1 == movielens.main(["--path", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.err.startswith("error: path must be the folder")


def test_checksums_look_like_md5() -> None:
    pinned = [variant.md5 for variant in VARIANTS if variant.md5 is not None]
    assert 5 == len(set(pinned))
    assert {32} == {len(md5) for md5 in pinned}
