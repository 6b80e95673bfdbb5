"""Download, cache and fallback, against servers on this machine: no test touches the network."""

import hashlib
import http.server
import io
import os
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_opt.errors import DataError
from problems import _download, _variants, _wheel, movielens

LINES = "1\t1\t5\t0\n2\t2\t3\t0\n"
HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def zipped(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


ARCHIVE = zipped({"ml-100k/u.data": LINES, "ml-100k/README": "x" * 2000})
MD5 = hashlib.md5(ARCHIVE).hexdigest()


class Site:
    """What the server answers: status, body, announced length."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, bytes, int]] = {}
        self.requests: list[str] = []
        self.delay = 0.0

    def put(self, path: str, body: bytes, *, status: int = 200, length: int | None = None) -> None:
        self.pages[path] = (status, body, len(body) if length is None else length)

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        time.sleep(self.delay)
        status, body, length = self.pages.get(handler.path, (404, b"", 0))
        handler.send_response(status)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(_download, "GROUPLENS", f"http://127.0.0.1:{server.server_port}")
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no proxies, an index that has nothing, and ML-100K of two ratings."""
    monkeypatch.setattr(_download, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(_download, "GROUPLENS", "http://127.0.0.1:9")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("LOWRANK_OPT_DATA", raising=False)
    small = replace(_variants.find_variant("ml-100k"), md5=MD5, count=2)
    monkeypatch.setattr(_variants, "VARIANTS", (small, *_variants.VARIANTS[1:]))
    return tmp_path / "cache"


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_download_is_checked_cached_and_not_repeated(site: Site, cache: Path) -> None:
    site.put("/ml-100k.zip", ARCHIVE)
    assert [5.0, 3.0] == movielens.load("ml-100k").rating.tolist()
    assert [5.0, 3.0] == movielens.load("ml-100k").rating.tolist()
    assert ["/ml-100k.zip"] == site.requests
    assert ["ml-100k.zip"] == files_in(cache)
    assert ARCHIVE == (cache / "ml-100k.zip").read_bytes()


def test_environment_folder_without_the_data_is_passed_over(
    site: Site, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("LOWRANK_OPT_DATA", str(tmp_path / "empty"))
    site.put("/ml-100k.zip", ARCHIVE)
    assert 2 == len(movielens.load("ml-100k"))
    assert ["ml-100k.zip"] == files_in(cache)


def test_wrong_checksum_is_an_error_and_leaves_nothing(site: Site, cache: Path) -> None:
    site.put("/ml-100k.zip", ARCHIVE.replace(b"xxxx", b"yyyy"))
    with pytest.raises(DataError, match=rf"ml-100k\.zip must have the MD5 checksum {MD5}; got .*"):
        movielens.load("ml-100k")
    assert [] == files_in(cache)


def test_partial_body_is_an_error_and_leaves_nothing(site: Site, cache: Path) -> None:
    site.put("/ml-1m.zip", ARCHIVE[:500], length=len(ARCHIVE))
    with pytest.raises(DataError, match=r"ml-1m\.zip must be reachable; got IncompleteRead.*hand"):
        movielens.load("ml-1m")
    assert [] == files_in(cache)


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_error_status_is_an_error_and_leaves_nothing(site: Site, cache: Path, status: int) -> None:
    site.put("/ml-1m.zip", b"<html>", status=status)
    with pytest.raises(DataError, match=f"must be reachable; got HTTPError: HTTP Error {status}"):
        movielens.load("ml-1m")
    assert [] == files_in(cache)


def test_no_network_is_an_error_that_says_what_to_do(cache: Path) -> None:
    with pytest.raises(DataError, match=r"ml-1m\.zip must be reachable; got .*LOWRANK_OPT_DATA"):
        movielens.load("ml-1m")
    assert [] == files_in(cache)


def test_silent_server_is_an_error_after_the_timeout(site: Site, tmp_path: Path) -> None:
    site.delay = 1.0
    site.put("/slow.zip", ARCHIVE)
    url = f"{_download.GROUPLENS}/slow.zip"
    with pytest.raises(DataError, match=r"slow\.zip must be reachable; got TimeoutError"):
        _download.fetch(url, tmp_path / "slow.zip", md5=MD5, timeout=0.1)
    assert [] == files_in(tmp_path)


def test_failed_download_leaves_the_old_file(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "a.zip"
    target.write_bytes(b"old")
    with pytest.raises(DataError, match="HTTP Error 404"):
        _download.fetch(f"{_download.GROUPLENS}/a.zip", target, md5=MD5)
    assert b"old" == target.read_bytes()


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with _download.replacing(tmp_path / "a") as handle:
            handle.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [] == files_in(tmp_path)


def test_file_of_a_killed_download_is_removed(tmp_path: Path) -> None:
    killed, running = tmp_path / "a.zip.1.part", tmp_path / "a.zip.2.part"
    killed.write_bytes(b"half")
    running.write_bytes(b"half")
    os.utime(killed, (0, 0))
    with _download.replacing(tmp_path / "a.zip") as handle:
        handle.write(b"whole")
    assert ["a.zip", "a.zip.2.part"] == files_in(tmp_path)


def test_cache_that_cannot_be_written_is_an_error_before_the_download(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(_download, "cache_folder", lambda: tmp_path / "file" / "cache")
    site.put("/ml-100k.zip", ARCHIVE)
    with pytest.raises(DataError, match=r"must be writable.*NotADirectoryError.*XDG_CACHE_HOME"):
        movielens.load("ml-100k")
    assert [] == site.requests


def test_full_disk_is_an_error_and_leaves_nothing(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    site.put("/ml-100k.zip", ARCHIVE)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"room for ml-100k\.zip; .*No space left.*free space"):
        movielens.load("ml-100k")
    assert [] == files_in(cache)


@pytest.mark.parametrize("form", ["{md5}  ml-latest-small.zip\n", "MD5 (ml.zip) = {md5}\n"])
def test_checksum_is_fetched_where_none_is_pinned(site: Site, cache: Path, form: str) -> None:
    csv = "userId,movieId,rating,timestamp\n1,1,4.5,0\n"
    archive = zipped({"ml-latest-small/ratings.csv": csv})
    site.put("/ml-latest-small.zip", archive)
    md5 = hashlib.md5(archive).hexdigest().upper()
    site.put("/ml-latest-small.zip.md5", form.format(md5=md5).encode())
    assert [4.5] == movielens.load("latest-small").rating.tolist()
    assert ["ml-latest-small.zip"] == files_in(cache)


def test_answer_without_a_checksum_is_an_error(site: Site, cache: Path) -> None:
    site.put("/ml-latest-small.zip.md5", b"<html>moved</html>")
    with pytest.raises(DataError, match=r"md5 must hold an MD5 checksum; got '<html>moved"):
        movielens.load("ml-latest-small")
    assert [] == files_in(cache)


def test_damaged_cache_is_an_error_that_says_to_delete_it(cache: Path) -> None:
    cache.mkdir()
    (cache / "ml-100k.zip").write_bytes(ARCHIVE[:-30])
    with pytest.raises(DataError, match=r"ml-100k\.zip must be a readable.*delete it to have it"):
        movielens.load("ml-100k")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the right name that pip finds, with two ratings."""
    info = "recbole-1.2.1.dist-info"
    content = zipped(
        {
            _wheel.MEMBER: HEADER + LINES,
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n"
            "Requires-Dist: nothing-that-exists\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }
    )
    links = tmp_path / "links"
    links.mkdir()
    path = links / _wheel.WHEEL
    path.write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setattr(_wheel, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    return path


def test_ratings_come_from_the_wheel_without_grouplens(
    wheel: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [5.0, 3.0] == movielens.load("ml-100k").rating.tolist()
    assert ["ml-100k/ml-100k.inter"] == files_in(cache)
    assert "GroupLens cannot be reached" in capsys.readouterr().err
    wheel.unlink()
    assert [5.0, 3.0] == movielens.load("ml-100k").rating.tolist()


def test_wheel_with_another_checksum_is_an_error_and_leaves_nothing(
    wheel: Path, cache: Path
) -> None:
    wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"must have the SHA-256 checksum .*serves another file"):
        movielens.load("ml-100k")
    assert [] == files_in(cache)


def test_wheel_without_the_ratings_is_an_error_and_leaves_nothing(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wheel, "MEMBER", "recbole/elsewhere.inter")
    with pytest.raises(DataError, match=r"must hold recbole/elsewhere\.inter.*by hand"):
        movielens.load("ml-100k")
    assert [] == files_in(cache)


def test_no_index_is_an_error_that_says_what_to_do(cache: Path) -> None:
    with pytest.raises(
        DataError, match=r"pip must be able to download recbole==1\.2\.1.*got: ERROR"
    ):
        movielens.load("ml-100k")
    assert [] == files_in(cache)


def test_missing_pip_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(DataError, match=r"pip must be able.*/no/such/python"):
        movielens.load("ml-100k")


@pytest.mark.parametrize("name", ["ua", "ub"])
def test_split_that_the_wheel_lacks_is_an_error(wheel: Path, cache: Path, name: str) -> None:
    movielens.load("ml-100k")
    with pytest.raises(DataError, match=rf"{name}\.base and .* cannot be rebuilt from the wheel"):
        movielens.split(name)
    assert ["ml-100k/ml-100k.inter"] == files_in(cache)


def test_archive_is_fetched_for_what_the_wheel_lacks(
    wheel: Path, cache: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    assert 2 == len(movielens.load("ml-100k"))
    archive = zipped({"ml-100k/u.user": "1|24|M|technician|85711\n"})
    site.put("/ml-100k.zip", archive)
    md5 = hashlib.md5(archive).hexdigest()
    newer = replace(_variants.find_variant("ml-100k"), md5=md5)
    monkeypatch.setattr(_variants, "VARIANTS", (newer, *_variants.VARIANTS[1:]))
    assert [24, "M", "technician", "85711"] == movielens.users("ml-100k").loc[1].tolist()
    assert ["ml-100k.zip", "ml-100k/ml-100k.inter"] == files_in(cache)


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "{value}"),
        ("win32", "LOCALAPPDATA", "{value}"),
        ("darwin", "XDG_CACHE_HOME", "{home}/Library/Caches"),
    ],
)
def test_cache_folder_follows_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, expected: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    got = _download._user_cache(platform)
    assert Path(expected.format(value=tmp_path, home=Path.home())) == got


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_cache_folder_defaults_to_the_home(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert Path.home() / ".cache" == _download._user_cache("linux")
