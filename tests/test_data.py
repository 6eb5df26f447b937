"""Files by checksum: found, missing, damaged, fetched."""

import hashlib

import pytest

from course_utils import CourseError, data


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder of our own with one registered file."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_bytes(b"hello")
    known = {"a.txt": hashlib.sha256(b"hello").hexdigest(), "b.txt": "0" * 64}
    monkeypatch.setattr(data, "registry", lambda: known)
    return tmp_path / "data"


def test_a_good_file(folder):
    assert data.path("a.txt").read_bytes() == b"hello"


def test_a_truncated_file_is_named(folder):
    data.path("a.txt")
    (folder / "a.txt").write_bytes(b"hel")
    with pytest.raises(CourseError, match=r"a\.txt is damaged \(3 bytes\).*git checkout"):
        data.path("a.txt")


def test_a_missing_file_without_network(folder, monkeypatch, tmp_path):
    import pooch

    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(pooch, "retrieve", unreachable)
    with pytest.raises(CourseError, match="could not be fetched"):
        data.path("b.txt")


def test_a_cache_that_cannot_be_written(folder, monkeypatch, tmp_path):
    import pooch

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "cache"))

    monkeypatch.setattr(pooch, "retrieve", refused)
    with pytest.raises(CourseError, match="Cannot write .*cache .*COURSE_CACHE"):
        data.path("b.txt")


def test_fetching_goes_to_the_repository_by_checksum(folder, monkeypatch, tmp_path):
    import pooch

    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    seen = {}

    def retrieve(url, known_hash, path, fname):
        seen.update(url=url, known_hash=known_hash)
        return str(tmp_path / "b.txt")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    data.path("b.txt")
    assert seen["url"].endswith("/data/b.txt") and seen["known_hash"] == "sha256:" + "0" * 64


def test_unknown_names(folder):
    with pytest.raises(CourseError, match="doctor"):
        data.path("../secrets")
    with pytest.raises(AttributeError, match="no data pack 'cats'"):
        data.cats()


def test_registry_is_in_step_with_the_files():
    for name, sha in data.registry().items():
        assert data.sha256(data.root() / name) == sha, f"{name}: run `python -m course_utils.data`"
