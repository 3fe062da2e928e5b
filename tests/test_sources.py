"Fetching, checking and unpacking, against a server on this machine that misbehaves on demand."
import errno, hashlib, json, os, re, signal, socket, subprocess, sys, threading, time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from processes import until

from neurocompanion import core
from neurocompanion.core import SourceError
from neurocompanion.recordings import download, sources
from neurocompanion.recordings.sources import (
    Source, available, fetch, fetch_all, registry)

BODY = bytes(i * 7 % 251 for i in range(400_000))


def sha(data): return hashlib.sha256(data).hexdigest()
def md5(data): return hashlib.md5(data).hexdigest()
def files(folder): return sorted(p.name for p in folder.iterdir())


class Server:
    "Files by path, a log of (path, range, status, bytes sent), and faults to switch on."

    def __init__(self):
        self.files, self.links = {}, {}  # by path: a body or a status; a Link
        self.redirect = {}     # from path to Location
        self.rows = []         # one a request; [None] while it is answered
        self.cut = None        # hang up after so many bytes of a body, once
        self.ranges = True     # answer a Range with 206
        self.etag = "crc"      # "crc": a strong one; "weak"; "date": Last-Modified; None
        self.if_range = True   # honour If-Range
        self.length = True     # send Content-Length
        self.pause = 0         # seconds between pieces
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *args): pass

            def do_GET(self):
                cell, row = [None], ("", None, 0, 0)
                server.rows.append(cell)
                try: row = server.answer(self)
                finally: cell[0] = row

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *args: None  # a client that was killed
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02},
                         daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    @property
    def log(self):
        "The rows in the order of the requests, once all of them are answered."
        end = time.time() + 10
        while [None] in self.rows and time.time() < end: time.sleep(0.005)
        return [row for (row,) in self.rows if row and row[2]]

    def sent(self): return sum(row[3] for row in self.log)

    def answer(self, h):
        def head(status, **headers):
            h.send_response(status)
            for key, value in headers.items():
                if value is not None: h.send_header(key.replace("_", "-"), value)
            h.end_headers()
        if h.path in self.redirect:
            head(302, Location=self.redirect[h.path], Content_Length=0)
            return "", None, 0, 0  # a redirect is not counted
        body = self.files.get(h.path, 404)
        if isinstance(body, int):
            h.send_error(body)
            return h.path, None, body, 0
        asked = wants = h.headers.get("Range")
        tag = {"crc": f'"{sha(body)[:8]}"', "weak": f'W/"{sha(body)[:8]}"'}.get(self.etag)
        date = "Fri, 01 Sep 2023 10:00:00 GMT" if self.etag == "date" else None
        other = self.if_range and h.headers.get("If-Range") not in (None, tag or date)
        if other or not self.ranges: wants = None
        start = int(re.fullmatch(r"bytes=(\d+)-", wants)[1]) if wants else 0
        if wants and start >= len(body):
            head(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
            return h.path, asked, 416, 0
        h.close_connection = not self.length
        head(206 if wants else 200, ETag=tag, Last_Modified=date, Link=self.links.get(h.path),
             Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}" if wants else None,
             Content_Length=len(body) - start if self.length else None,
             Connection=None if self.length else "close")
        piece, cut, sent = body[start:], self.cut, 0
        if cut is not None: piece, self.cut, h.close_connection = piece[:cut], None, True
        try:
            for i in range(0, len(piece), 20_000):
                h.wfile.write(piece[i:i + 20_000])
                sent = min(i + 20_000, len(piece))
                if self.pause: h.wfile.flush(); time.sleep(self.pause)
        except OSError: pass
        return h.path, asked, 206 if wants else 200, sent


@pytest.fixture
def server():
    s = Server()
    yield s
    s.http.shutdown()
    s.http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "Each test has a cache of its own, no mirror, and no retries."
    monkeypatch.setenv("NEUROCOMPANION_CACHE", str(tmp_path / "cache"))
    for key in "NEUROCOMPANION_MIRROR NEUROCOMPANION_REGISTRY http_proxy all_proxy".split():
        monkeypatch.delenv(key, raising=False)
        monkeypatch.delenv(key.upper(), raising=False)
    monkeypatch.setattr(download, "RETRIES", 0)
    return tmp_path / "cache"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("NEUROCOMPANION_MIRROR", str(tmp_path / "mirror"))
    return tmp_path / "mirror"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("the network was used")
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def big(server=None, body=BODY, **facts):
    "A source whose bytes the server has; its checksum is the right one unless given."
    if server: server.files["/big.bin"] = body
    return Source("big", "lab/big.bin", f"{server.url}/big.bin" if server else "",
                  **{"bytes": len(body), "sha256": sha(body)} | facts)


def refused(source, *words):
    "The words of the error that `fetch` raises."
    with pytest.raises(SourceError) as e: fetch(source)
    for word in words: assert re.search(word, str(e.value)), str(e.value)
    return str(e.value)


# ---- downloads
@pytest.mark.parametrize("size, cut", [(400_000, 150_000), (1000, 333)])
@pytest.mark.parametrize("fault, second", [
    ({}, 206), (dict(etag="weak"), 206), (dict(etag="date"), 206), (dict(etag=None), 206),
    (dict(ranges=False), 200), (dict(etag=None, sha256=""), None)])
def test_a_download_that_broke_goes_on(server, cache, size, cut, fault, second):
    "From where it was; from the start where the server, or nobody, can tell that it is the same."
    checksum = {k: v for k, v in fault.items() if k == "sha256"}
    server.__dict__ |= fault | {"cut": cut}
    source = big(server, BODY[:size], **checksum)
    refused(source, f"the connection broke: found {cut:,} of {size:,} bytes.*goes on from")
    assert (cache / "lab/big.bin.part").stat().st_size == cut
    assert not (cache / "lab/big.bin").exists()
    assert fetch(source).read_bytes() == BODY[:size]
    assert files(cache / "lab") == ["big.bin"]
    assert server.log[1] == ("/big.bin", second and f"bytes={cut}-", second or 200,
                             size - cut if second == 206 else size)


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_file_that_changed_in_between_starts_over(server, if_range, checksum):
    server.cut, server.if_range = 150_000, if_range
    new = BODY[::-1]
    source = big(server, sha256=sha(new) if checksum else "")
    refused(source, "the connection broke")
    server.files["/big.bin"] = new
    assert fetch(source).read_bytes() == new


@pytest.mark.parametrize("part, etag, statuses", [
    (b"x" * 1000, None, [206, 200]), (BODY, "crc", []), (BODY + b"12345", "crc", [416, 200])])
def test_a_part_that_is_damaged_whole_or_too_long(server, cache, part, etag, statuses):
    server.etag = etag
    (cache / "lab").mkdir(parents=True)
    (cache / "lab/big.bin.part").write_bytes(part)
    assert fetch(big(server)).read_bytes() == BODY
    assert [row[2] for row in server.log] == statuses


def test_no_content_length_and_a_redirect(server):
    server.length, source = False, big(server)
    server.redirect["/old"] = server.url + "/big.bin"
    assert fetch(Source("b", "b", server.url + "/old", sha256=source.sha256)).read_bytes() == BODY
    server.cut = 100
    refused(source, "the connection broke")  # seen by the registered size
    assert fetch(source).read_bytes() == BODY


@pytest.mark.parametrize("status, words", [
    (404, "404 Not Found"), (403, "403 Forbidden"), (503, "503 Service"), (None, "be reached")])
def test_refusals_say_what_to_bring(server, cache, mirror, status, words):
    source = big(server)
    server.files["/big.bin"] = status
    if not status: source = replace(source, url="http://127.0.0.1:9/x")
    refused(source, words, "lab/big.bin", source.sha256, "400,000 bytes", f"or at {cache}/lab/big",
            f"anywhere under {mirror}")
    assert not (cache / "lab/big.bin").exists()


def test_a_wrong_file_is_set_aside_wherever_it_is(server, cache):
    wrong = BODY[:-1] + b"!"
    source = big(server)
    server.files["/big.bin"] = wrong
    refused(source, f"wrong checksum: expected SHA-256 {sha(BODY)}, found {sha(wrong)}")
    assert files(cache / "lab") == [f"big.bin.wrong-{sha(wrong)[:8]}"]
    server.files["/big.bin"] = BODY
    path = fetch(source)
    path.write_bytes(b"!" + BODY[1:])  # the same size, at once
    refused(source, "wrong checksum")
    assert len(files(cache / "lab")) == 2 and not path.exists()
    assert fetch(source).read_bytes() == BODY
    path.unlink()
    refused(big(server, sha256="", md5="0" * 32), "wrong checksum: expected MD5 000")
    assert f"big.bin.wrong-{md5(BODY)[:8]}" in files(cache / "lab")


def test_an_unknown_checksum_is_recorded_said_and_enforced(server, cache, capsys):
    source = big(server, sha256="", bytes=None)
    path = fetch(source)
    assert sha(BODY) in capsys.readouterr().err
    assert sha(BODY) in (cache / "checksums.csv").read_text()
    fetch(source)
    assert capsys.readouterr().err == ""
    path.write_bytes(b"tampered")
    refused(source, f"wrong checksum: expected SHA-256 {sha(BODY)}")


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


def test_two_processes_one_download(server, cache):
    server.pause = 0.02
    both = [start(big(server)), start(big(server))]
    said = [p.communicate(timeout=60) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert {out.strip() for out, _ in said} == {str(cache / "lab/big.bin")}
    assert (cache / "lab/big.bin").read_bytes() == BODY
    assert server.sent() == len(BODY)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_goes_on(server, cache, sign):
    server.pause = 0.05
    source, part = big(server), cache / "lab/big.bin.part"
    process = start(source)
    until(lambda: part.exists() and part.stat().st_size > 60_000)
    process.send_signal(sign)
    process.communicate(timeout=20)
    assert process.returncode != 0 and not (cache / "lab/big.bin").exists()
    had, server.pause = part.stat().st_size, 0
    assert 60_000 < had < len(BODY)
    assert fetch(source).read_bytes() == BODY
    assert server.log[-1][1] == f"bytes={had}-" and files(cache / "lab") == ["big.bin"]


def failing_open(number, after):
    "An `open` whose files of the name *.part fail once so many bytes are written."
    def opened(path, mode="r", *args, **kwargs):
        f, left = open(path, mode, *args, **kwargs), after
        if mode == "r" or not str(path).endswith(".part"): return f
        write = f.write

        def limited(data):
            nonlocal left
            left -= len(data)
            if left < 0: raise OSError(number, os.strerror(number))
            return write(data)

        f.write = limited
        return f
    return opened


def test_what_the_disk_may_say(server, cache, monkeypatch):
    source = big(server)
    with monkeypatch.context() as m:
        m.setattr(download, "open", failing_open(errno.ENOSPC, 200_000), raising=False)
        refused(source, "big.bin: the disk is full: found .* bytes free. Free some space")
    assert 0 < (cache / "lab/big.bin.part").stat().st_size <= 200_000
    assert fetch(source).read_bytes() == BODY and server.sent() < 2 * len(BODY)
    (cache / "lab/big.bin").unlink()
    with monkeypatch.context() as m:
        m.setattr(download, "free_bytes", lambda path: 1000)
        refused(source, "the disk is full: expected 400,000 bytes free, found 1,000")
    monkeypatch.setattr(download, "open", failing_open(errno.EACCES, -1), raising=False)
    refused(source, "the disk refuses: found Permission denied. Set NEUROCOMPANION_CACHE")


# ---- the mirror
def test_the_mirror_knows_files_by_checksum_without_network(mirror, cache, no_network):
    "Whatever is beside them: other files of that size, links in a circle, a cache in the way."
    (mirror / "any/where").mkdir(parents=True)
    for i in range(3): (mirror / f"any/decoy{i}").write_bytes(bytes([i + 1]) + BODY[1:])
    (mirror / "loop").symlink_to(mirror)
    (mirror / "gone").symlink_to(mirror / "nowhere")
    there = mirror / "any/where/renamed.dat"
    there.write_bytes(BODY)
    assert fetch(big()) == fetch(big(bytes=None)) == there and not (cache / "lab").exists()
    cache.write_text("in the way")
    assert fetch(big()) == there


def test_the_mirror_reads_only_files_of_the_right_size_and_once(mirror, monkeypatch, no_network):
    (mirror / "right").write_bytes(BODY)
    (mirror / "small").write_bytes(b"1")
    read, later = [], time.time_ns() + 3 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)  # what is too new is not remembered
    monkeypatch.setattr(sources, "sha256_of",
                        lambda path: read.append(path.name) or core.sha256(path))
    for _ in range(3): fetch(big())
    sources._hashes.clear()  # as a new process would
    fetch(big())
    assert read == ["right"]


def test_the_mirror_comes_before_the_cache_and_a_wrong_name_is_passed_over(server, mirror, cache):
    (mirror / "lab").mkdir()
    (mirror / "lab/big.bin").write_bytes(b"another file of that name")
    refused(big(), "in the mirror another file of that name")
    assert fetch(big(server)) == cache / "lab/big.bin"
    (mirror / "x").write_bytes(BODY)
    assert fetch(big(server)) == mirror / "x"


def test_a_mirrors_files_by_place_where_no_checksum_is_known(mirror, cache, no_network, capsys):
    (mirror / "nichols2017").mkdir()
    (mirror / "nichols2017/n2_let.mat").write_bytes(BODY)
    assert fetch("nichols2017/n2_let") == mirror / "nichols2017/n2_let.mat"
    assert "recorded" in capsys.readouterr().err
    (mirror / "nichols2017/n2_let.mat").rename(mirror / "elsewhere.mat")
    assert fetch("nichols2017/n2_let") == mirror / "elsewhere.mat"


def test_a_mirror_that_is_missing_or_may_not_be_entered(mirror, monkeypatch):
    "A folder may be listed though its files may not be looked at."
    real, denied = os.stat, mirror / "denied.mat"
    for path in (denied, mirror / "worm.mat"): path.write_bytes(BODY)

    def refuse(path, *args, **kwargs):
        if str(path) == str(denied): raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(os, "stat", refuse)
        assert fetch(big()) == mirror / "worm.mat"
    monkeypatch.setenv("NEUROCOMPANION_MIRROR", str(mirror / "nowhere"))
    refused("kato2015", "the mirror is not a folder")


# ---- names, groups, the registry
@pytest.fixture
def lab(tmp_path, monkeypatch, server):
    "A registry of a lab's own: a group of three files, one of them deeper."
    rows = ["name,file,url,bytes,sha256"]
    bodies = {name: name.encode() * 100 for name in ("a", "b", "deep/c")}
    for name, body in bodies.items():
        server.files[f"/{name}"] = body
        rows.append(f"lab/{name},lab/{name}.bin,{server.url}/{name},{len(body)},{sha(body)}")
    (tmp_path / "lab.csv").write_text("\n".join(rows))
    monkeypatch.setenv("NEUROCOMPANION_REGISTRY", str(tmp_path / "lab.csv"))
    return bodies


def test_a_group_gives_its_folder(lab, cache):
    assert fetch("lab") == cache / "lab" and fetch("lab/deep") == cache / "lab/deep"
    assert [p.name for p in fetch_all("lab")] == ["a.bin", "b.bin", "c.bin"]
    assert fetch("lab/a") == fetch("lab/a.bin") == cache / "lab/a.bin"


def test_a_group_in_a_mirror_in_place_or_by_links(lab, cache, mirror, no_network):
    for name, body in lab.items(): (mirror / name.replace("/", "_")).write_bytes(body)
    for _ in range(2):  # the second time the links are there
        assert fetch("lab") == cache / "lab"
    assert (cache / "lab/deep/c.bin").read_bytes() == lab["deep/c"]
    (cache / "lab/a.bin").unlink()
    (cache / "lab/a.bin").write_bytes(b"in the way")
    assert fetch("lab") == cache / "lab" and (cache / "lab/a.bin").read_bytes() == lab["a"]
    (mirror / "lab/deep").mkdir(parents=True)
    for name, body in lab.items(): (mirror / "lab" / f"{name}.bin").write_bytes(body)
    assert fetch("lab") == mirror / "lab"


def test_available(lab, cache, mirror):
    (mirror / "x").write_bytes(lab["a"])
    fetch("lab/b")
    table = available("lab")
    assert list(table["name"]) == ["lab/a", "lab/b", "lab/deep/c"]
    assert list(table["where"]) == ["mirror", "cache", "nowhere"]
    assert list(available("lab/a")["where"]) == ["mirror"]
    assert set(available()["where"]) <= {"mirror", "cache", "nowhere"}


def test_the_registry_is_whole_and_unknown_names_and_broken_lines_are_told(tmp_path):
    for name, words in [("kato", "Did you mean kato2015"), ("KATO2015", "kato2015"),
                        *[(v, "lists them") for v in ("qqq", "")], ("../etc/passwd", "no recordi")]:
        refused(name, words)
    rows = registry()
    assert {"kato2015", "kato2015_stim", "flavell2023/2022-07-26-31", "lorenz_synthetic",
            "nlb/mc_maze", "zapbench/traces"} <= set(rows)
    for s in rows.values():
        assert s.licence and s.citation, s.name
        assert s.url or s.resolver or "copy" in s.note, s.name
        assert s.original == "" or s.original in rows
        assert not s.url.startswith("https://raw.") or (s.sha256 and s.bytes)
        if s.resolver and s.resolver != "zarr": assert s.resolver.split(":")[0] in download.HOSTS
    for text, words in [("file\nx\n", "not a registry's line: expected a name"),
                        ("name,file\nx,../../y\n", "leaves the cache")]:
        (tmp_path / "r.csv").write_text(text)
        with pytest.raises(SourceError, match=words): registry(tmp_path / "r.csv")


def test_a_rebuilt_copy_falls_back_to_its_original_a_zarr_to_ones_own(
        server, monkeypatch, capsys, cache):
    monkeypatch.setitem(download.HOSTS, "osf", "http://127.0.0.1:9")
    refused("kato2015", "kato2015: neither this rebuilt copy nor.*13,968,333 bytes.*be reached")
    monkeypatch.setitem(download.HOSTS, "osf", server.url)
    server.files |= {"/k": BODY, "/nodes/2395t/files/osfstorage/": page(
        data=[osf_file(server, "WT_NoStim.mat", "/k", BODY)], links={})}
    assert fetch("kato2015") == cache / "kato2015_original/WT_NoStim.mat"
    assert "its original kato2015_original is fetched" in capsys.readouterr().err
    (cache / "zapbench/traces/c/0").mkdir(parents=True)              # a Zarr brought by hand
    assert fetch("zapbench/traces") == cache / "zapbench/traces"
    assert list(available("zapbench/traces")["where"]) == ["cache"]


# ---- publishers
def page(tree=None, **fields): return json.dumps(fields if tree is None else tree).encode()


def osf_file(server, name, at, body):
    sums = {"hashes": {"sha256": sha(body), "md5": md5(body)}}
    return {"id": "id" + name, "type": "files", "links": {"download": server.url + at},
            "attributes": {"name": name, "kind": "file", "size": len(body), "extra": sums}}


@pytest.fixture
def publishers(server, monkeypatch):
    "Every publisher, in the shapes they document; b.bin is in a folder or on a second page."
    u, bodies = server.url, {"a.bin": b"A" * 100, "sub/b.bin": b"B" * 200}
    a, b = bodies.values()
    for key in download.HOSTS: monkeypatch.setitem(download.HOSTS, key, f"{u}/{key}")
    sub = {"attributes": {"name": "sub", "kind": "folder"},
           "relationships": {"files": {"links": {"related": {"href": u + "/osf/sub"}}}}}
    assets = "/dandi/dandisets/000128/versions/draft/assets/"
    tree = "/hf/api/datasets/owner/name/tree/main?recursive=1"
    there = "/hf/datasets/owner/name/resolve/main/"
    server.links[tree] = f'<{u}/hf/more>; rel="next"'
    server.files |= {
        "/osf/nodes/abc/files/osfstorage/": page(data=[sub], links={"next": u + "/osf/2"}),
        "/osf/2": page(data=[osf_file(server, "a.bin", "/a.bin", a)], links={"next": None}),
        "/osf/sub": page(data=[osf_file(server, "b.bin", "/sub/b.bin", b)], links={"next": None}),
        "/zenodo/records/77": page(files=[
            {"key": n, "size": len(body), "checksum": "md5:" + md5(body),
             "links": {"self": f"{u}/{n}"}} for n, body in bodies.items()]),
        "/figshare/articles/77": page(files=[
            {"name": n, "size": len(body), "computed_md5": md5(body), "download_url": f"{u}/{n}"}
            for n, body in bodies.items()]),
        assets: page(next=u + assets + "?page=2",
                     results=[{"asset_id": "ia", "path": "a.bin", "size": 100}]),
        assets + "?page=2": page(
            next=None, results=[{"asset_id": "ib", "path": "sub/b.bin", "size": 200}]),
        "/dandi/assets/ia/": page(digest={"dandi:sha2-256": sha(a)}),
        "/dandi/assets/ib/": page(digest={"dandi:dandi-etag": "x"}),
        tree: page([{"type": "directory", "path": "sub", "size": 0, "oid": "0"},
                    {"type": "file", "path": "a.bin", "size": 100, "oid": "0",
                     "lfs": {"oid": sha(a), "size": 100}}]),
        "/hf/more": page([{"type": "file", "path": "sub/b.bin", "size": 200, "oid": "0"}]),
        "/dandi/assets/ia/download/": a, "/dandi/assets/ib/download/": b}
    for n, body in bodies.items(): server.files |= {f"/{n}": body, there + n: body}
    return server


@pytest.mark.parametrize(
    "resolver", "osf:abc zenodo:77 figshare:77 dandi:000128 hf:owner/name".split())
def test_every_publisher(publishers, resolver, cache):
    "A folder of theirs, one file, one that is not there, and one with another checksum."
    source = Source("pub", "pub/", resolver=resolver)
    assert fetch(source) == cache / "pub"
    assert (cache / "pub/a.bin").read_bytes() == b"A" * 100
    assert (cache / "pub/sub/b.bin").read_bytes() == b"B" * 200
    before = len(publishers.log)
    assert sorted(p.name for p in fetch_all(source)) == ["a.bin", "b.bin"]
    assert len(publishers.log) == before  # listing and files are in the cache
    path = fetch(Source("one", "one/b.bin", resolver=resolver + "/sub/b.bin"))
    assert path == cache / "one/b.bin" and path.read_bytes() == b"B" * 200
    refused(Source("no", "no.bin", resolver=resolver + "/c.bin"), "lists no such file")
    for path, body in list(publishers.files.items()):
        if body == b"A" * 100: publishers.files[path] = b"X" * 100
    refused(Source("two", "a.bin", resolver=resolver + "/a.bin"), "wrong checksum")


def test_a_published_checksum_finds_the_mirror(publishers, mirror):
    (mirror / "renamed").write_bytes(b"A" * 100)
    for id in ("a.bin", "ida.bin"):  # by its path, or by the publisher's own name for it
        assert fetch(Source("one", "a.bin", resolver=f"osf:abc/{id}")) == mirror / "renamed"
    assert not any(row[0] == "/a.bin" for row in publishers.log)


def test_names_inside_a_publishers_folder(publishers, cache, tmp_path, monkeypatch):
    (tmp_path / "r.csv").write_text(
        "name,file,resolver\npub,pub/,osf:abc\nmany/*,many/*/,zenodo:*\n")
    monkeypatch.setenv("NEUROCOMPANION_REGISTRY", str(tmp_path / "r.csv"))
    assert fetch("pub/a.bin") == cache / "pub/a.bin"
    assert not (cache / "pub/sub").exists()  # only what was asked for
    assert list(available("pub")["where"]) == ["nowhere"]
    assert fetch("pub/sub") == cache / "pub/sub"
    assert list(available("pub")["where"]) == ["cache"]
    assert fetch("many/77/a.bin") == cache / "many/77/a.bin"
    refused("pub/c.bin", "lists no such file: found (a.bin, sub/b.bin|sub/b.bin, a.bin)")


@pytest.mark.parametrize("answer", [b"not json", b"[]", b'{"data": 3, "links": {}}',
                                    b'{"data": [{"attributes": {}}], "links": {}}', None])
def test_a_publishers_odd_answers(server, monkeypatch, tmp_path, answer):
    monkeypatch.setitem(download.HOSTS, "osf", server.url)
    evil = page(data=[osf_file(server, "../../evil.bin", "/k", BODY)], links={})
    server.files |= {"/k": BODY, "/nodes/abc/files/osfstorage/": answer or evil}
    refused(Source("x", "x/", resolver="osf:abc"),
            "in a form that is not known here" if answer else "leaves the cache")
    assert not list(tmp_path.rglob("evil*"))


# ---- real recordings
REAL = os.environ.get("NEUROCOMPANION_MIRROR")


@pytest.mark.skipif(not REAL, reason="needs real recordings: set NEUROCOMPANION_MIRROR to a folder "
                    "that holds them")
def test_real_mirror(monkeypatch, no_network):
    monkeypatch.setenv("NEUROCOMPANION_MIRROR", REAL)
    places = available().set_index("name")
    here = [s for s in registry().values() if s.sha256 and places["where"][s.name] == "mirror"]
    if not here: pytest.skip("the mirror holds none of the registry's recordings")
    for s in here:
        path = fetch(s.name)
        assert core.sha256(path) == s.sha256 and path.stat().st_size == s.bytes
