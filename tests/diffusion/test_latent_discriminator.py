"""A discriminator of latents of any size, under conditions of any kind."""

import pytest
import torch

from gendistill.data.batches import Batch
from gendistill.diffusion.latent_discriminator import LatentDiscriminator, condition_of
from gendistill.diffusion.teacher import load_teacher
from gendistill.methods.alignment import alignment_of
from gendistill.methods.denoiser_method import DenoiserContext
from gendistill.methods.latent_alignment import LatentAlignment
from gendistill.run.config import load_config
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning

PROMPTS = Conditioning(prompt_embeds=torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0)))
CLASSES = Conditioning(class_labels=torch.arange(6) % 3)


@pytest.mark.parametrize("shape", [(2,), (4, 1, 1), (4, 8, 8), (4, 16, 12), (3, 33, 33)])
def test_it_accepts_latents_of_any_size(shape):
    logits = LatentDiscriminator(shape)(torch.randn(6, *shape), torch.zeros(6))
    assert logits.shape[:2] == (6, 1)
    assert max(logits.shape[2:]) <= 5


@pytest.mark.parametrize("conditions", [PROMPTS, CLASSES], ids=["prompts", "classes"])
def test_the_condition_counts(conditions):
    torch.manual_seed(0)
    discriminator = LatentDiscriminator((4, 8, 8), conditions, num_classes=3)
    x, condition = torch.randn(1, 4, 8, 8).expand(6, -1, -1, -1), condition_of(conditions)
    logits = discriminator(x, torch.zeros(6), condition).flatten(1)
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    if conditions is CLASSES:
        torch.testing.assert_close(logits[0], logits[3])


def test_it_learns_which_latents_belong_to_which_class():
    """Real latents have the sign of their class, made ones the other sign: without the condition nothing tells them apart."""
    torch.manual_seed(0)
    signs = torch.tensor([1.0, -1.0]).repeat(16)[:, None, None, None]
    labels = Conditioning(class_labels=torch.tensor([0, 1]).repeat(16))
    told = {}
    for name, known in (("with", labels), ("without", Conditioning())):
        network = LatentDiscriminator((4, 4, 4), known, num_classes=2, width=16)
        optimizer = torch.optim.Adam(network.parameters(), 5e-3)
        for _ in range(30):
            pixels = torch.rand(32, 4, 4, 4)
            real, made = (network(sign * pixels, torch.zeros(32), condition_of(known)) for sign in (signs, -signs))
            optimizer.zero_grad()
            (torch.relu(1 - real).mean() + torch.relu(1 + made).mean()).backward()
            optimizer.step()
        told[name] = float((real > made).float().mean())
    assert told["with"] > 0.95
    assert told["without"] < 0.7


@pytest.mark.parametrize("family", ["sdxl", "unconditional", "classes"])
def test_it_is_made_for_the_latents_and_conditions_of_every_family(family, family_folder):
    teacher = load_teacher(family_folder(family))
    config = load_config(None, {"method": "latent_alignment", "align.distribution.adversarial": 1})
    prompts = teacher.own_prompts or ["food"]
    conditioning = teacher.encode_prompts([prompts[0], prompts[-1]])
    latents = torch.randn(2, *teacher.codec.latent_shape(teacher.size)).requires_grad_(True)
    examples = Batch(latents.detach(), conditioning)
    context = DenoiserContext(
        config, teacher.family, teacher.denoiser, teacher.unconditional(), opened=teacher, examples=examples
    )
    method = LatentAlignment({"student": alignment_of(context, context.networks(), [1])}, 0.9)
    (adversary,) = method.critics
    assert method.trained_modules().keys() == {"student", "discriminator"}
    random = PerSampleRandom(0, 0, 0, 2)
    assert adversary.update(latents, latents.flip(0), conditioning, 0, random).loss.isfinite()
    adversary.generator_loss(latents, conditioning, random).backward()
    assert latents.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in adversary.parameters.values())
