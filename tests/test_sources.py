"Fetching, checking and unpacking, against a server on this machine that misbehaves on demand."

import errno
import hashlib
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from neurocompanion import core
from neurocompanion.core import SourceError
from neurocompanion.recordings import archives, download, sources
from neurocompanion.recordings.sources import (
    Source,
    available,
    fetch,
    fetch_all,
    registry,
    unpack,
    verify,
)

BODY = bytes(i * 7 % 251 for i in range(400_000))


def sha(data):
    return hashlib.sha256(data).hexdigest()


class Server:
    "Files by path, a log of (path, range, status, bytes sent), and faults to switch on."

    def __init__(self):
        self.files, self.types, self.rows = {}, {}, []  # a row is [None] while it is answered
        self.cut = None  # hang up after so many bytes of a body, once
        self.ranges = True  # answer a Range with 206
        self.etag = "crc"  # "crc": a strong one; "weak"; "date": Last-Modified; None
        self.if_range = True  # honour If-Range
        self.length = True  # send Content-Length
        self.pause = 0  # seconds between pieces
        self.links = {}  # path -> Link header
        self.redirect = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                cell = [None]
                server.rows.append(cell)
                row = ("", None, 0, 0)
                try:
                    row = server.answer(self)
                finally:
                    cell[0] = row

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *args: None  # a client that was killed
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    @property
    def log(self):
        "The rows in the order of the requests, once all of them are answered."
        end = time.time() + 10
        while [None] in self.rows and time.time() < end:
            time.sleep(0.005)
        return [row for (row,) in self.rows if row and row[2]]

    def tag(self, body):
        return {"crc": f'"{sha(body)[:8]}"', "weak": f'W/"{sha(body)[:8]}"'}.get(self.etag)

    def answer(self, h):
        if h.path in self.redirect:
            h.send_response(302)
            h.send_header("Location", self.redirect[h.path])
            h.send_header("Content-Length", "0")
            h.end_headers()
            return "", None, 0, 0  # a redirect is not counted
        body = self.files.get(h.path)
        if isinstance(body, int) or body is None:
            h.send_error(body or 404)
            return h.path, None, body or 404, 0
        wants, tag = h.headers.get("Range"), self.tag(body)
        if not self.ranges:
            wants = None
        date = "Fri, 01 Sep 2023 10:00:00 GMT" if self.etag == "date" else None
        if self.if_range and h.headers.get("If-Range") not in (None, tag or date):
            wants = None
        start = int(re.fullmatch(r"bytes=(\d+)-", wants)[1]) if wants else 0
        if wants and start >= len(body):
            h.send_response(416)
            h.send_header("Content-Range", f"bytes */{len(body)}")
            h.send_header("Content-Length", "0")
            h.end_headers()
            return h.path, h.headers.get("Range"), 416, 0
        h.send_response(206 if wants else 200)
        if wants:
            h.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if tag:
            h.send_header("ETag", tag)
        if date:
            h.send_header("Last-Modified", date)
        if h.path in self.links:
            h.send_header("Link", self.links[h.path])
        if self.length:
            h.send_header("Content-Length", len(body) - start)
        else:
            h.send_header("Connection", "close")
            h.close_connection = True
        h.end_headers()
        piece, cut = body[start:], self.cut
        if cut is not None:
            piece, self.cut, h.close_connection = piece[:cut], None, True
        sent = 0
        try:
            for i in range(0, len(piece), 20_000):
                h.wfile.write(piece[i : i + 20_000])
                sent = min(i + 20_000, len(piece))
                if self.pause:
                    h.wfile.flush()
                    time.sleep(self.pause)
        except OSError:
            pass
        return h.path, h.headers.get("Range"), 206 if wants else 200, sent

    def sent(self):
        return sum(row[3] for row in self.log)


@pytest.fixture
def server():
    s = Server()
    yield s
    s.http.shutdown()
    s.http.server_close()


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    "Each test has a cache and a home of its own, no mirror, and no retries."
    monkeypatch.setenv("NEUROCOMPANION_CACHE", str(tmp_path / "cache"))
    for key in (
        "NEUROCOMPANION_MIRROR",
        "NEUROCOMPANION_REGISTRY",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(download, "RETRIES", 0)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("NEUROCOMPANION_MIRROR", str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def big(server, body=BODY, **facts):
    "A source whose bytes the server has; its checksum is the right one unless given."
    server.files["/big.bin"] = body
    return Source(
        "big",
        "lab/big.bin",
        server.url + "/big.bin",
        **{"bytes": len(body), "sha256": sha(body)} | facts,
    )


def files(folder):
    return sorted(p.name for p in folder.iterdir())


# ---- downloads


def test_full_download(server, cache):
    path = fetch(big(server))
    assert path == cache / "lab" / "big.bin" and path.read_bytes() == BODY
    assert files(path.parent) == ["big.bin"]
    assert server.log == [("/big.bin", None, 200, len(BODY))]


def test_second_fetch_uses_the_cache(server):
    source = big(server)
    assert fetch(source) == fetch(source)
    assert len(server.log) == 1


@pytest.mark.parametrize("etag", ["crc", "weak", "date", None])
def test_resume_after_a_cut(server, cache, etag):
    server.etag, server.cut = etag, 150_000
    source = big(server)
    with pytest.raises(
        SourceError, match="the connection broke: found 150,000 of 400,000 bytes.*goes on from"
    ):
        fetch(source)
    assert (cache / "lab/big.bin.part").stat().st_size == 150_000
    assert not (cache / "lab/big.bin").exists()
    assert fetch(source).read_bytes() == BODY
    assert server.log[1] == ("/big.bin", "bytes=150000-", 206, 250_000)
    assert server.sent() == len(BODY)
    assert files(cache / "lab") == ["big.bin"]


def test_a_cut_goes_on_by_itself(server, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 1)
    server.cut = 10
    assert fetch(big(server)).read_bytes() == BODY
    assert server.sent() == len(BODY) and len(server.log) == 2


def test_small_file_loses_nothing_of_a_cut(server):
    server.cut = 333
    source = big(server, BODY[:1000])
    with pytest.raises(SourceError):
        fetch(source)
    assert fetch(source).read_bytes() == BODY[:1000]
    assert server.sent() == 1000


def test_server_without_ranges_starts_over(server):
    server.cut, server.ranges = 150_000, False
    source = big(server)
    with pytest.raises(SourceError):
        fetch(source)
    assert fetch(source).read_bytes() == BODY
    assert server.log[1][1:] == ("bytes=150000-", 200, len(BODY))


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("checksum", [True, False])
def test_file_that_changed_in_between_starts_over(server, if_range, checksum):
    server.cut, server.if_range = 150_000, if_range
    new = BODY[::-1]
    source = big(server, sha256=sha(new) if checksum else "")
    with pytest.raises(SourceError, match="the connection broke"):
        fetch(source)
    server.files["/big.bin"] = new
    assert fetch(source).read_bytes() == new


def test_nothing_is_continued_without_tag_and_checksum(server):
    server.etag, server.cut = None, 150_000
    source = big(server, sha256="")
    with pytest.raises(SourceError):
        fetch(source)
    assert fetch(source).read_bytes() == BODY
    assert server.log[1][1:3] == (None, 200)


def test_damaged_part_starts_over_once(server, cache):
    server.etag = None
    part = cache / "lab/big.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert fetch(big(server)).read_bytes() == BODY
    assert [row[2] for row in server.log] == [206, 200]


@pytest.mark.parametrize("length", [len(BODY), len(BODY) + 5])
def test_part_that_is_whole_or_too_long(server, cache, length):
    part = cache / "lab/big.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((BODY + b"12345")[:length])
    assert fetch(big(server)).read_bytes() == BODY


def test_without_content_length(server):
    server.length = False
    assert fetch(big(server)).read_bytes() == BODY


def test_cut_without_content_length_is_seen_by_the_registered_size(server):
    server.length, server.cut = False, 100
    with pytest.raises(SourceError, match="the connection broke"):
        fetch(big(server))


def test_redirect(server):
    source = big(server)
    server.redirect["/old"] = server.url + "/big.bin"
    assert fetch(Source("b", "b", server.url + "/old", sha256=source.sha256)).read_bytes() == BODY


@pytest.mark.parametrize(
    "status, words", [(404, "404 Not Found"), (403, "403 Forbidden"), (503, "503 Service")]
)
def test_refusals_say_what_to_bring(server, cache, status, words):
    source = big(server)
    server.files["/big.bin"] = status
    with pytest.raises(SourceError) as e:
        fetch(source)
    text = str(e.value)
    assert words in text and source.sha256 in text and "400,000 bytes" in text
    assert str(cache / "lab/big.bin") in text and "NEUROCOMPANION_MIRROR" in text
    assert not (cache / "lab/big.bin").exists()


def test_offline_names_mirror_and_cache(server, mirror, cache):
    source = Source("x", "lab/x.bin", "http://127.0.0.1:9/x", sha256="a" * 64, bytes=12)
    with pytest.raises(SourceError) as e:
        fetch(source)
    for part in (
        "127.0.0.1:9 cannot be reached",
        "lab/x.bin",
        "12 bytes",
        "a" * 64,
        f"anywhere under {mirror}",
        str(cache),
    ):
        assert part in str(e.value)


@pytest.mark.parametrize("url", ["not a url", "file:///etc/passwd", "http://"])
def test_bad_urls(url):
    with pytest.raises(SourceError, match="cannot be reached"):
        fetch(Source("x", "x", url))


def test_wrong_checksum_is_set_aside(server, cache):
    wrong = BODY[:-1] + b"!"
    source = big(server)
    server.files["/big.bin"] = wrong
    with pytest.raises(
        SourceError, match=f"wrong checksum: expected SHA-256 {sha(BODY)}, found {sha(wrong)}"
    ):
        fetch(source)
    assert files(cache / "lab") == [f"big.bin.wrong-{sha(wrong)[:8]}"]
    server.files["/big.bin"] = BODY
    assert fetch(source).read_bytes() == BODY


def test_wrong_md5_is_set_aside(server, cache):
    source = big(server, sha256="", md5="0" * 32)
    with pytest.raises(SourceError, match="wrong checksum: expected MD5 000"):
        fetch(source)
    assert files(cache / "lab") == [f"big.bin.wrong-{hashlib.md5(BODY).hexdigest()[:8]}"]


def test_damaged_cache_is_an_error_then_fetched_anew(server, cache):
    source = big(server)
    path = fetch(source)
    path.write_bytes(b"!" + BODY[1:])  # the same size, at once
    with pytest.raises(SourceError, match="wrong checksum"):
        fetch(source)
    assert not path.exists() and len(files(path.parent)) == 1
    assert fetch(source).read_bytes() == BODY


def test_unknown_checksum_is_recorded_told_and_enforced(server, cache, capsys):
    source = big(server, sha256="", bytes=None)
    path = fetch(source)
    assert sha(BODY) in capsys.readouterr().err
    assert sha(BODY) in (cache / "checksums.csv").read_text()
    fetch(source)
    assert capsys.readouterr().err == ""
    path.unlink()
    server.files["/big.bin"] = b"something else"
    with pytest.raises(SourceError, match=f"wrong checksum: expected SHA-256 {sha(BODY)}"):
        fetch(source)
    server.files["/big.bin"] = BODY
    path = fetch(source)
    path.write_bytes(b"tampered")
    with pytest.raises(SourceError, match="wrong checksum"):
        fetch(source)


# ---- interruptions, other processes, the disk

RUN = """
import sys
from neurocompanion.recordings.sources import Source, fetch
url, size, sha256 = sys.argv[1:]
print(fetch(Source("big", "lab/big.bin", url, bytes=size, sha256=sha256), progress=False))
"""


def start(source):
    args = [sys.executable, "-c", RUN, source.url, str(source.bytes), source.sha256]
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "it did not happen"
        time.sleep(0.01)


def test_two_processes_one_download(server, cache):
    server.pause = 0.02
    source = big(server)
    both = [start(source), start(source)]
    told = [p.communicate(timeout=60) for p in both]
    assert [p.returncode for p in both] == [0, 0], told
    assert {out.strip() for out, _ in told} == {str(cache / "lab/big.bin")}
    assert (cache / "lab/big.bin").read_bytes() == BODY
    assert server.sent() == len(BODY)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_download_goes_on(server, cache, sign):
    server.pause = 0.05
    source, part = big(server), cache / "lab/big.bin.part"
    process = start(source)
    wait_for(lambda: part.exists() and part.stat().st_size > 60_000)
    process.send_signal(sign)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert not (cache / "lab/big.bin").exists()
    had, server.pause = part.stat().st_size, 0
    assert 60_000 < had < len(BODY)
    assert fetch(source).read_bytes() == BODY
    assert server.log[-1][1] == f"bytes={had}-"
    assert files(cache / "lab") == ["big.bin"]


def failing_open(real, number, after):
    "An `open` whose files of the name *.part fail once so many bytes are written."

    class Failing:
        def __init__(self, f):
            self.f, self.left = f, after

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.f.close()

        def __getattr__(self, name):
            return getattr(self.f, name)

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(number, os.strerror(number))
            return self.f.write(data)

    return lambda path, mode="r", *a, **k: (
        Failing(real(path, mode, *a, **k))
        if str(path).endswith(".part") and mode != "r"
        else real(path, mode, *a, **k)
    )


def test_disk_full_is_told_and_the_part_kept(server, cache, monkeypatch):
    source = big(server)
    monkeypatch.setattr(download, "open", failing_open(open, errno.ENOSPC, 200_000), raising=False)
    with pytest.raises(
        SourceError, match="big.bin: the disk is full: found .* bytes free. Free some space"
    ):
        fetch(source)
    assert 0 < (cache / "lab/big.bin.part").stat().st_size <= 200_000
    monkeypatch.undo()
    os.environ["NEUROCOMPANION_CACHE"] = str(cache)
    try:
        assert fetch(source).read_bytes() == BODY
    finally:
        del os.environ["NEUROCOMPANION_CACHE"]
    assert server.sent() < 2 * len(BODY)


def test_too_little_room_is_said_before(server, cache, monkeypatch):
    monkeypatch.setattr(download, "free_bytes", lambda path: 1000)
    with pytest.raises(
        SourceError, match="the disk is full: expected 400,000 bytes free, found 1,000"
    ):
        fetch(big(server))


def test_permission_is_told(server, monkeypatch):
    monkeypatch.setattr(download, "open", failing_open(open, errno.EACCES, -1), raising=False)
    with pytest.raises(
        SourceError, match="the disk refuses: found Permission denied. Set NEUROCOMPANION_CACHE"
    ):
        fetch(big(server))


def test_a_file_in_place_of_the_cache(server, cache):
    cache.write_text("in the way")
    with pytest.raises(SourceError, match="the disk refuses.*Set NEUROCOMPANION_CACHE"):
        fetch(big(server))


# ---- the mirror


def test_mirror_by_checksum_without_network(mirror, cache, no_network):
    (mirror / "any/where").mkdir(parents=True)
    for i in range(3):
        (mirror / f"any/decoy{i}").write_bytes(bytes([i + 1]) + BODY[1:])  # right size, other bytes
    there = mirror / "any/where/renamed.dat"
    there.write_bytes(BODY)
    source = Source("big", "lab/big.bin", "http://127.0.0.1:9/", bytes=len(BODY), sha256=sha(BODY))
    assert fetch(source) == there
    assert not (cache / "lab").exists()


def test_mirror_reads_only_files_of_the_right_size_and_once(mirror, monkeypatch, no_network):
    (mirror / "right").write_bytes(BODY)
    (mirror / "small").write_bytes(b"1")
    os.utime(mirror / "right", (1e9, 1e9))
    read = []
    monkeypatch.setattr(
        sources, "sha256_of", lambda path: read.append(path.name) or core.sha256(path)
    )
    source = Source("big", "lab/big.bin", bytes=len(BODY), sha256=sha(BODY))
    for _ in range(3):
        fetch(source)
    assert read == ["right"]
    sources._hashes.clear()  # as a new process would
    fetch(source)
    assert read == ["right"]


def test_mirror_without_a_known_size(mirror, no_network):
    (mirror / "x").write_bytes(BODY)
    assert fetch(Source("big", "lab/big.bin", sha256=sha(BODY))) == mirror / "x"


def test_mirror_comes_before_the_cache_and_a_wrong_name_is_passed_over(server, mirror, cache):
    source = big(server)
    (mirror / "lab").mkdir()
    (mirror / "lab/big.bin").write_bytes(b"another file of that name")
    assert fetch(source) == cache / "lab/big.bin"
    (mirror / "x").write_bytes(BODY)
    assert fetch(source) == mirror / "x"


def test_another_file_of_that_name_is_mentioned(mirror):
    (mirror / "big.bin").write_bytes(b"old")
    with pytest.raises(SourceError, match="in the mirror another file of that name"):
        fetch(Source("big", "big.bin", bytes=3, sha256=sha(BODY)))


def test_mirror_that_loops_and_cannot_be_read(mirror, no_network):
    (mirror / "loop").symlink_to(mirror)
    (mirror / "gone").symlink_to(mirror / "nowhere")
    (mirror / "x").write_bytes(BODY)
    assert fetch(Source("big", "b", bytes=len(BODY), sha256=sha(BODY))).name == "x"


def test_mirror_works_with_a_cache_that_cannot_be_written(mirror, cache, no_network):
    cache.write_text("in the way")
    (mirror / "x").write_bytes(BODY)
    assert fetch(Source("big", "b", bytes=len(BODY), sha256=sha(BODY))) == mirror / "x"


def test_mirror_by_place_where_no_checksum_is_known(mirror, cache, no_network, capsys):
    (mirror / "nichols2017").mkdir()
    (mirror / "nichols2017/n2_let.mat").write_bytes(BODY)
    assert fetch("nichols2017/n2_let") == mirror / "nichols2017/n2_let.mat"
    assert "recorded" in capsys.readouterr().err
    (mirror / "nichols2017/n2_let.mat").rename(mirror / "elsewhere.mat")
    assert fetch("nichols2017/n2_let") == mirror / "elsewhere.mat"


def test_missing_mirror_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("NEUROCOMPANION_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="the mirror is not a folder"):
        fetch("kato2015")


# ---- names, groups, the registry


@pytest.fixture
def lab(tmp_path, monkeypatch, server):
    "A registry of a lab's own: a group of three files, one of them deeper."
    rows = ["name,file,url,bytes,sha256"]
    for name in ("a", "b", "deep/c"):
        body = name.encode() * 100
        server.files[f"/{name}"] = body
        rows.append(f"lab/{name},lab/{name}.bin,{server.url}/{name},{len(body)},{sha(body)}")
    (tmp_path / "lab.csv").write_text("\n".join(rows))
    monkeypatch.setenv("NEUROCOMPANION_REGISTRY", str(tmp_path / "lab.csv"))


def test_group_gives_its_folder(lab, cache):
    assert fetch("lab") == cache / "lab"
    assert fetch("lab/deep") == cache / "lab/deep"
    assert [p.name for p in fetch_all("lab")] == ["a.bin", "b.bin", "c.bin"]
    assert fetch("lab/a") == fetch("lab/a.bin") == cache / "lab/a.bin"


def test_group_in_a_mirror_in_place_or_by_links(lab, cache, mirror, no_network):
    for name in ("a", "b", "deep/c"):
        (mirror / name.replace("/", "_")).write_bytes(name.encode() * 100)
    assert fetch("lab") == cache / "lab"
    assert (cache / "lab/deep/c.bin").read_bytes() == b"deep/c" * 100
    assert fetch("lab") == cache / "lab"  # links are there already
    (cache / "lab/a.bin").unlink()
    (cache / "lab/a.bin").write_bytes(b"in the way")
    assert fetch("lab") == cache / "lab" and (cache / "lab/a.bin").read_bytes() == b"a" * 100
    (mirror / "lab/deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c"):
        (mirror / "lab" / f"{name}.bin").write_bytes(name.encode() * 100)
    assert fetch("lab") == mirror / "lab"


def test_available(lab, cache, mirror):
    (mirror / "x").write_bytes(b"a" * 100)
    fetch("lab/b")
    table = available("lab")
    assert list(table["name"]) == ["lab/a", "lab/b", "lab/deep/c"]
    assert list(table["where"]) == ["mirror", "cache", "nowhere"]
    assert list(available("lab/a")["where"]) == ["mirror"]
    assert set(available()["where"]) <= {"mirror", "cache", "nowhere"}


@pytest.mark.parametrize(
    "name, words",
    [
        ("kato", "Did you mean kato2015"),
        ("KATO2015", "kato2015"),
        ("lorentz_synthetic", "lorenz_synthetic"),
        ("qqq", "lists them"),
        ("", "lists them"),
        ("ibl_repeated_site", "for the star of ibl_repeated_site/*"),
        ("ibl_repeated_site/*", "for the star of ibl_repeated_site/*"),
        ("../etc/passwd", "no recording"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(SourceError) as e:
        fetch(name)
    assert words in str(e.value)


def test_registry_is_whole():
    rows = registry()
    assert {
        "kato2015",
        "kato2015_stim",
        "flavell2023/2022-07-26-31",
        "lorenz_synthetic",
        "nlb/mc_maze",
        "zapbench/traces",
    } <= set(rows)
    for s in rows.values():
        assert s.licence and s.citation, s.name
        assert not s.sha256 or re.fullmatch("[0-9a-f]{64}", s.sha256)
        assert s.url or s.resolver or "copy" in s.note, s.name
        assert s.original == "" or s.original in rows
        assert not s.url.startswith("https://raw.") or (s.sha256 and s.bytes)
        if s.resolver and s.resolver != "zarr":
            assert s.resolver.split(":")[0] in download.HOSTS


@pytest.mark.parametrize(
    "text, words",
    [
        ("file\nx\n", "not a registry's line"),
        ("name,bytes\nx,1.5\n", "line 2"),
        ("name\nx\nx\n", "stands twice"),
        ("name,file\nx,../../y\n", "leaves the cache"),
        ("name,file\nx,/etc/passwd\n", "leaves the cache"),
        ("name,bytes\nx,-5\n", "line 2: not a registry's line"),
        ("name,sha256\nx,ba78\n", "a SHA-256 of 64 digits"),
        ("name,citation,reader\nx,Kato et al., Cell 163,worm\n", "no more cells than columns"),
    ],
)
def test_broken_registries(tmp_path, text, words):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(SourceError, match=words):
        registry(tmp_path / "r.csv")


def test_a_registry_that_is_no_text(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"\xff\xfename")
    with pytest.raises(SourceError, match="registry cannot be read: expected a table in UTF-8"):
        registry(tmp_path / "r.csv")


def test_an_address_that_is_none(cache):
    for url in ("worm.mat", "file:///etc/hostname", "http://"):
        with pytest.raises(SourceError, match="found no web address"):
            fetch(Source("x", "x.mat", url=url))


def test_a_mirror_with_folders_that_cannot_be_entered(tmp_path, monkeypatch):
    "A folder may be listed though its files may not be looked at."
    (tmp_path / "worm.mat").write_bytes(BODY)
    denied = tmp_path / "denied.mat"
    denied.write_bytes(BODY)
    real = os.stat

    def refuse(path, *args, **kwargs):
        if str(path) == str(denied): raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setenv("NEUROCOMPANION_MIRROR", str(tmp_path))
    found = fetch(Source("x", "lab/x.mat", bytes=len(BODY), sha256=sha(BODY)))
    assert found == tmp_path / "worm.mat"


def test_rebuilt_copy_falls_back_to_its_original(server, monkeypatch, capsys, cache):
    monkeypatch.setitem(download.HOSTS, "osf", server.url)
    server.files["/k"] = BODY
    server.files["/nodes/2395t/files/osfstorage/"] = json.dumps(
        {"data": [osf_file(server, "WT_NoStim.mat", "/k", BODY)], "links": {}}
    ).encode()
    assert fetch("kato2015") == cache / "kato2015_original/WT_NoStim.mat"
    assert "its original kato2015_original is fetched" in capsys.readouterr().err
    with pytest.raises(SourceError, match="public original is steinmetz2019_original"):
        fetch("steinmetz2019/session01")


def test_rebuilt_copy_and_original_both_out_of_reach(monkeypatch):
    monkeypatch.setitem(download.HOSTS, "osf", "http://127.0.0.1:9")
    with pytest.raises(
        SourceError,
        match="kato2015: neither this rebuilt copy nor.*13,968,333 bytes.*cannot be reached",
    ):
        fetch("kato2015")


# ---- publishers


def osf_file(server, name, at, body, hashes=True):
    extra = (
        {"hashes": {"sha256": sha(body), "md5": hashlib.md5(body).hexdigest()}} if hashes else {}
    )
    return {
        "id": "id" + name,
        "type": "files",
        "links": {"download": server.url + at},
        "attributes": {"name": name, "kind": "file", "size": len(body), "extra": extra},
    }


@pytest.fixture
def publishers(server, monkeypatch):
    "Every publisher, in the shapes they document; b.bin is in a folder or on a second page."
    u, a, b = server.url, b"A" * 100, b"B" * 200
    for key in download.HOSTS:
        monkeypatch.setitem(download.HOSTS, key, f"{u}/{key}")
    server.files |= {"/a": a, "/b": b}
    folder = {
        "attributes": {"name": "sub", "kind": "folder"},
        "relationships": {"files": {"links": {"related": {"href": u + "/osf/sub"}}}},
    }
    md5 = {x: hashlib.md5(body).hexdigest() for x, body in (("a", a), ("b", b))}
    assets = "/dandi/dandisets/000128/versions/draft/assets/"
    tree = "/hf/api/datasets/owner/name/tree/main?recursive=1"
    pages = {
        "/osf/nodes/abc/files/osfstorage/": {"data": [folder], "links": {"next": u + "/osf/2"}},
        "/osf/2": {"data": [osf_file(server, "a.bin", "/a", a)], "links": {"next": None}},
        "/osf/sub": {"data": [osf_file(server, "b.bin", "/b", b)], "links": {"next": None}},
        "/zenodo/records/77": {
            "files": [
                {
                    "key": f"{x}.bin" if x == "a" else "sub/b.bin",
                    "size": n,
                    "checksum": "md5:" + md5[x],
                    "links": {"self": f"{u}/{x}"},
                }
                for x, n in (("a", 100), ("b", 200))
            ]
        },
        "/figshare/articles/77": {
            "files": [
                {
                    "name": f"{x}.bin" if x == "a" else "sub/b.bin",
                    "size": n,
                    "computed_md5": md5[x],
                    "download_url": f"{u}/{x}",
                }
                for x, n in (("a", 100), ("b", 200))
            ]
        },
        assets: {
            "next": u + assets + "?page=2",
            "results": [{"asset_id": "ia", "path": "a.bin", "size": 100}],
        },
        assets + "?page=2": {
            "next": None,
            "results": [{"asset_id": "ib", "path": "sub/b.bin", "size": 200}],
        },
        "/dandi/assets/ia/": {"digest": {"dandi:sha2-256": sha(a)}},
        "/dandi/assets/ib/": {"digest": {"dandi:dandi-etag": "x"}},
        tree: [
            {"type": "directory", "path": "sub", "size": 0, "oid": "0"},
            {
                "type": "file",
                "path": "a.bin",
                "size": 100,
                "oid": "0",
                "lfs": {"oid": sha(a), "size": 100},
            },
        ],
        "/hf/more": [{"type": "file", "path": "sub/b.bin", "size": 200, "oid": "0"}],
    }
    server.links[tree] = f'<{u}/hf/more>; rel="next"'
    server.files |= {path: json.dumps(page).encode() for path, page in pages.items()}
    server.files |= {
        "/dandi/assets/ia/download/": a,
        "/dandi/assets/ib/download/": b,
        "/hf/datasets/owner/name/resolve/main/a.bin": a,
        "/hf/datasets/owner/name/resolve/main/sub/b.bin": b,
    }
    return server


KINDS = ["osf:abc", "zenodo:77", "figshare:77", "dandi:000128", "hf:owner/name"]


@pytest.mark.parametrize("resolver", KINDS)
def test_publisher_folder(publishers, resolver, cache):
    source = Source("pub", "pub/", resolver=resolver)
    assert fetch(source) == cache / "pub"
    assert (cache / "pub/a.bin").read_bytes() == b"A" * 100 and (
        cache / "pub/sub/b.bin"
    ).read_bytes() == b"B" * 200
    before = len(publishers.log)
    assert sorted(p.name for p in fetch_all(source)) == ["a.bin", "b.bin"]
    assert len(publishers.log) == before  # listing and files are in the cache


@pytest.mark.parametrize("resolver", KINDS)
def test_one_file_of_a_publisher(publishers, resolver, cache):
    path = fetch(Source("one", "one/b.bin", resolver=resolver + "/sub/b.bin"))
    assert path == cache / "one/b.bin" and path.read_bytes() == b"B" * 200
    with pytest.raises(SourceError, match="lists no such file"):
        fetch(Source("no", "no.bin", resolver=resolver + "/c.bin"))


@pytest.mark.parametrize("resolver", KINDS)
def test_published_checksum_is_enforced(publishers, resolver):
    for path in list(publishers.files):
        if publishers.files[path] == b"A" * 100:
            publishers.files[path] = b"X" * 100
    with pytest.raises(SourceError, match="wrong checksum"):
        fetch(Source("one", "a.bin", resolver=resolver + "/a.bin"))


def test_published_checksum_finds_the_mirror(publishers, mirror):
    (mirror / "renamed").write_bytes(b"A" * 100)
    assert fetch(Source("one", "a.bin", resolver="osf:abc/a.bin")) == mirror / "renamed"
    assert not any(row[0] == "/a" for row in publishers.log)


def test_file_by_its_id(publishers):
    assert fetch(Source("one", "a.bin", resolver="osf:abc/ida.bin")).read_bytes() == b"A" * 100


def test_names_inside_a_publishers_folder(publishers, tmp_path, monkeypatch, cache):
    (tmp_path / "r.csv").write_text(
        "name,file,resolver\npub,pub/,osf:abc\nmany/*,many/*/,zenodo:*\n"
    )
    monkeypatch.setenv("NEUROCOMPANION_REGISTRY", str(tmp_path / "r.csv"))
    assert fetch("pub/a.bin") == cache / "pub/a.bin"
    assert not (cache / "pub/sub").exists()  # only what was asked for
    assert fetch("pub/sub") == cache / "pub/sub"
    assert fetch("many/77/a.bin") == cache / "many/77/a.bin"
    with pytest.raises(
        SourceError, match="lists no such file: found a.bin, sub/b.bin|found sub/b.bin, a.bin"
    ):
        fetch("pub/c.bin")


def test_listing_is_kept_and_half_a_folder_is_not_available(
    publishers, tmp_path, monkeypatch, cache
):
    (tmp_path / "r.csv").write_text("name,file,resolver\npub,pub/,osf:abc\n")
    monkeypatch.setenv("NEUROCOMPANION_REGISTRY", str(tmp_path / "r.csv"))
    fetch("pub/a.bin")
    assert list(available("pub")["where"]) == ["nowhere"]
    fetch("pub")
    assert list(available("pub")["where"]) == ["cache"]


def test_folder_brought_by_hand(mirror, no_network):
    (mirror / "uzel2022").mkdir()
    (mirror / "uzel2022/Uzel_WT.mat").write_bytes(BODY)
    assert fetch("uzel2022") == mirror / "uzel2022"
    assert fetch("uzel2022/Uzel_WT.mat") == mirror / "uzel2022/Uzel_WT.mat"


@pytest.mark.parametrize(
    "answer",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"data": 3, "links": {}}',
        b'{"data": [{"attributes": {}}], "links": {}}',
    ],
)
def test_odd_answers(server, monkeypatch, answer):
    monkeypatch.setitem(download.HOSTS, "osf", server.url)
    server.files["/nodes/abc/files/osfstorage/"] = answer
    with pytest.raises(SourceError, match="in a form that is not known here"):
        fetch(Source("x", "x", resolver="osf:abc/y"))


def test_a_publisher_cannot_write_outside(server, monkeypatch, tmp_path):
    monkeypatch.setitem(download.HOSTS, "osf", server.url)
    evil = osf_file(server, "../../evil.bin", "/k", BODY)
    server.files |= {
        "/k": BODY,
        "/nodes/abc/files/osfstorage/": json.dumps({"data": [evil], "links": {}}).encode(),
    }
    with pytest.raises(SourceError, match="leaves the cache"):
        fetch(Source("x", "x/", resolver="osf:abc"))
    assert not list(tmp_path.rglob("evil*"))


def test_zarr_and_unknown_resolvers(cache):
    with pytest.raises(SourceError, match="read chunk by chunk"):
        fetch("zapbench/traces")
    (cache / "zapbench/traces/c/0").mkdir(parents=True)
    assert fetch("zapbench/traces") == cache / "zapbench/traces"
    assert list(available("zapbench/traces")["where"]) == ["cache"]
    with pytest.raises(SourceError, match="resolver that is not known"):
        fetch(Source("x", "x", resolver="ftp:x"))


# ---- archives


def tar(path, *members, mode="w"):
    with tarfile.open(path, mode) as t:
        for name, kind, content, *more in members:
            m = tarfile.TarInfo(name)
            m.type, m.mode = kind, more[0] if more else 0o644
            if kind == tarfile.REGTYPE:
                m.size = len(content)
            else:
                m.linkname = content
            t.addfile(m, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return path


def zipped(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content, mode in members:
            m = zipfile.ZipInfo(name)
            m.external_attr = mode << 16
            m.create_system, m.compress_type = 3, zipfile.ZIP_DEFLATED
            z.writestr(m, content)
    return path


REG, SYM, LNK, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_unpack_tar(tmp_path, mode):
    path = tar(
        tmp_path / "x.bin",
        ("./d", DIR, ""),
        ("d/a", REG, b"A"),
        ("d/s", SYM, "a"),
        ("up", SYM, "d/../d/a"),
        ("h", LNK, "d/a"),
        ("d/e/back", SYM, "../a"),
        mode=mode,
    )
    out = unpack(path, tmp_path / "out")
    assert out == tmp_path / "out"
    assert {
        p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()
    } == dict.fromkeys(["d/a", "d/s", "up", "h", "d/e/back"], b"A")


def test_unpack_zip(tmp_path):
    path = zipped(
        tmp_path / "x.bin",
        ("d/", b"", stat.S_IFDIR | 0o755),
        ("d/a", b"A", stat.S_IFREG | 0o644),
        ("s", b"d/a", stat.S_IFLNK | 0o777),
        ("plain", b"P", 0),
    )
    out = unpack(path, tmp_path / "deep/er/out")
    assert (
        (out / "s").read_bytes() == b"A"
        and (out / "s").is_symlink()
        and (out / "plain").read_bytes() == b"P"
    )


EVIL_TARS = {
    "climbs": [("../evil", REG, b"x")],
    "climbs later": [("a/../../evil", REG, b"x")],
    "absolute": [("/tmp/evil_nc", REG, b"x")],
    "windows": [("..\\evil", REG, b"x")],
    "drive": [("C:evil", REG, b"x")],
    "directory": [("../evil", DIR, "")],
    "symlink out": [("s", SYM, "../..")],
    "symlink absolute": [("s", SYM, "/etc/passwd")],
    "write through a symlink": [("s", SYM, "../.."), ("s/evil", REG, b"x")],
    "write through an inner symlink": [("d", DIR, ""), ("s", SYM, "d"), ("s/x", REG, b"x")],
    "link in a link": [("s", SYM, "."), ("s/t", SYM, "x")],
    "two links": [("x", SYM, "y/.."), ("y", SYM, ".")],
    "chain": [("d", DIR, ""), ("d/x", SYM, ".."), ("y", SYM, "d/x/..")],
    "hard link out": [("h", LNK, "../secret")],
    "hard link absolute": [("h", LNK, "/etc/passwd")],
    "hard link to a symlink": [("s", SYM, "../secret"), ("h", LNK, "s")],
    "hard link to nothing": [("h", LNK, "nothing")],
    "replace a file": [("a", REG, b"A"), ("a", SYM, "b")],
    "fifo": [("f", tarfile.FIFOTYPE, "")],
    "device": [("f", tarfile.CHRTYPE, "")],
    "block device": [("f", tarfile.BLKTYPE, "")],
}


@pytest.mark.parametrize("cheat", EVIL_TARS)
def test_evil_tars(tmp_path, cheat):
    box = tmp_path / "box"
    box.mkdir()
    (box / "secret").write_text("secret")
    path = tar(box / "x.tar", *EVIL_TARS[cheat])
    with pytest.raises(SourceError):
        unpack(path, box / "out")
    assert files(box) == ["secret", "x.tar"] and (box / "secret").read_text() == "secret"
    assert not Path("/tmp/evil_nc").exists() and files(tmp_path) == ["box"]


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", b"x", 0)],
        [("/tmp/evil_nc", b"x", 0)],
        [("a\\..\\..\\evil", b"x", 0)],
        [("s", b"/etc/passwd", stat.S_IFLNK | 0o777)],
        [("s", b"..", stat.S_IFLNK | 0o777), ("s/evil", b"x", 0)],
        [("f", b"", stat.S_IFIFO | 0o644)],
        [("f", b"", stat.S_IFCHR | 0o644)],
    ],
)
def test_evil_zips(tmp_path, members):
    box = tmp_path / "box"
    box.mkdir()
    path = zipped(box / "x.zip", *members)
    with pytest.raises(SourceError, match="Nothing was unpacked"):
        unpack(path, box / "out")
    assert files(box) == ["x.zip"] and files(tmp_path) == ["box"]


def test_set_user_id_is_not_kept(tmp_path):
    out = unpack(
        tar(tmp_path / "x.tar", ("s", REG, b"#!", 0o6755), ("d", DIR, "", 0o7777)), tmp_path / "out"
    )
    assert not (out / "s").stat().st_mode & 0o7022 and (out / "s").stat().st_mode & 0o100
    assert not (out / "d").stat().st_mode & 0o7000
    assert not out.stat().st_mode & 0o7000


def test_bombs(tmp_path):
    bomb = zipped(tmp_path / "bomb.zip", ("zeros", bytes(70 << 20), 0))
    with pytest.raises(SourceError, match="grows out of proportion"):
        unpack(bomb, tmp_path / "out")
    small = zipped(tmp_path / "small.zip", ("zeros", bytes(1 << 20), 0))
    with pytest.raises(SourceError, match="more than 1,000 bytes"):
        unpack(small, tmp_path / "out", max_bytes=1000)
    assert unpack(small, tmp_path / "out").exists()
    assert files(tmp_path) == ["bomb.zip", "out", "small.zip"]


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "w", "zip"])
@pytest.mark.parametrize("fault", ["cut", "bits"])
def test_damaged_archives(tmp_path, kind, fault):
    noise = bytes(hashlib.sha256(bytes([i % 256, i // 256])).digest()[0] for i in range(20_000))
    path = tmp_path / "x.bin"
    if kind == "zip":
        zipped(path, ("a", noise, 0), ("b", noise, 0))
    else:
        tar(path, ("a", REG, noise), ("b", REG, noise), mode=kind)
    data = bytearray(path.read_bytes())
    if fault == "cut":
        data = data[: len(data) * 2 // 5]
    elif kind == "w":
        data[148:156] = b"\xff" * 8  # the header's own checksum: tar has no other
    else:
        data[len(data) // 3 : len(data) // 3 + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="damaged"):
        unpack(path, tmp_path / "out")
    assert files(tmp_path) == ["x.bin"]


def test_encrypted_and_other_kinds(tmp_path):
    path = zipped(tmp_path / "x.zip", ("a", b"A", 0))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="encrypted members"):
        unpack(path, tmp_path / "out")
    for content in (b"", b"no archive at all" * 100, b"PK but not really"):
        (tmp_path / "y").write_bytes(content)
        with pytest.raises(SourceError, match="damaged|not known"):
            unpack(tmp_path / "y", tmp_path / "out")
    with pytest.raises(SourceError, match="no such archive"):
        unpack(tmp_path / "nothing", tmp_path / "out")


def test_unpack_never_overwrites(tmp_path):
    path = tar(tmp_path / "x.tar", ("a", REG, b"A"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    with pytest.raises(SourceError, match="something already"):
        unpack(path, tmp_path / "full")
    assert files(tmp_path / "full") == ["mine"]
    (tmp_path / "empty").mkdir()
    assert files(unpack(path, tmp_path / "empty")) == ["a"]


def test_unpack_on_a_full_disk(tmp_path, monkeypatch):
    path = tar(tmp_path / "x.tar", ("a", REG, b"A" * 1000))

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "_write_file", full)
    with pytest.raises(SourceError, match="out: the disk is full"):
        unpack(path, tmp_path / "out")
    assert files(tmp_path) == ["x.tar"]


# ---- the module


def test_import_is_light():
    code = """
import sys, time
start = time.process_time()
import neurocompanion.recordings.sources
print(time.process_time() - start)
heavy = {"torch", "pooch", "requests", "pandas", "numpy", "xarray"} & set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        for _ in range(3)
    ]
    assert all(r.returncode == 0 for r in runs), runs[0].stderr
    assert min(float(r.stdout) for r in runs) < 0.15


def test_verify(tmp_path):
    (tmp_path / "x").write_bytes(BODY)
    assert verify(tmp_path / "x", sha(BODY).upper()) == tmp_path / "x"
    with pytest.raises(SourceError, match="wrong checksum"):
        verify(tmp_path / "x", "0" * 64)
    with pytest.raises(SourceError, match="no such file"):
        verify(tmp_path / "y", "0" * 64)


# ---- real recordings

REAL = os.environ.get("NEUROCOMPANION_MIRROR")


@pytest.mark.skipif(
    not REAL, reason="needs real recordings: set NEUROCOMPANION_MIRROR to a folder that holds them"
)
def test_real_mirror(monkeypatch, no_network):
    monkeypatch.setenv("NEUROCOMPANION_MIRROR", REAL)
    known = [s for s in registry().values() if s.sha256]
    places = available().set_index("name")
    here = [s for s in known if places["where"][s.name] == "mirror"]
    if not here:
        pytest.skip("the mirror holds none of the registry's recordings")
    for s in here:
        assert verify(fetch(s.name), s.sha256).stat().st_size == s.bytes
