import json
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from gendistill.data.cache import Cache, CacheWriter, build_or_open, cache_key, weights_hash


def some_rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(count, 4, 2, 2, generator=generator),
        "embedding": torch.randn(count, 3, generator=generator).bfloat16(),
        "prompt_index": torch.arange(count),
    }


def write(folder, rows, rows_per_shard=8, pieces=(1, 5, 100)):
    with CacheWriter(folder, rows_per_shard, key="k", provenance={"teacher": "tiny"}) as writer:
        first = 0
        for size in pieces:
            writer.append({name: tensor[first : first + size] for name, tensor in rows.items()})
            first += size
    return Cache.open(folder)


@pytest.mark.parametrize("pieces", [(30,), (1, 5, 24), (8, 8, 8, 6), (0, 30), tuple([1] * 30)])
def test_rows_come_back_as_they_were_written_however_they_were_appended(tmp_path, pieces):
    rows = some_rows(30)
    cache = write(tmp_path, rows, pieces=pieces)
    assert len(cache) == 30
    assert cache.names == ["latents", "embedding", "prompt_index"]
    assert [shard["rows"] for shard in json.loads((tmp_path / "index.json").read_text())["shards"]] == [8, 8, 8, 6]
    for indices in ([29, 0, 7, 8, 8, 15, 3], torch.arange(30), range(30), [], torch.tensor([16])):
        read = cache.rows(indices)
        for name, tensor in rows.items():
            assert torch.equal(read[name], tensor[torch.as_tensor(indices, dtype=torch.int64)])
            assert read[name].dtype == tensor.dtype
    cache.verify()


def test_a_row_that_is_not_there_is_an_index_error(tmp_path):
    cache = write(tmp_path, some_rows(9), pieces=(9,))
    for indices in ([9], [-1]):
        with pytest.raises(IndexError):
            cache.rows(indices)


def test_changing_what_was_read_or_appended_does_not_change_the_cache(tmp_path):
    rows = some_rows(9)
    kept = rows["latents"].clone()
    with CacheWriter(tmp_path) as writer:
        writer.append(rows)
        rows["latents"].zero_()
    cache = Cache.open(tmp_path)
    cache.rows([0])["latents"].zero_()
    assert torch.equal(cache.rows(range(9))["latents"], kept)


def test_rows_point_into_a_table(tmp_path):
    prompts = torch.randn(3, 5, 7)
    with CacheWriter(tmp_path) as writer:
        writer.append({"prompt_index": torch.tensor([2, 0, 0, 1])})
        writer.add_table("prompts", prompts)
    cache = Cache.open(tmp_path)
    assert torch.equal(cache.table("prompts"), prompts)
    assert torch.equal(cache.table("prompts")[cache.rows([0, 3])["prompt_index"]], prompts[[2, 1]])


def anonymous_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_reading_and_writing_hold_no_more_than_a_few_shards_in_memory(tmp_path):
    part = torch.zeros(1024, 1024)  # 4 MiB a shard, 96 MiB in all
    before = anonymous_memory()
    with CacheWriter(tmp_path, rows_per_shard=1024) as writer:
        for _ in range(24):
            writer.append({"latents": part})
    cache = Cache.open(tmp_path)
    for first in range(0, len(cache), 256):
        cache.rows(range(first, first + 256))
    assert anonymous_memory() - before < 40 * 2**20


def test_rows_of_another_shape_name_dtype_or_number_are_refused(tmp_path):
    writer = CacheWriter(tmp_path)
    writer.append({"latents": torch.zeros(2, 4)})
    for rows in ({"latents": torch.zeros(2, 5)}, {"latent": torch.zeros(2, 4)}, {"latents": torch.zeros(2, 4).half()}):
        with pytest.raises(ValueError, match="as in the first rows"):
            writer.append(rows)
    with pytest.raises(ValueError, match="same number"):
        writer.append({"latents": torch.zeros(2, 4), "labels": torch.zeros(3)})


def test_a_cache_that_was_not_closed_is_incomplete(tmp_path):
    writer = CacheWriter(tmp_path, rows_per_shard=4)
    writer.append(some_rows(9))
    with pytest.raises(ValueError, match="incomplete"):
        Cache.open(tmp_path)
    writer.close()
    assert len(Cache.open(tmp_path)) == 9
    CacheWriter(tmp_path)
    with pytest.raises(ValueError, match="incomplete"):
        Cache.open(tmp_path)


def test_a_file_that_is_cut_short_is_seen_at_opening_and_a_changed_byte_by_verify(tmp_path):
    cache = write(tmp_path, some_rows(9), pieces=(9,))
    shard = tmp_path / "rows-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"rows-00001\.safetensors is damaged"):
        cache.verify()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="cut short"):
        Cache.open(tmp_path)


def test_a_complete_cache_is_reused_and_another_key_is_built_beside_it(tmp_path):
    built = []

    def build(writer):
        built.append(writer.folder.name)
        writer.append(some_rows(3))

    for key in ("one", "one", "two", "one"):
        cache = build_or_open(tmp_path, key, {"made": "here"}, build)
        assert (cache.key, cache.provenance, len(cache)) == (key, {"made": "here"}, 3)
    assert built == ["one", "two"]


def test_a_build_that_was_interrupted_is_done_again_from_the_start(tmp_path):
    def interrupted(writer):
        writer.append(some_rows(2000))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_or_open(tmp_path, "k", {}, interrupted)
    leftover = tmp_path / "k" / ".rows-00001.safetensors.tmp"
    leftover.write_bytes(b"half a shard")
    cache = build_or_open(tmp_path, "k", {}, lambda writer: writer.append(some_rows(5, seed=1)))
    assert torch.equal(cache.rows(range(5))["latents"], some_rows(5, seed=1)["latents"])
    assert sorted(file.name for file in (tmp_path / "k").iterdir()) == ["index.json", "rows-00000.safetensors"]


def test_two_that_ask_at_once_build_once(tmp_path):
    built = []

    def build(writer):
        built.append(1)
        writer.append(some_rows(3))

    threads = [threading.Thread(target=build_or_open, args=(tmp_path, "k", {}, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_the_key_depends_on_every_part_and_not_on_their_order():
    key = cache_key(source="abc", resolution=32, caption={"name": 0.2, "category": 0.8})
    assert len(key) == 16
    assert key == cache_key(caption={"category": 0.8, "name": 0.2}, resolution=32, source="abc")
    assert key != cache_key(source="abc", resolution=64, caption={"name": 0.2, "category": 0.8})


def test_the_hash_of_weights_is_of_their_content_and_place_below_the_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "unet").mkdir(parents=True)
        save_file({"w": torch.arange(4.0)}, tmp_path / name / "unet" / "model.safetensors")
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("not a weight", encoding="utf-8")
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b")
    save_file({"w": torch.arange(4.0) + 1}, tmp_path / "b" / "unet" / "model.safetensors")
    assert weights_hash(tmp_path / "a") != weights_hash(tmp_path / "b")
    assert weights_hash(tmp_path / "a" / "unet" / "model.safetensors")
    with pytest.raises(ValueError, match="holds no weights"):
        weights_hash(tmp_path / "absent")
