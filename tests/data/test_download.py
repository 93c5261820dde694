"""Downloads, against a server on this computer."""

import functools
import hashlib
import http.server
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ika_lightning.data import download
from ika_lightning.data.datasets import DATASETS
from ika_lightning.data.download import RemoteFile, data_root, fetch, find


@pytest.fixture
def server(tmp_path):
    """A folder, and the address at which its files are served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False  # closing it waits for the answers under way

    folder = tmp_path / "served"
    folder.mkdir()
    with Server(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def remote(url: str, stored: bytes, **options) -> RemoteFile:
    return RemoteFile("some/file.csv", url, len(stored), hashlib.sha256(stored).hexdigest(), **options)


def test_data_root(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("IKA_DATA", "/ika")
    assert data_root("/here") == Path("/here")
    assert data_root() == Path("/ika")
    monkeypatch.delenv("IKA_DATA")
    assert data_root() == Path("/cache/ika_lightning")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root() == Path.home() / ".cache" / "ika_lightning"


def test_downloads_converts_and_keeps(server, tmp_path):
    served, address = server
    (served / "raw").write_bytes(b"shout")
    file = remote(f"{address}/raw", b"SHOUT", convert=bytes.upper)
    path = fetch(file, str(tmp_path / "root"))
    assert path == tmp_path / "root" / "some" / "file.csv"
    assert path.read_bytes() == b"SHOUT"
    (served / "raw").unlink()
    assert fetch(file, str(tmp_path / "root")) == path  # not asked for again


def test_an_own_edition_is_used_as_it_is(tmp_path):
    own = tmp_path / "some" / "file.csv"
    own.parent.mkdir()
    own.write_bytes(b"edited")
    assert fetch(remote("http://127.0.0.1:9/raw", b"original"), str(tmp_path)).read_bytes() == b"edited"


def test_a_wrong_file_is_refused_and_leaves_nothing(server, tmp_path):
    served, address = server
    (served / "raw").write_bytes(b"<html>sign in first</html>")
    with pytest.raises(ValueError, match=r"did not give the expected some/file.csv: 26 bytes .* instead of 4 bytes"):
        fetch(remote(f"{address}/raw", b"data"), str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("port_of", ["the server", "nobody"])
def test_out_of_reach(server, tmp_path, port_of):
    address = server[1] if port_of == "the server" else "http://127.0.0.1:9"
    with pytest.raises(FileNotFoundError) as caught:
        fetch(remote(f"{address}/raw", b""), str(tmp_path / "root"))
    message = str(caught.value)
    for part in ("some/file.csv", str(tmp_path / "root"), f"{address}/raw", "--data.root"):
        assert part in message
    assert "\n" not in message


def test_processes_do_not_meet(server, tmp_path):
    served, address = server
    content = bytes(range(256)) * 4096
    (served / "raw").write_bytes(content)
    file = remote(f"{address}/raw", content)
    with ThreadPoolExecutor(7) as pool:
        paths = list(pool.map(lambda _: fetch(file, str(tmp_path / "root")), range(7)))
    assert {path.read_bytes() for path in paths} == {content}
    assert [path.name for path in paths[0].parent.iterdir()] == ["file.csv"]


def test_a_root_that_is_a_file(server, tmp_path):
    (server[0] / "raw").write_bytes(b"data")
    (tmp_path / "root").write_text("a file")
    with pytest.raises(PermissionError, match=r"cannot create .*root/some.*--data.root"):
        fetch(remote(f"{server[1]}/raw", b"data"), str(tmp_path / "root"))


def test_find(tmp_path):
    (tmp_path / "here.txt").write_text("")
    assert find("here.txt", str(tmp_path), otherwise="") == tmp_path / "here.txt"
    with pytest.raises(FileNotFoundError, match=r"no there.txt under the data root .*; ask"):
        find("there.txt", str(tmp_path), otherwise="ask")


def original(name: str, stored: bytes) -> bytes:
    """The stored benchmark, as its public address has it."""
    header, *rows = stored.decode().splitlines()
    if name == "boston":  # aligned with blanks, no header
        return "".join(" " + "  ".join(f"{cell:>7}" for cell in row.split(",")) + "\n" for row in rows).encode()
    if name == "concrete":
        header = "cement,slag,ash,water,superplastic,coarseagg,fineagg,age,strength"
    if name == "parkinsons":
        moved = [[*cells[:5], cells[-1], *cells[5:-1]] for cells in (row.split(",") for row in (header, *rows))]
        header, *rows = [",".join(cells) for cells in moved]
        assert header.startswith("subject,age,sex,test_time,motor_UPDRS,total_UPDRS,Jitter(%)")
        header = header.replace("subject", "subject#")
    return "".join(f"{line}\r\n" for line in (header, *rows)).encode()


@pytest.mark.parametrize("name", ["boston", "concrete", "parkinsons"])
def test_benchmarks_convert_to_the_published_bytes(server, tmp_path, benchmark_root, name):
    served, address = server
    stored = (benchmark_root / "regression" / f"{name}.csv").read_bytes()
    (served / "raw").write_bytes(original(name, stored))
    benchmark = DATASETS[name].files["table"]
    path = fetch(replace(benchmark, url=f"{address}/raw"), str(tmp_path / "root"))
    assert path.read_bytes() == stored


@pytest.mark.parametrize("name", ["boston", "concrete", "parkinsons"])
def test_benchmarks_survive_an_error_page(name):
    assert isinstance(DATASETS[name].files["table"].convert(b"<html>\xff\n,</html>"), bytes)
    assert isinstance(DATASETS[name].files["table"].convert(b""), bytes)


def test_a_server_that_hangs(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(FileNotFoundError, match="could not be downloaded"),
    ):
        fetch(remote(f"http://127.0.0.1:{silent.getsockname()[1]}/raw", b""), str(tmp_path))
