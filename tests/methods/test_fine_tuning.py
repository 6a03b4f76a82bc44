"""Fine-tuning: the diffusion loss, the change that is carried over to a student, and the teacher's images in every batch."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from gendistill.data.batches import LatentData, as_rows
from gendistill.data.regularized import RegularizedData
from gendistill.diffusion.carried_networks import carried_networks, fine_tuned_teacher
from gendistill.diffusion.teacher import load_teacher
from gendistill.diffusion.trained_networks import copy_network, lora_config
from gendistill.methods.fine_tuning import diffusion_loss
from gendistill.runtime.store import Store, StoredPart
from gendistill.samplers.conditioning import Conditioning


def example(teacher, count=3):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, count, *teacher.codec.latent_shape(teacher.size), generator=generator)
    return latents, noise, torch.tensor([20, 500, 940])[:count], teacher.encode_prompts(["food", "animals", "food"][:count])


@pytest.mark.parametrize("family", ["sd1", "sd2", "sd3"])
def test_the_diffusion_loss_is_that_of_diffusers_training_scripts(family, family_folder):
    """train_text_to_image.py for eps and v, train_dreambooth_sd3.py for flow."""
    teacher = load_teacher(family_folder(family))
    denoiser, (x_0, noise, t, conditioning) = teacher.denoiser, example(teacher)
    if denoiser.schedule.kind == "flow":
        sigma = teacher.pipeline.scheduler.sigmas.flip(0)[t][:, None, None, None]
        x_t, target, time = (1 - sigma) * x_0 + sigma * noise, noise - x_0, 1000 * sigma.flatten()
    else:
        scheduler = DDPMScheduler.from_config(teacher.pipeline.scheduler.config)
        x_t, time = scheduler.add_noise(x_0, noise, t), t
        target = scheduler.get_velocity(x_0, noise, t) if denoiser.prediction_type == "v_prediction" else noise
    with torch.no_grad():
        expected = F.mse_loss(denoiser.call(denoiser.network, x_t, time, conditioning), target)
        loss = diffusion_loss(denoiser, x_0, noise, t, conditioning)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def changed(network, seed):
    """A copy of a network with other weights."""
    torch.manual_seed(seed)
    copy = copy_network(network, None)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return copy


@pytest.mark.parametrize("lora", [False, True])
def test_what_the_teacher_learns_is_added_to_the_student(lora, teacher):
    start = teacher.denoiser.with_network(changed(teacher.network, 1))
    before, initial = {name: p.clone() for name, p in start.network.named_parameters()}, copy_network(teacher.network, None)
    networks = carried_networks(teacher.denoiser, start, lora_config(teacher.family.lora_targets, 2) if lora else None)
    with torch.no_grad():
        for parameter in networks.trained.values():
            parameter.add_(0.02 * torch.randn_like(parameter))
        networks.update_average(0.0)
    x_0, _, t, conditioning = example(teacher)
    learned = fine_tuned_teacher(networks)
    with torch.no_grad():
        torch.testing.assert_close(
            learned(x_0, t, conditioning).eps, networks.student(x_0, t, conditioning).eps, rtol=1e-4, atol=1e-4
        )
        assert not torch.allclose(
            networks.average(x_0, t, conditioning).eps, teacher.denoiser.with_network(initial)(x_0, t, conditioning).eps
        )
    if not lora:
        for name, old in initial.named_parameters():
            torch.testing.assert_close(networks.averaged[name], before[name] + networks.trained[name] - old)


def rows(folder, count, value):
    maker = [lambda: StoredPart({"x": as_rows(torch.full((count, 2, 1, 1), value), Conditioning(a=torch.zeros(count, 1)))})]
    return LatentData(Store(folder, {"value": value}, f"{count} rows").build(lambda: iter(maker)))


@pytest.mark.parametrize(("new", "fraction"), [(1, 0.5), (20, 0.25), (3, 0.0)])
def test_every_batch_has_its_fraction_of_the_teachers_images_and_each_row_its_turn(new, fraction, tmp_path):
    data = RegularizedData(rows(tmp_path, new, 1.0), rows(tmp_path, 7, 2.0), fraction, ["food"] * 7)
    steps = [data.rows_of_step(0, step, 8) for step in range(35)]
    assert all(int((step >= new).sum()) == 8 * fraction for step in steps)
    counts = Counter(torch.cat(steps).tolist())
    learned = [counts[row] for row in range(new)]
    assert max(learned) - min(learned) <= 1
    batch = data.cache.rows(steps[0])["moments"][:, 0].flatten()
    assert torch.equal(batch == 2.0, steps[0] >= new)
