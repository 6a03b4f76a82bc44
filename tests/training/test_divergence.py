import pytest
import torch

from gendistill.training.divergence import BASELINE, RECENT, LossGuard, all_finite


def test_the_step_at_which_a_loss_was_first_not_finite_is_named():
    guard = LossGuard(None)
    for step, loss in enumerate([0.5, float("inf"), float("nan"), float("nan")], 1):
        guard.watch(step, "student", torch.tensor(loss))
    with pytest.raises(ValueError, match="training stopped at step 2: the loss of the student is not finite") as error:
        guard.check(4, {"student": float(guard.losses["student"])}, learning_rate=1e-3)
    assert str(error.value).endswith("Lower trainer.learning_rate, for example to 0.0002, and continue with --resume")


def losses(guard, values):
    for step, value in enumerate(values, 1):
        guard.check(step, {"student": value}, 1e-3)


def test_a_loss_that_stays_far_above_what_was_usual_is_diverging():
    losses(LossGuard(10), [0.1, 0.2] * BASELINE + [1.9] * (RECENT - 1) + [0.2] + [1.9] * (RECENT - 1))
    with pytest.raises(ValueError, match=r"more than 10 times the median of 0\.15 before, at learning rate 0\.001"):
        losses(LossGuard(10), [0.1, 0.2] * BASELINE + [1.9] * RECENT)


def test_a_loss_that_rises_slowly_or_early_or_is_negative_is_not():
    losses(LossGuard(10), [0.01 * 1.01**step for step in range(1000)])
    losses(LossGuard(10), [0.001] * (BASELINE - 1) + [1.0] * RECENT)
    losses(LossGuard(10), [-1.0] * BASELINE + [5.0] * RECENT)
    losses(LossGuard(None), [0.1] * BASELINE + [1e9] * RECENT)


def test_all_finite_sees_one_bad_number_among_many():
    tensors = [torch.zeros(3, 4), torch.ones(2)]
    assert all_finite(tensors)
    tensors[0][1, 2] = torch.inf
    assert not all_finite(tensors)


def test_of_networks_that_learn_from_one_another_the_first_that_was_not_finite_is_to_blame():
    nan, one = torch.tensor(torch.nan), torch.tensor(1.0)
    for spoiled, images in (("student", nan), ("discriminator", one)):
        guard = LossGuard(None)
        for step, (given, loss) in enumerate([(one, one), (images, nan), (nan, nan)], 1):
            guard.note(step, "student", given)
            guard.watch(step, "discriminator", loss)
            guard.watch(step, "student", loss)
        with pytest.raises(ValueError, match=f"training stopped at step 2: the loss of the {spoiled} is not finite"):
            guard.check(10, {name: float(loss) for name, loss in guard.losses.items()}, 1e-3)
        assert f"step 2: the loss of the {spoiled} is not finite" in guard.not_finite(10, 1e-3, "the weight average.a")
        assert "step 1: the weight average.a is not finite" in guard.not_finite(1, 1e-3, "the weight average.a")
