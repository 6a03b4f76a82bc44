"""What the terms of latent alignment are told, and where the student begins."""

import pytest
import torch
from test_consistency import SCHEDULE, Gaussian

from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.trained_networks import Networks
from gendistill.methods.alignment import AlignConfig, Alignment
from gendistill.methods.consistency import ConsistencyConfig, ConsistencyDistillation
from gendistill.methods.latent_perception import LatentPerception
from gendistill.run.config import load_config
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import trailing

NOTHING = Conditioning()
TERMS = {
    "match": {"pseudo_huber": 1, "l2": 1},
    "distribution": {"patches": 1, "real_patches": 1, "sliced_wasserstein": 1, "mmd": 1},
    "semantic": {"distance": 1, "angle": 1, "contrastive": 1},
}


class Recorder:
    """A denoiser whose x_0 is the exact end of the Gaussian's trajectory through x_t; it records its inputs."""

    def __init__(self):
        self.inputs = []

    def denoiser(self):
        def call(network, x_t, t, conditioning):
            network.inputs.append((x_t, t))
            return Gaussian().follow(x_t, t, torch.zeros_like(t))

        return Denoiser(self, SCHEDULE, "sample", call)


def trajectories(count=16, shape=(4, 8, 8)):
    """Exact trajectories of the Gaussian."""
    gaussian, times = Gaussian(), torch.cat([trailing(4), torch.tensor([0])])
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(2))
    points = [gaussian.follow(noise, times[0].expand(count), t.expand(count)) for t in times]
    return Trajectories(torch.stack(points, 1).float(), times, NOTHING)


def batch_of(trajectories):
    """A batch whose data latents are the ends of the trajectories in another order."""
    return Batch(trajectories.latents.flip(0), NOTHING, trajectories)


def alignment(recorder, steps=(4, 2, 1), **settings):
    denoiser = recorder.denoiser()
    return Alignment(Networks(Gaussian().teacher(), denoiser, denoiser, {}, {}), AlignConfig(**settings), steps)


def terms_of(alignment, batch, step=3):
    random = PerSampleRandom(0, step, 0, len(batch.latents))
    return alignment.terms(alignment.student_x0(batch, step, random), batch, step, random)


def test_all_terms_vanish_for_a_student_that_predicts_the_ends_of_the_trajectories():
    terms = {name: loss for name, _, loss in terms_of(alignment(Recorder(), **TERMS), batch_of(trajectories()))}
    assert terms.keys() == {name for family in TERMS.values() for name in family}
    # InfoNCE is log B at chance and 0 only for far embeddings; mmd is unbiased
    for name in terms.keys() - {"contrastive", "mmd"}:
        assert terms[name] < 1e-5, name
    assert terms["mmd"] < 0


def test_every_term_is_larger_for_a_student_of_another_mean():
    wrong = Networks(Gaussian().teacher(), Gaussian(mean=-1.0).teacher(), None, {}, {})
    terms = {name: loss for name, _, loss in terms_of(Alignment(wrong, AlignConfig(**TERMS), [1]), batch_of(trajectories()))}
    for name in ("pseudo_huber", "l2", "patches", "sliced_wasserstein", "mmd", "distance"):
        assert terms[name] > 1e-3, name


def test_x_t_is_the_noise_or_any_point_of_the_trajectory():
    recorder = Recorder()
    points = trajectories(400, (1, 2, 2))
    alignment(recorder, start_fraction=0.5).student_x0(batch_of(points), 0, PerSampleRandom(0, 0, 0, 400))
    x_t, t = recorder.inputs[0]
    counts = {int(time): int((t == time).sum()) for time in t.unique()}
    assert counts.keys() == {999, 749, 499, 249}
    assert 220 < counts[999] < 280  # half of all, and a quarter of the rest
    for number in range(400):
        assert torch.equal(x_t[number], points.points[number, points.times.tolist().index(int(t[number]))])


def test_on_policy_points_are_those_of_few_step_rollouts():
    visited = []
    for step in range(60):
        recorder = Recorder()
        alignment(recorder, on_policy_fraction=1, steps=[4, 2]).student_x0(
            batch_of(trajectories(2, (1, 2, 2))), step, PerSampleRandom(0, step, 0, 2)
        )
        visited.append([int(t[0]) for _, t in recorder.inputs])
    assert {tuple(times) for times in visited} == {(999,), (999, 749), (999, 749, 499), (999, 749, 499, 249), (999, 499)}
    assert all(x.requires_grad is False for x, _ in recorder.inputs)


def test_all_processes_start_from_the_same_kind_of_point():
    all_trajectories, recorders = trajectories(8, (1, 2, 2)), [Recorder(), Recorder(), Recorder()]
    alignment(recorders[0], on_policy_fraction=0.5).student_x0(batch_of(all_trajectories), 7, PerSampleRandom(0, 7, 0, 8))
    for number, recorder in enumerate(recorders[1:]):
        part = Trajectories(all_trajectories.points[4 * number : 4 * number + 4], all_trajectories.times, NOTHING)
        alignment(recorder, on_policy_fraction=0.5).student_x0(batch_of(part), 7, PerSampleRandom(0, 7, 4 * number, 4))
    assert torch.equal(recorders[0].inputs[-1][0], torch.cat([recorder.inputs[-1][0] for recorder in recorders[1:]]))


def test_as_an_auxiliary_loss_it_is_added_with_its_weight_of_the_step():
    gaussian = Gaussian(mean=-1.0)
    networks = Networks(Gaussian().teacher(), gaussian.teacher(), gaussian.teacher(), {}, {})
    method = ConsistencyDistillation(networks, Guidance(NOTHING, GuidanceConfig(scale=1.0)), ConsistencyConfig())
    batch = Batch(torch.zeros(16, 4, 8, 8), NOTHING, trajectories())
    (alone,) = method.updates(batch, 10, PerSampleRandom(0, 10, 0, 16))
    method.auxiliary = [Alignment(networks, AlignConfig(weight={0: 0, 20: 1}), [1])]
    (first,) = method.updates(batch, 0, PerSampleRandom(0, 0, 0, 16))
    assert first.logs.keys() == {"loss"}
    (both,) = method.updates(batch, 10, PerSampleRandom(0, 10, 0, 16))
    assert both.logs.keys() == {"loss", "own", "align", "pseudo_huber"}
    torch.testing.assert_close(both.logs["own"], alone.loss)
    torch.testing.assert_close(both.loss, alone.loss + 0.5 * both.logs["align"])


def test_latents_of_similar_features_are_near_and_gradients_pass(teacher):
    perception = LatentPerception(teacher.denoiser)
    conditioning = teacher.encode_prompts(["food", "animals"])
    edge = teacher.size[0] // teacher.codec.factor
    teacher_x0 = torch.randn(2, teacher.codec.channels, edge, edge, generator=torch.Generator().manual_seed(0))
    student_x0 = (teacher_x0 + 0.1).requires_grad_(True)

    def distance(x):
        return perception(x, teacher_x0, conditioning, PerSampleRandom(0, 0, 0, 2))

    assert distance(teacher_x0) < 1e-6
    assert 0 < distance(student_x0) < distance(teacher_x0.flip(0))
    distance(student_x0).backward()
    assert student_x0.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


def test_a_student_that_keeps_both_branches_of_guidance_is_refused():
    with pytest.raises(ValueError, match=r"guidance.mode 'cfg': alignment learns from guided latents"):
        load_config(None, {"method": "latent_alignment", "guidance.mode": "cfg"})
