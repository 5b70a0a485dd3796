"""Downloading the official archive from a server on this machine that breaks off, resumes, or lies."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading

import pytest

from accel import datasets
from accel.datasets import catalog, official
from accel.errors import DatasetMissing


class Site:
    """What the server gives, and what it was asked for.

    Attributes:
        limit: bytes after which each connection is cut; None never cuts.
        ranges: whether the server honours Range.
        asked: the Range header of each request.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.limit, self.ranges, self.asked = content, None, True, []

    def handler(site) -> type[http.server.BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                site.asked.append(wanted)
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
                if start >= len(site.content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(site.content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
                self.end_headers()
                self.wfile.write(site.content[start:][: site.limit])

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def site(world, monkeypatch):
    content = world.archive("cifar10").read_bytes()
    served = Site(content)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served.handler())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    info = dataclasses.replace(catalog.DATASETS["cifar10"], url=url, md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(catalog.DATASETS, "cifar10", info)
    monkeypatch.setattr(official, "_CHUNK", 4096)
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def part(world):
    folder = world.cache / "downloads" / "cifar10"
    folder.mkdir(parents=True)
    return folder / "cifar-10-python.tar.gz.part"


def test_the_archive_is_downloaded_decoded_and_removed(world, site):
    folder = datasets.fetch("cifar10", source="official")
    assert datasets.load("cifar10", "test").images.shape == (3, 32, 32, 3)
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.json", "test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy",
    ]  # fmt: skip
    assert not (world.cache / "downloads" / "cifar10").exists()


def test_progress_counts_the_bytes_up_to_the_total(site):
    seen = []
    datasets.fetch("cifar10", source="official", progress=lambda step, done, total=None: seen.append((step, done, total)))
    downloads = [(done, total) for step, done, total in seen if step == "download cifar-10-python.tar.gz"]
    assert downloads[0] == (0, len(site.content))
    assert downloads[-1] == (len(site.content), len(site.content))


def test_a_connection_that_breaks_off_is_resumed_where_it_stopped(site):
    site.limit = len(site.content) // 3
    datasets.fetch("cifar10", source="official")
    assert site.asked[:3] == [None, f"bytes={site.limit}-", f"bytes={2 * site.limit}-"]


def test_a_killed_fetch_is_resumed_by_the_next_one(world, site):
    def interrupt(step, done, total=None):
        if done > 5000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        datasets.fetch("cifar10", source="official", progress=interrupt)
    assert not (world.cache / "datasets" / "cifar10").exists()
    datasets.fetch("cifar10", source="official")
    assert site.asked == [None, "bytes=8192-"]


def test_a_server_without_ranges_is_asked_for_all_of_it_and_the_old_part_is_overwritten(site, part):
    part.write_bytes(b"x" * 100)
    site.ranges = False
    datasets.fetch("cifar10", source="official")
    assert site.asked == ["bytes=100-"]


def test_a_part_that_was_whole_is_not_downloaded_again(site, part):
    part.write_bytes(site.content)
    datasets.fetch("cifar10", source="official")
    assert site.asked == []


def test_a_part_longer_than_the_archive_is_thrown_away(site, part):
    part.write_bytes(site.content + b"more")
    datasets.fetch("cifar10", source="official")
    assert site.asked[-1] is None


def test_an_archive_with_another_md5_is_refused_and_not_kept(site, part):
    site.content = b"<html>moved</html>"
    with pytest.raises(DatasetMissing, match="expected " + catalog.find("cifar10").md5):
        datasets.fetch("cifar10", source="official")
    assert not part.exists()


def test_a_server_that_gives_nothing_is_not_asked_for_ever(site):
    site.limit = 0
    with pytest.raises(DatasetMissing, match="broke off"):
        datasets.fetch("cifar10", source="official")
    assert len(site.asked) == 1


def test_a_server_that_gives_crumbs_is_left_after_a_few_tries_with_the_crumbs_kept(site, part):
    site.limit = 10
    with pytest.raises(DatasetMissing, match="60 bytes are kept"):
        datasets.fetch("cifar10", source="official")
    assert part.stat().st_size == 60


def test_an_http_error_is_given_as_the_reason(site, monkeypatch):
    monkeypatch.setattr(site, "content", b"")
    with pytest.raises(DatasetMissing, match="HTTP 416"):
        datasets.fetch("cifar10", source="official")
