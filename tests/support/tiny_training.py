"""A trainer that is real but for its size: 20 random latents, the tiny random pipeline, steps of milliseconds."""

import torch
from row_cache import write_cache

from gendistill.data.batches import LatentData, as_rows
from gendistill.diffusion.feature_heads import FeatureHeads
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.teacher import load_teacher
from gendistill.diffusion.trained_networks import full_networks, lora_config, lora_networks
from gendistill.methods.consistency import ConsistencyConfig, ConsistencyDistillation
from gendistill.methods.distribution_matching import DistributionMatching, DistributionMatchingConfig
from gendistill.methods.feature_adversary import AdversarialConfig, FeatureAdversary
from gendistill.training.trainer import Trainer
from gendistill.training.trainer_config import TrainerConfig

TINY_RUN = {
    "device": "cpu",
    "solvers": "[ddim]",
    "data.num_synthetic": 4,
    "data.synthetic_steps": 2,
    "trainer.log_every": 1,
    "trainer.trackers": "[]",
}


def tiny_data(teacher_folder, folder):
    """The cache of the latents, written to `folder`."""
    generator = torch.Generator().manual_seed(0)
    moments = torch.cat([torch.randn(20, 4, 8, 8, generator=generator), torch.full((20, 4, 8, 8), 0.1)], dim=1)
    prompts = load_teacher(teacher_folder).encode_prompts(["food", "animals"] * 10)
    return LatentData(write_cache(folder, [as_rows(moments, prompts)]))


def tiny_trainer(teacher_folder, data, folder, *, validate=None, lora=False, matching=0, adversary=True, **settings):
    """A fresh one for the run folder `folder`, as a fresh process makes it; `settings` of TrainerConfig.

    With `matching` it is one of distribution matching for 2 steps and 1, with so many updates of the fake score in a cycle, and
    with a discriminator on the fake score's features, unless `adversary` is False.
    """
    teacher = load_teacher(teacher_folder)
    networks = (
        lora_networks(teacher.denoiser, lora_config(teacher.family.lora_targets, 4))
        if lora
        else full_networks(teacher.denoiser)
    )
    if lora:  # peft samples its adapters from the global generator, as a new process does
        fill = torch.Generator().manual_seed(0)
        for number, parameter in enumerate(networks.trained.values()):
            with torch.no_grad():
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=fill) if number % 2 == 0 else parameter * 0)
        networks.update_average(0.0)
    guidance = Guidance(teacher.unconditional(), GuidanceConfig())
    if matching:
        method = DistributionMatching(networks, guidance, DistributionMatchingConfig(fake_score={"steps": matching}), [2, 1])
    else:
        method = ConsistencyDistillation(networks, guidance, ConsistencyConfig(num_ddim_timesteps=10))
    if matching and adversary:
        torch.manual_seed(0)
        heads = FeatureHeads({"mid_block": (networks.teacher.network.config.block_out_channels[-1], 4, 4)})
        adversarial = AdversarialConfig(weight=0.01, features="fake_score")
        method.adversary = FeatureAdversary(heads, networks.teacher, adversarial, method.fake_score)
    config = TrainerConfig(
        **{"batch_size": 4, "warmup_steps": 2, "checkpoint_every": 2, "validate_every": 1, "trackers": [], **settings}
    )
    return Trainer(method, data, config, folder, seed=5, validate=validate, cpu=True)
