import hashlib
import os
import time

import pytest

from gendistill.runtime import hashing
from gendistill.runtime.hashing import HashMemo, chance, file_sha256


@pytest.fixture
def file(tmp_path):
    """A file that has not been touched for a while."""
    file = tmp_path / "shard.tar"
    file.write_bytes(b"one")
    return file


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, one entry a reading; and files count as settled at once."""
    read = []
    monkeypatch.setattr(hashing, "file_sha256", lambda path: read.append(path.name) or file_sha256(path))
    monkeypatch.setattr(hashing, "SETTLED_NS", -1)
    return read


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once_and_known_to_later_runs(tmp_path, file, reads):
    for _ in range(2):
        memo = HashMemo(tmp_path / "hashes.json")
        assert memo.sha256(file) == memo.sha256(file) == sha256(b"one")
        memo.keep()
    assert reads == ["shard.tar"]


def test_a_change_that_hides_behind_its_times_is_seen(tmp_path, file, reads):
    memo = HashMemo(tmp_path / "hashes.json")
    memo.sha256(file)
    memo.keep()
    before = os.stat(file)
    time.sleep(0.02)  # the file system's clock ticks
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert HashMemo(tmp_path / "hashes.json").sha256(file) == sha256(b"two")


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path, file):
    memo = HashMemo(tmp_path / "hashes.json")
    assert memo.sha256(file) == sha256(b"one")
    memo.keep()
    assert not (tmp_path / "hashes.json").exists()


def test_what_two_runs_learnt_is_kept_together(tmp_path, file, reads):
    other = tmp_path / "other.tar"
    other.write_bytes(b"other")
    memos = [HashMemo(tmp_path / "hashes.json") for _ in range(2)]
    for memo, path in zip(memos, (file, other), strict=True):
        memo.sha256(path)
        memo.keep()
    HashMemo(tmp_path / "hashes.json").sha256(file)
    HashMemo(tmp_path / "hashes.json").sha256(other)
    assert reads == ["shard.tar", "other.tar"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_memo_that_cannot_be_read_is_no_memo(tmp_path, file, content):
    (tmp_path / "hashes.json").write_text(content)
    assert HashMemo(tmp_path / "hashes.json").sha256(file) == sha256(b"one")


def test_chance_is_uniform_and_its_parts_decide_it():
    generated = [chance(0, str(key)) for key in range(2000)]
    assert 0 <= min(generated) < 0.01
    assert 0.99 < max(generated) < 1
    assert sum(generated) / 2000 == pytest.approx(0.5, abs=0.03)
    assert chance(0, "a") == chance(0, "a") != chance(1, "a")
