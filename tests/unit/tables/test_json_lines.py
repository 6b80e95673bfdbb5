"""Records of JSON and zip archives: what is read, what is refused, and by which words."""

import gzip
import json
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_opt.cli import main
from lowrank_opt.errors import DataError
from lowrank_opt.observations.ratings import read_ratings
from lowrank_opt.tables import read_triplets
from lowrank_opt.tables.files import open_table

REVIEWS = [
    {"overall": 5, "reviewerID": "007", "asin": "A1", "style": {"size": 3}, "reviewTime": "1 May"},
    {"asin": "A1", "reviewerID": 7, "overall": 4.5},
    {"asin": 2.0, "reviewerID": "7", "overall": "3", "vote": None},
]


def written(path: Path, lines: list[object]) -> Path:
    path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    return path


def test_ids_of_records_keep_their_types(tmp_path: Path):
    found = read_triplets(written(tmp_path / "reviews.json", REVIEWS))
    assert ["007", 7, "7"] == found.rows.tolist()
    assert ["A1", "A1", 2] == found.cols.tolist()
    assert [5.0, 4.5, 3.0] == found.values.tolist()
    assert ("reviewerID", "asin") == found.names


IDS = st.text(max_size=4) | st.integers(-(2**70), 2**70)
RECORDS = st.lists(st.tuples(IDS, IDS, st.integers(-9, 9) | st.floats(-1e9, 1e9)), min_size=1)


@given(RECORDS, st.booleans(), st.booleans())
def test_records_are_read_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, records: list, ascii_only: bool, packed: bool
):
    folder = tmp_path_factory.mktemp("json")
    names = ("user", "item", "rating")
    lines = [json.dumps(dict(zip(names, r, strict=True)), ensure_ascii=ascii_only) for r in records]
    path = folder / "ratings.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    if packed:
        with ZipFile(folder / "r.zip", "w") as archive:
            archive.write(path, "inside/ratings.jsonl")
            archive.writestr("__MACOSX/inside/._ratings.jsonl", b"\0")
        path = folder / "r.zip"
    found = read_triplets(path)
    read = zip(found.rows.tolist(), found.cols.tolist(), found.values.tolist(), strict=True)
    assert [(*map(repr, r[:2]), float(r[2])) for r in records] == [
        (repr(i), repr(j), v) for i, j, v in read
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"u": "a", "i": "b"}\n', "no 'v'"),
        ('{"u": null, "i": "b", "v": 1}\n', "None is no id"),
        ('{"u": true, "i": "b", "v": 1}\n', "True is no id"),
        ('{"u": 7.5, "i": "b", "v": 1}\n', "7.5 is no id: not whole"),
        ('{"u": 1e17, "i": "b", "v": 1}\n', "1e[+]17 is no id: not whole, or not exact"),
        ('{"u": ["a"], "i": "b", "v": 1}\n', "is no id"),
        ('{"u": "a", "i": "b", "v": null}\n', "None is not a finite number"),
        ('{"u": "a", "i": "b", "v": "good"}\n', "'good' is not a finite number"),
        ('{"u": "a", "i": "b", "v": 9007199254740993}\n', "9007199254740993 is not a finite"),
        ('{"u": "a", "i": "b", "v": NaN}\n', "malformed"),
        ('{"u": "a", "i": "b", "v"', "truncated"),
        ("[1, 2, 3]\n", "list instead of an object"),
        ('{"u": "a", "i": "b", "v": 1, "x": ' + "[" * 9999 + "]" * 9999 + "}\n", "recursion"),
        ("\n", "an empty line"),
    ],
)
def test_malformed_records_are_named(tmp_path: Path, line: str, fault: str):
    good = [{"u": "a", "i": k, "v": k} for k in range(3)]
    path = written(tmp_path / "r.jsonl", [*good[:2], line, "\n" * (line[-1] != "\n"), good[2]])
    with pytest.raises(DataError, match=rf"at most 0 .* line 3: .*{fault}"):
        read_ratings(path)
    ratings = read_ratings(path, max_bad_lines=1)
    assert ([3], [0, 1, 2]) == (ratings.bad.numbers, ratings.col_ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"u": 1, "i": 2, "v": 3}]\n', "JSON"),
        ('{"u": 1, "u": 2, "v": 3}\n', "a name comes twice"),
        ('{\n "u": 1}\n', "an object on each line; .*r.jsonl' begins with '{': "),
        ('{"u": 1, "i": 2, "v": 3, "w": 4}\n', "could mean 'u', 'i', 'v' or 'i', 'v', 'w'"),
        ('{"u": 1, "i": 2}\n', "2 columns, row and column id, and one of values"),
        ("", "JSON must have an object on each line"),
    ],
)
def test_what_holds_no_records_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=message):
        open_table(written(tmp_path / "r.jsonl", [text]), values=True)


def test_options_of_fields_do_not_fit_records(tmp_path: Path):
    path = written(tmp_path / "r.json", REVIEWS)
    with pytest.raises(DataError, match="separator and header can be given for text alone"):
        open_table(path, separator=",", header=True)
    file = open_table(path, ("asin", "reviewerID"), "overall")
    assert "rows asin, columns reviewerID, values overall (as asked for); a record a line" == (
        file.reading
    )


def test_archives_of_one_file_are_read(tmp_path: Path):
    with ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("r.jsonl.gz", gzip.compress(b'{"user": "1", "item": "2", "rating": 3}'))
    members = {"ml/ratings.csv": "user,item,rating\n1,2,3\n", "ml/users.csv": "user\n1\n"}
    for count, name in ((2, "two.zip"), (1, "one.zip"), (0, "none.zip")):
        with ZipFile(tmp_path / name, "w") as archive:
            archive.mkdir("ml")
            for member in list(members)[:count]:
                archive.writestr(member, members[member])
    for name in ("one.zip", "twice.zip"):
        found = read_triplets(tmp_path / name)
        assert (["1"], ["2"], [3.0]) == (found.rows.tolist(), found.cols.tolist(), found.values)
    with pytest.raises(DataError, match=r"two.zip' holds 2 \['ml/ratings.csv', 'ml/users.csv'\]"):
        read_triplets(tmp_path / "two.zip")
    with pytest.raises(DataError, match=r"none.zip' holds 0 \[\]"):
        read_triplets(tmp_path / "none.zip")
    whole = (tmp_path / "one.zip").read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"must be readable; got .*cut.zip'"):
        read_triplets(cut)
    bent = bytearray(whole)
    at = whole.index(b"1,2,3")
    bent[at] += 1
    cut.write_bytes(bent)
    with pytest.raises(DataError, match=r"cut.zip': Bad CRC-32"):
        read_triplets(cut)
    # A flag that says that the member needs a password.
    bent = bytearray(whole)
    central = whole.index(b"PK\1\2")
    for k in (whole.rindex(b"PK\3\4", 0, central) + 6, whole.rindex(b"PK\1\2") + 8):
        bent[k] |= 1
    cut.write_bytes(bent)
    with pytest.raises(DataError, match="password required"):
        read_triplets(cut)


def test_commands_read_records_and_archives(tmp_path: Path, capsys: pytest.CaptureFixture):
    frame = pd.DataFrame([(u, i, u * i % 5) for u in range(8) for i in range(6) if (u + i) % 3])
    frame.columns = ["user", "item", "rating"]
    frame.to_json(tmp_path / "r.jsonl", orient="records", lines=True)
    frame.to_csv(tmp_path / "r.csv.zip", index=False)
    out = []
    for name in ("r.jsonl", "r.csv.zip"):
        model = str(tmp_path / name.replace(".", "-"))
        options = ["--rank", "2", "--max-iterations", "2", "--quiet"]
        assert main(["complete", str(tmp_path / name), "--out", model, *options]) in (0, 1)
        capsys.readouterr()
        assert 0 == main(["predict", model, str(tmp_path / name), "--quiet"])
        assert 0 == main(["evaluate", model, str(tmp_path / name), "--quiet"])
        asked = ["--user", "3", "--exclude-seen", str(tmp_path / name), "--quiet"]
        assert 0 == main(["recommend", model, *asked])
        out.append(capsys.readouterr().out)
    assert out[0] == out[1]
