import pytest
import torch
from tiny_gans import PICTURE, tiny_gan, tiny_method, tiny_pictures, tiny_translator

from gendistill.data.gan_batches import NoData
from gendistill.data.gan_pairs import generate_pairs, pair_images, paired_size
from gendistill.data.images import in_bytes
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import to_uint8


def batch_of(data, step=0, size=8):
    rows = data.rows_of_step(5, step, size)
    return data.batch(rows, PerSampleRandom(5, step, 0, size))


@pytest.fixture
def teacher():
    return tiny_gan().generator


@pytest.fixture
def images(tmp_path):
    return tiny_pictures(tmp_path / "rows")


def test_a_pair_is_noise_and_what_the_teacher_generates_of_it(teacher, tmp_path):
    batch = batch_of(generate_pairs(teacher, NoData(), 40, str(tmp_path)))
    with torch.no_grad():
        generated = teacher(batch.inputs, batch.labels)
    assert torch.equal(to_uint8(generated / 2 + 0.5), to_uint8(batch.generated / 2 + 0.5))
    assert batch.real is None
    assert batch.real_labels is None


def test_pairs_and_real_images_are_walked_through_in_orders_of_their_own(teacher, images, tmp_path):
    data = generate_pairs(teacher, images, 60, str(tmp_path))
    rows = torch.cat([data.rows_of_step(5, step, 10) for step in range(6)])
    assert sorted(rows[:, 0].tolist()) == list(range(60))
    assert sorted(rows[:, 1].tolist()) == sorted([*range(20)] * 3)
    assert not torch.equal(rows[:20, 0] % 20, rows[:20, 1])


def test_classes_of_pairs_are_as_frequent_as_in_the_data(teacher, images, tmp_path):
    data = generate_pairs(teacher, images, 600, str(tmp_path))
    counts = torch.bincount(torch.cat([batch_of(data, step, 60).labels for step in range(10)]), minlength=3)
    assert counts.tolist() == [360, 120, 120]  # 3 to 1 to 1 in the data, walked through evenly


def test_pairs_are_generated_once(teacher, tmp_path):
    first = generate_pairs(teacher, NoData(), 40, str(tmp_path))
    generated = []
    again = generate_pairs(teacher, NoData(), 40, str(tmp_path), generated.append)
    assert generated == []
    assert torch.equal(batch_of(first).generated, batch_of(again).generated)


def test_a_number_of_pairs_is_refused_for_a_teacher_that_generates_from_images(tmp_path):
    with pytest.raises(ValueError, match=r"gan\.pairs 10: expects a teacher that generates from noise; null or 0"):
        generate_pairs(tiny_translator().generator, NoData(), 10, str(tmp_path))


def test_the_teachers_image_of_each_input_image_is_generated_once_and_by_this_teacher_alone(tmp_path):
    gan, counted = tiny_translator(), []
    images = tiny_pictures(tmp_path / "rows", PICTURE)
    data = pair_images(gan.generator, images, str(tmp_path), counted.append)
    assert sum(counted) == len(data) == 20
    batch = batch_of(data)
    assert torch.equal(batch.inputs, batch_of(images).inputs)
    with torch.no_grad():
        assert torch.equal(in_bytes(gan.generator(batch.inputs)), in_bytes(batch.generated))
    assert paired_size(PICTURE, images) == 20 * 3 * 16 * 16
    calls = []
    gan.generator.network.register_forward_hook(lambda *_: calls.append(1))
    method = tiny_method(gan, pair_images(gan.generator, images, str(tmp_path)), features__hints=0, adversarial=0)
    (update,) = method.updates(batch, 0, PerSampleRandom(5, 0, 0, 8))
    assert update.loss.isfinite()
    assert calls == []
    gan.generator.network.layers[0].padding_mode = "zeros"  # the same weights, another network
    other = pair_images(gan.generator, images, str(tmp_path))
    assert other.pairs.key != data.pairs.key
    assert len(calls) == 1


@pytest.mark.parametrize(("hints", "calls"), [(0, 0), (1, 1), ({0: 0, 9: 1}, 0)])
def test_the_teacher_is_asked_only_where_its_layers_are(hints, calls, images, tmp_path):
    gan = tiny_gan()
    data = generate_pairs(gan.generator, images, 16, str(tmp_path))
    method = tiny_method(gan, images, features__hints=hints)
    called = []
    gan.generator.network.register_forward_hook(lambda *_: called.append(1))
    updates = list(method.updates(batch_of(data), 0, PerSampleRandom(5, 0, 0, 8)))
    assert [update.optimizers[0] for update in updates] == ["discriminator", "student"]
    assert len(called) == calls
    assert all(update.loss.isfinite() for update in updates)


def test_real_images_are_evaluated_as_their_own_classes_and_generated_ones_as_those_of_the_pairs(images, tmp_path):
    gan = tiny_gan()
    data = generate_pairs(gan.generator, images, 16, str(tmp_path))
    method, batch, seen = tiny_method(gan, images, discriminator__match=0), batch_of(data), []
    method.pairs[0].unwrapped_discriminator.network.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    next(iter(method.updates(batch, 0, PerSampleRandom(5, 0, 0, 8))))
    assert not torch.equal(batch.labels, batch.real_labels)
    assert torch.equal(seen[0], batch.real_labels)
    assert torch.equal(seen[1], batch.labels)
