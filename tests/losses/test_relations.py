import math
from itertools import permutations

import numpy as np
import pytest
import torch

from gendistill.losses.relations import (
    contrastive,
    correlation_congruence,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

RELATIONS = [rkd_distance, rkd_angle, similarity_preserving, correlation_congruence]


def embeddings(generator, student_dim=5, teacher_dim=8, count=6):
    return (torch.randn(count, dim, generator=generator).double() for dim in (student_dim, teacher_dim))


def rotation(dim, generator):
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())[0]


def huber(a, b):
    difference = abs(a - b)
    return difference**2 / 2 if difference <= 1 else difference - 0.5


def test_rkd_distance_is_the_papers_formula_pair_by_pair(generator):
    student, teacher = embeddings(generator)
    student[0] += 6  # far enough for the linear part of the Huber loss

    def relative(x):
        found = {(i, j): math.dist(x[i], x[j]) for i, j in permutations(range(6), 2)}
        return {pair: distance / np.mean(list(found.values())) for pair, distance in found.items()}

    s, t = relative(student.tolist()), relative(teacher.tolist())
    assert max(abs(s[pair] - t[pair]) for pair in s) > 1
    assert rkd_distance(student, teacher).item() == pytest.approx(np.mean([huber(s[pair], t[pair]) for pair in s]), rel=1e-9)


def test_rkd_distance_of_known_triangles():
    """Sides 1, 1, 2 (mean 4/3) and 1, 1, 1: relative sides 3/4, 3/4, 3/2 against 1."""
    line = torch.tensor([[0.0], [1.0], [2.0]])
    even = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert rkd_distance(line, even).item() == pytest.approx((1 / 16 + 1 / 16 + 1 / 4) / 2 / 3, rel=1e-5)


def test_rkd_angle_is_the_papers_formula_triple_by_triple(generator):
    student, teacher = embeddings(generator)

    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return a @ b / np.sqrt((a @ a) * (b @ b))

    losses = [huber(cosine(student.numpy(), *triple), cosine(teacher.numpy(), *triple)) for triple in permutations(range(6), 3)]
    assert rkd_angle(student, teacher).item() == pytest.approx(np.mean(losses), rel=1e-9)


def test_angles_at_a_side_of_length_0_count_as_right_ones():
    """The student's first two of three points are one: of its angles only that at the third is left, of cosine 1."""
    student = torch.tensor([[0.0], [0.0], [1.0]])
    even = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert rkd_angle(student, even).item() == pytest.approx((huber(0, 0.5) * 2 + huber(1, 0.5)) / 3, rel=1e-5)


def test_rkd_angle_of_known_triangles():
    """Cosines 1, -1, 1 of three points of a line, 1/2 of an even triangle."""
    line = torch.tensor([[0.0], [1.0], [2.0]])
    even = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert rkd_angle(line, even).item() == pytest.approx((huber(1, 0.5) * 2 + huber(-1, 0.5)) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_rkd_does_not_see_a_move_a_turn_a_reflection_nor_a_scale_of_either_space(loss, generator):
    student, teacher = embeddings(generator)
    expected = loss(student, teacher)
    moved = 7 * student @ rotation(5, generator) + torch.randn(5, generator=generator)
    mirrored = teacher * torch.tensor([-0.2] + [0.2] * 7).double()
    torch.testing.assert_close(loss(moved, mirrored), expected)
    stretched = student * torch.tensor([3.0, 1, 1, 1, 1]).double()
    assert not torch.isclose(loss(stretched, teacher), expected)
    assert loss(student, moved).item() == pytest.approx(0, abs=1e-12)


def test_similarity_preserving_is_the_papers_formula_times_the_batch_size(generator):
    student, teacher = embeddings(generator)

    def normalised(x):
        products = np.array([[sum(a * b for a, b in zip(u, v, strict=True)) for v in x] for u in x])
        return products / np.sqrt((products**2).sum(1, keepdims=True))

    papers = ((normalised(student.tolist()) - normalised(teacher.tolist())) ** 2).sum() / 6**2
    assert similarity_preserving(student, teacher).item() == pytest.approx(6 * papers, rel=1e-9)


def test_similarity_preserving_sees_neither_a_turn_nor_a_scale_but_a_move(generator):
    student, teacher = embeddings(generator)
    expected = similarity_preserving(student, teacher)
    torch.testing.assert_close(similarity_preserving(7 * student @ rotation(5, generator), 0.2 * teacher), expected)
    assert not torch.isclose(similarity_preserving(student + 1, teacher), expected)


def test_correlation_congruence_is_the_papers_expansion_pair_by_pair(generator):
    student, teacher = embeddings(generator)
    gamma, order = 0.4, 2

    def kernel(x, i, j):
        cosine = x[i] @ x[j] / np.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))

    squares = [(kernel(student.numpy(), i, j) - kernel(teacher.numpy(), i, j)) ** 2 for i in range(6) for j in range(6)]
    assert correlation_congruence(student, teacher).item() == pytest.approx(np.mean(squares), rel=1e-9)


def test_correlation_congruence_sees_neither_a_turn_nor_the_length_of_any_embedding(generator):
    student, teacher = embeddings(generator)
    lengths = torch.rand(6, 1, generator=generator).double() + 0.1
    turned = lengths * student @ rotation(5, generator)
    torch.testing.assert_close(correlation_congruence(turned, 3 * teacher), correlation_congruence(student, teacher))


@pytest.mark.parametrize("loss", [similarity_preserving, correlation_congruence])
def test_a_loss_of_all_entries_is_the_same_for_a_doubled_batch(loss, generator):
    student, teacher = embeddings(generator)
    torch.testing.assert_close(loss(student.repeat(2, 1), teacher.repeat(2, 1)), loss(student, teacher))


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_rkd_is_the_mean_of_itself_over_smaller_batches_when_distances_are_of_one_mean(loss, generator):
    """All pairs (triples) of a batch are equally often in its sub-batches: the expectation does not depend on the size."""
    count, trials = 4, 300
    large = torch.stack([loss(*embeddings(generator, count=16)) for _ in range(trials)])
    small = torch.stack([loss(*embeddings(generator, count=count)) for _ in range(trials)])
    if loss is rkd_distance:  # dividing by the mean takes a part of the spread of few pairs
        assert 0.7 < small.mean() / large.mean() < 1.1
    else:
        assert abs(small.mean() - large.mean()) < 4 * small.std() / math.sqrt(trials)


def test_contrastive_is_the_formula_sample_by_sample(generator):
    student, teacher = embeddings(generator, 5, 5)
    s, t = ((x / x.norm(dim=1, keepdim=True)).numpy() for x in (student, teacher))

    def question(anchors, candidates):
        scores = [[math.exp(a @ c / 0.1) for c in candidates] for a in anchors]
        return np.mean([-math.log(row[i] / sum(row)) for i, row in enumerate(scores)])

    expected = (question(s, t) + question(t, s)) / 2
    assert contrastive(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_contrastive_is_log_b_at_chance_and_almost_nothing_for_aligned_embeddings_far_apart():
    assert contrastive(torch.ones(8, 3), torch.ones(8, 3)).item() == pytest.approx(math.log(8), rel=1e-6)
    assert contrastive(torch.eye(8), 2 * torch.eye(8)).item() == pytest.approx(math.log(1 + 7 * math.exp(-10)), rel=1e-3)
    assert contrastive(torch.eye(8), torch.eye(8).roll(1, 0)) > 9


def test_contrastive_does_not_see_a_common_turn_but_one_of_the_student_alone(generator):
    student, teacher = embeddings(generator, 5, 5)
    turn = rotation(5, generator)
    torch.testing.assert_close(contrastive(3 * student @ turn, teacher @ turn), contrastive(student, teacher))
    assert not torch.isclose(contrastive(student @ turn, teacher), contrastive(student, teacher))


@pytest.mark.parametrize("loss", [*RELATIONS, contrastive])
def test_a_loss_does_not_see_the_order_of_samples_and_flattens_maps(loss, generator):
    student, teacher = embeddings(generator, 8, 8)
    order = torch.randperm(6, generator=generator)
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))
    torch.testing.assert_close(loss(student.view(6, 2, 2, 2), teacher), loss(student, teacher))
    assert not torch.isclose(loss(student[order], teacher), loss(student, teacher))


@pytest.mark.parametrize("loss", RELATIONS)
def test_a_relation_is_zero_at_equality_and_symmetric(loss, generator):
    student, teacher = embeddings(generator)
    assert loss(student, student) == 0
    assert loss(student, teacher) > 1e-4
    torch.testing.assert_close(loss(student, teacher), loss(teacher, student))


@pytest.mark.parametrize("loss", [*RELATIONS, contrastive])
def test_gradients_agree_with_finite_differences(loss, generator):
    student, teacher = (x.requires_grad_() for x in embeddings(generator, 3, 3, 4))
    assert torch.autograd.gradcheck(loss, (student, teacher))


@pytest.mark.parametrize("loss", [*RELATIONS, contrastive])
@pytest.mark.parametrize("ties", ["two samples", "all samples", "zeros"])
def test_gradients_are_finite_and_no_explosion_where_embeddings_coincide(loss, ties, generator):
    student, teacher = (x.float() for x in embeddings(generator, 4, 4))
    if ties == "two samples":
        student[1] = student[0]
    else:
        student[:] = student[0] if ties == "all samples" else 0
    value = loss(student.requires_grad_(), teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [*RELATIONS, contrastive])
def test_half_precision_and_autocast_are_computed_in_float32(loss, dtype, generator):
    student, teacher = ((300 * x).to(dtype) for x in embeddings(generator, 8, 8))  # whose squares are beyond float16
    expected = loss(student.float(), teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(student.float(), teacher.float()), expected)
    assert expected.isfinite()
    assert expected.dtype == torch.float32
    assert torch.equal(loss(student, teacher), expected)


@pytest.mark.parametrize(("loss", "least"), [(loss, 3 if loss is rkd_angle else 2) for loss in [*RELATIONS, contrastive]])
def test_a_batch_without_a_relation_is_refused(loss, least):
    with pytest.raises(ValueError, match=f"batch of {least - 1}: .* expects at least {least} samples"):
        loss(torch.zeros(least - 1, 4), torch.zeros(least - 1, 4))


@pytest.mark.parametrize("loss", RELATIONS)
def test_batches_of_other_sizes_are_refused(loss):
    with pytest.raises(ValueError, match="student batch of 5: expects the teacher's size, 6"):
        loss(torch.zeros(5, 4), torch.zeros(6, 4))


def test_embeddings_of_other_dimensions_have_no_cosines_and_are_refused():
    with pytest.raises(ValueError, match=r"student embeddings \(3, 4\): expects the shape it is compared with, \(3, 5\)"):
        contrastive(torch.ones(3, 4), torch.ones(3, 5))
