import multiprocessing
import os
import threading

import pytest
import torch

from gendistill.runtime.store import Store, StoredPart, cache_key

COUNT = 5
MADE_BY = {"made": "here"}
KEY = cache_key(**MADE_BY)


def rows_of(number):
    return {"x": torch.full((3, 2), float(number))}


def build(folder, made, *, dies_at=None):
    """Build five parts of three rows in `folder`, noting in the list `made` which were made."""

    def make(number):
        if number == dies_at:
            raise KeyboardInterrupt
        made.append(number)
        return StoredPart({"rows": rows_of(number)})

    return Store(folder, MADE_BY, "rows").build(lambda: (lambda n=n: make(n) for n in range(COUNT)))


def assert_whole(cache):
    assert torch.equal(cache.rows(range(3 * COUNT))["x"], torch.cat([rows_of(number)["x"] for number in range(COUNT)]))


def test_a_complete_cache_is_opened_and_not_made_again(tmp_path):
    made = []
    for _ in range(2):
        cache = build(tmp_path, made)
        assert (cache.key, cache.provenance, len(cache)) == (KEY, {"made": "here", "described": "rows"}, 15)
        assert_whole(cache)
    assert made == [0, 1, 2, 3, 4]


def test_a_build_that_was_interrupted_goes_on_where_it_stopped(tmp_path):
    made = []
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, made, dies_at=3)
    (tmp_path / KEY / ".rows-00003.aside.safetensors").write_bytes(b"half a file")
    (tmp_path / KEY / "rows-00003.safetensors").write_bytes(b"whole, but not described yet")
    assert_whole(build(tmp_path, made))
    assert made == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("complete", [True, False])
def test_a_flipped_byte_is_noticed_and_only_its_part_is_made_again(tmp_path, caplog, complete):
    made = []
    build(tmp_path, made)
    file = tmp_path / KEY / "rows-00002.safetensors"
    times, data = os.stat(file), bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it had never been touched
    if not complete:
        (tmp_path / KEY / "index.json").unlink()
    assert_whole(build(tmp_path, made))
    assert made == [0, 1, 2, 3, 4, 2]
    assert caplog.text.count("rows-00002.safetensors is damaged") == 1
    assert "It is computed again." in caplog.text


@pytest.mark.parametrize("leftover", ["[]", "{}", '{"format": 1}', "not json", '{"format": 2, "key": "other"}'])
def test_an_index_that_is_none_is_written_anew(tmp_path, leftover):
    made = []
    build(tmp_path, made)
    (tmp_path / KEY / "index.json").write_text(leftover)
    assert_whole(build(tmp_path, made))
    assert made == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "remade"), [("index.json", []), ("rows-00002.json", [2])])
def test_a_number_that_changed_in_a_description_is_noticed(tmp_path, name, remade):
    made = []
    build(tmp_path, made)
    file = tmp_path / KEY / name
    file.write_text(file.read_text().replace(": 3", ": 2"))
    assert_whole(build(tmp_path, made))
    assert made[5:] == remade


def test_those_who_build_at_once_share_the_parts(tmp_path):
    made, caches, both_make = [[], []], [], threading.Barrier(2)

    def run(mine):
        def make(number):
            if not mine:
                both_make.wait(timeout=10)  # each makes its first part while the other makes another
            mine.append(number)
            return StoredPart({"rows": rows_of(number)})

        caches.append(Store(tmp_path, MADE_BY).build(lambda: (lambda n=n: make(n) for n in range(COUNT))))

    threads = [threading.Thread(target=run, args=(mine,), daemon=True) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(made[0] + made[1]) == [0, 1, 2, 3, 4]
    assert made[0]
    assert made[1]
    for cache in caches:
        assert_whole(cache)


def hold_part(folder, holds):
    def make(number):
        if number == 1:
            holds.set()
            threading.Event().wait()  # until it is killed
        return StoredPart({"rows": rows_of(number)})

    Store(folder, MADE_BY).build(lambda: (lambda n=n: make(n) for n in range(COUNT)))


def test_the_part_of_a_process_that_was_killed_is_made_by_one_that_waits(tmp_path):
    context = multiprocessing.get_context("fork")
    holds = context.Event()
    other = context.Process(target=hold_part, args=(tmp_path, holds))
    other.start()
    assert holds.wait(timeout=60)
    made = []
    timer = threading.Timer(0.3, other.kill)
    timer.start()
    assert_whole(build(tmp_path, made))
    assert made == [2, 3, 4, 1]
    other.join()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache .*file cannot be written: Not a directory"):
        build(tmp_path / "file", [])


def test_a_part_with_a_name_comes_back_as_it_was_written_and_not_once_it_is_damaged(tmp_path):
    store = Store(tmp_path, MADE_BY)
    assert store.read("a") is None
    for name in ("a", "b"):
        store.write(name, StoredPart({"rows": rows_of(1)}, notes={"seconds": 0.5}))
    assert torch.equal(Store(tmp_path, MADE_BY).read("a")["rows/x"], rows_of(1)["x"])
    assert Store(tmp_path, {"made": "elsewhere"}).read("a") is None
    assert store.notes() == {"seconds": 1.0}
    file = store.folder / "a.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert store.read("a") is None
    assert store.read("b") is not None


def test_the_key_depends_on_every_part_and_not_on_their_order():
    key = cache_key(source="abc", resolution=32, caption={"name": 0.2, "category": 0.8})
    assert len(key) == 16
    assert key == cache_key(caption={"category": 0.8, "name": 0.2}, resolution=32, source="abc")
    assert key != cache_key(source="abc", resolution=64, caption={"name": 0.2, "category": 0.8})
