import json
import sys

import pytest
import torch
from row_cache import write_cache

from gendistill.runtime.store import Skipped, Store, StoredPart
from gendistill.runtime.stored_rows import RowFile, StoredRows


def some_rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(count, 4, 2, 2, generator=generator),
        "embedding": torch.randn(count, 3, generator=generator).bfloat16(),
        "prompt_index": torch.arange(count),
    }


def write(folder, rows, rows_per_part=8):
    count = len(rows["latents"])
    starts = range(0, count, rows_per_part)
    return write_cache(folder, ({name: rows[name][first : first + rows_per_part] for name in rows} for first in starts))


@pytest.mark.parametrize("rows_per_part", [1, 7, 8, 30, 100])
def test_rows_come_back_as_they_were_written_however_they_were_parted(tmp_path, rows_per_part):
    rows = some_rows(30)
    cache = write(tmp_path, rows, rows_per_part)
    assert len(cache) == 30
    assert cache.num_parts == -(-30 // rows_per_part)
    for indices in ([29, 0, 7, 8, 8, 15, 3], torch.arange(30), range(30), [], torch.tensor([16])):
        read = cache.rows(indices)
        assert list(read) == ["latents", "embedding", "prompt_index"]
        for name, tensor in rows.items():
            assert torch.equal(read[name], tensor[torch.as_tensor(indices, dtype=torch.int64)])
            assert read[name].dtype == tensor.dtype
    for size in (1, 8, 100):
        assert torch.equal(torch.cat([block["latents"] for block in cache.blocks(size)]), rows["latents"])


def test_rows_of_other_shapes_are_groups_that_follow_one_another(tmp_path):
    wide, tall = torch.arange(24.0).reshape(6, 2, 2), torch.arange(10.0).reshape(5, 2)
    store = Store(tmp_path, {})
    parts = [
        StoredPart({"wide": {"x": wide[:2]}, "tall": {"x": tall[:3]}}, [Skipped("a.png", "cut short")], {"missing": 1}),
        StoredPart({}, [Skipped("b.png", "it has no caption", broken=False)]),
        StoredPart({"wide": {"x": wide[2:]}, "tall": {"x": tall[3:]}}, notes={"missing": 2}),
    ]
    store.complete([store.write(number, part) for number, part in enumerate(parts)])
    cache = StoredRows(store.folder)
    assert cache.groups == {"tall": 5, "wide": 6}
    assert torch.equal(cache.rows([4, 0, 3])["x"], tall[[4, 0, 3]])
    assert torch.equal(cache.rows([10, 5, 7])["x"], wide[[5, 0, 2]])
    with pytest.raises(ValueError, match="expects rows of one group"):
        cache.rows([4, 5])
    assert (cache.broken, cache.left_out, cache.notes) == (1, 1, {"missing": 3})
    skipped = [json.loads(line) for line in (cache.folder / "skipped.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"]) for line in skipped] == [("a.png", "cut short"), ("b.png", "it has no caption")]


def test_a_row_that_is_not_there_is_an_index_error(tmp_path):
    cache = write(tmp_path, some_rows(9))
    for indices in ([9], [-1]):
        with pytest.raises(IndexError):
            cache.rows(indices)


def test_changing_what_was_read_does_not_change_the_cache(tmp_path):
    rows = some_rows(9)
    cache = write(tmp_path, rows)
    cache.rows([0])["latents"].zero_()
    assert torch.equal(cache.rows(range(9))["latents"], rows["latents"])


def resident_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_reading_and_writing_hold_no_more_than_a_few_parts_in_memory(tmp_path):
    part = torch.zeros(1024, 1024)  # 4 MiB a part, 96 MiB in all
    before = resident_memory()
    cache = write_cache(tmp_path, ({"latents": part} for _ in range(24)))
    for first in range(0, len(cache), 256):
        cache.rows(range(first, first + 256))
    assert resident_memory() - before < 40 * 2**20


def test_rows_of_another_shape_name_dtype_or_number_are_refused(tmp_path):
    for rows in ({"latents": torch.zeros(2, 5)}, {"latent": torch.zeros(2, 4)}, {"latents": torch.zeros(2, 4).half()}):
        with pytest.raises(ValueError, match="as in the first rows"):
            write_cache(tmp_path, [{"latents": torch.zeros(2, 4)}, rows])
    with pytest.raises(ValueError, match="same number"):
        Store(tmp_path, {}).write(0, StoredPart({"rows": {"latents": torch.zeros(2, 4), "labels": torch.zeros(3)}}))


def test_a_cache_without_its_index_is_incomplete(tmp_path):
    store = Store(tmp_path, {})
    store.write(0, StoredPart({"rows": some_rows(9)}))
    with pytest.raises(ValueError, match="incomplete"):
        StoredRows(store.folder)


def test_a_file_that_is_cut_short_or_changed_is_seen(tmp_path):
    cache = write(tmp_path, some_rows(9))
    file = cache.folder / "rows-00001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="is truncated"):
        cache.rows([8])
    file.write_bytes(whole[:20])
    with pytest.raises(ValueError, match="its header is truncated"):
        StoredRows(cache.folder).rows([8])


def test_a_file_with_other_shapes_than_the_index_says_is_a_value_error(tmp_path):
    cache = write(tmp_path, some_rows(8))
    Store(tmp_path, {"teacher": "tiny"}).write(0, StoredPart({"rows": some_rows(8) | {"latents": torch.zeros(8, 4, 3, 3)}}))
    with pytest.raises(ValueError, match=r"does not hold rows/latents \[4, 2, 2\]"):
        cache.rows([0])


def test_a_file_of_rows_is_what_safetensors_reads(tmp_path):
    from safetensors.torch import load_file

    store = Store(tmp_path, {})
    store.write(0, StoredPart({"rows": some_rows(5)}))
    file = store.folder / "rows-00000.safetensors"
    for name, tensor in some_rows(5).items():
        assert torch.equal(load_file(file)[f"rows/{name}"], tensor)
        assert torch.equal(RowFile(file).read(f"rows/{name}", [3, 1], tensor.shape[1:], tensor.dtype), tensor[[3, 1]])
