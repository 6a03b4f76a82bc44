import pytest
import torch

from gendistill.runtime.random import PerSampleRandom, bucket_of_step, indices_of_step


def epoch_order(seed, epoch, count):
    return indices_of_step(seed, epoch, count, count)


def test_an_epoch_is_a_permutation_that_its_seed_and_number_decide():
    order = epoch_order(0, 0, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, epoch_order(0, 0, 1000))
    assert not torch.equal(order, epoch_order(0, 1, 1000))
    assert not torch.equal(order, epoch_order(1, 0, 1000))


def test_a_row_is_as_likely_in_one_place_of_an_epoch_as_in_another():
    orders = torch.stack([epoch_order(0, epoch, 12) for epoch in range(2400)])
    seen = torch.stack([(orders == row).sum(0) for row in range(12)]).float()
    chi_squared = ((seen - 200) ** 2 / 200).sum()  # 121 degrees of freedom: mean 121, standard deviation 15.6
    assert 70 < chi_squared < 180
    neighbours = (orders[:, 1:] - orders[:, :-1] == 1).float().mean()
    assert neighbours == pytest.approx(1 / 12, abs=0.01)


def test_a_step_of_billions_of_rows_costs_as_little_as_a_step_of_few():
    rows = indices_of_step(0, 10_000_000, 64, 4_000_000_000)
    assert rows.unique().numel() == 64
    assert 0 <= rows.min() < rows.max() < 4_000_000_000


def test_buckets_take_turns_by_their_sizes_and_each_walks_its_own_steps():
    sizes = [7, 1, 12]
    for round_ in range(3):
        visits = [bucket_of_step(0, step, sizes) for step in range(20 * round_, 20 * round_ + 20)]
        assert sorted(visits) == [(b, round_ * n + k) for b, n in enumerate(sizes) for k in range(n)]
    assert visits != sorted(visits)
    assert [bucket_of_step(0, step, [5]) for step in range(5)] != [bucket_of_step(1, step, [5]) for step in range(5)]


@pytest.mark.parametrize(("batch_size", "count"), [(4, 12), (5, 12), (12, 12), (31, 12), (1, 3), (3, 1)])
def test_steps_walk_epoch_after_epoch_without_dropping_a_row(batch_size, count):
    epochs = torch.cat([epoch_order(7, epoch, count) for epoch in range(40)])
    steps = [indices_of_step(7, step, batch_size, count) for step in range(len(epochs) // batch_size)]
    assert all(len(step) == batch_size and step.dtype == torch.int64 for step in steps)
    walked = torch.cat(steps)
    assert torch.equal(walked, epochs[: len(walked)])


def test_a_step_does_not_depend_on_the_steps_before_it():
    alone = indices_of_step(0, 1000, 8, 50)
    for step in range(1000):
        indices_of_step(0, step, 8, 50).zero_()
    assert torch.equal(indices_of_step(0, 1000, 8, 50), alone)


def test_a_sample_gets_the_same_numbers_at_any_split_of_its_step():
    whole, part = PerSampleRandom(3, 5, 0, 8), PerSampleRandom(3, 5, 4, 4)
    assert whole.of_step(2) == part.of_step(2) != PerSampleRandom(3, 6, 0, 8).of_step(2)
    for _ in range(2):
        assert torch.equal(whole.normal((4, 3, 3))[4:], part.normal((4, 3, 3)))
        assert torch.equal(whole.uniform()[4:], part.uniform())


def test_seed_step_and_sample_each_give_other_numbers():
    generated = [
        PerSampleRandom(seed, step, first, 1).normal((16,))
        for seed, step, first in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 10, 1), (11, 0, 1)]
    ]
    assert len({tuple(numbers[0].tolist()) for numbers in generated}) == len(generated)


def test_a_stream_goes_on_from_call_to_call():
    random = PerSampleRandom(0, 0, 0, 2)
    assert not torch.equal(random.normal((16,)), random.normal((16,)))


def test_the_numbers_are_standard_normal_and_uniform_over_samples():
    random = PerSampleRandom(0, 0, 0, 4000)
    normal, uniform = random.normal((2,)), random.uniform()
    assert normal.shape == (4000, 2)
    assert normal.dtype == uniform.dtype == torch.float32
    assert normal.mean().abs() < 0.05
    assert normal.std() == pytest.approx(1, abs=0.05)
    assert 0 <= uniform.min() < uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.02)
