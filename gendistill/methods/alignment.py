"""What a student is told of its teacher's ways from noise to latents.

From any point of such a way the student's x_0 is held against the way's end: one by one (matching), all together
(distribution), and in how near they are to each other (semantic). The terms are a method's whole loss
(`methods.latent_alignment`), or stand beside its own with `align.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gendistill.config import AlignConfig
from gendistill.data.batches import Batch, Trajectories
from gendistill.data.order import PerSampleRandom
from gendistill.diffusion.blocks import blocks_of, reading
from gendistill.diffusion.conditioning import Conditioning
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.networks import Networks
from gendistill.losses import distributions, relations
from gendistill.losses.distributions import patch_sliced_wasserstein as patches
from gendistill.losses.pixel import l2, perceptual_distance, pseudo_huber
from gendistill.samplers import ddim_step
from gendistill.schedulers import trailing
from gendistill.weights import weight_at

Loss = Callable[[Tensor, Tensor], Tensor]
Term = tuple[str, float, Tensor]

MATCHING: dict[str, Loss] = {"pseudo_huber": pseudo_huber, "l2": l2}
SEMANTIC: dict[str, Loss] = {
    "distance": relations.rkd_distance,
    "angle": relations.rkd_angle,
    "contrastive": relations.contrastive,
}
PATCH, LINES = 3, 16  # latents along an edge; directions


class Alignment:
    """All terms between a student and the ways of its teacher.

    Args:
        steps: step counts that the student is to be sampled at, whose own ways it also learns from.
    """

    def __init__(self, networks: Networks, config: AlignConfig, steps: Sequence[int]) -> None:
        self.networks, self.config, self.steps = networks, config, list(steps)
        self.perception = LatentPerception(networks.teacher) if config.match.perceptual != 0 else None

    def terms(self, batch: Batch, random: PerSampleRandom) -> Iterator[Term]:
        """Name, weight and loss (0-d) of each that counts in this step, of latents that the student sees from one point of each
        way of `batch.ways`; the latents of the data are those of other pictures."""
        ways, step = batch.ways, random.step
        assert ways is not None
        x_t, t = self._begin(ways, random)
        ours, theirs = self.networks.student(x_t, t, ways.conditioning).x_0, ways.latents
        for name, loss in MATCHING.items():
            if weight := weight_at(getattr(self.config.match, name), step):
                yield name, weight, loss(ours, theirs)
        if self.perception is not None and (weight := weight_at(self.config.match.perceptual, step)):
            yield "perceptual", weight, self.perception(ours, theirs, ways.conditioning, random)
        yield from self._as_sets(ours, theirs, batch.latents, step)
        for name, relation in SEMANTIC.items():
            if weight := weight_at(getattr(self.config.semantic, name), step):
                yield name, weight, relation(ours, theirs)

    def _as_sets(self, ours: Tensor, theirs: Tensor, of_data: Tensor, step: int) -> Iterator[Term]:
        """The student's latents beside the teacher's, and beside those of the data, whichever belongs to which."""
        config, generator = self.config.distribution, torch.Generator().manual_seed(step)

        def lines(*, centred: bool) -> Tensor:
            size = min(PATCH, *theirs.shape[2:])
            return distributions.patch_projections(LINES, theirs.shape[1], size, generator, centred=centred).to(theirs.device)

        if weight := weight_at(config.patches, step):
            yield "patches", weight, patches(ours, theirs, lines(centred=False), levels=1)
        if weight := weight_at(config.real_patches, step):
            yield "real_patches", weight, patches(ours, of_data, lines(centred=True), levels=1, paired=False)
        if weight := weight_at(config.sliced_wasserstein, step):
            along = distributions.random_projections(128, theirs[0].numel(), generator).to(theirs.device)
            yield "sliced_wasserstein", weight, distributions.sliced_wasserstein(ours, theirs, along)
        if weight := weight_at(config.mmd, step):
            yield "mmd", weight, distributions.mmd(ours, theirs)

    def _begin(self, ways: Trajectories, random: PerSampleRandom) -> tuple[Tensor, Tensor]:
        """Where the student begins: x_t (B, C, h, w) and t (B,), on the teacher's way, or where it comes to by itself."""
        config, device, last = self.config, ways.points.device, len(ways.times) - 1
        chance, place = random.uniform((2,)).unbind(1)
        draws = torch.Generator().manual_seed(random.step)  # of the whole step, the same for every process
        if float(torch.rand((), generator=draws)) < config.own_share:
            steps = self.steps[int(torch.randint(len(self.steps), (), generator=draws))]
            made = int(torch.randint(steps, (), generator=draws))
            return self._come_to(ways, steps, made)
        index = torch.where(chance < config.start_share, 0, (place * last).long()).to(device)
        return ways.points[torch.arange(len(ways), device=device), index], ways.times[index]

    def loss(self, batch: Batch, random: PerSampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """All terms by their weights in one scalar, and each for the log."""
        terms = list(self.terms(batch, random))
        total = sum((weight * term for _, weight, term in terms), batch.latents.new_zeros(()))
        return total, {name: term.detach() for name, _, term in terms}

    @torch.no_grad()
    def _come_to(self, ways: Trajectories, steps: int, made: int) -> tuple[Tensor, Tensor]:
        """Where the average comes to in `made` of `steps` steps from the noise."""
        average, x = self.networks.average, ways.noise
        times = trailing(steps, average.schedule.num_train_timesteps).to(x.device)
        for number in range(made):
            t, s = (times[at].expand(len(x)) for at in (number, number + 1))
            said = average(x, t, ways.conditioning)
            x = ddim_step(said.x_0, said.eps, s, average.schedule)
        return x, times[made].expand(len(x))


class LatentPerception:
    """How alike latents look to the teacher's own network, with the same little noise on both: a LPIPS of latents.

    Features of its blocks on the way down and of the middle one (Zhang et al. 2018, eq. 1, with this network in the place of
    VGG), under the pictures' conditions.

    Args:
        most: the noise is that of timesteps below this share of all.
    """

    def __init__(self, teacher: Denoiser, most: float = 0.3) -> None:
        self.teacher, self.most = teacher, most

    def __call__(self, ours: Tensor, theirs: Tensor, conditioning: Conditioning, random: PerSampleRandom) -> Tensor:
        """Latents (B, C, h, w), both; a scalar. Gradients flow to `ours`."""
        schedule = self.teacher.schedule
        t = (random.uniform() * self.most * schedule.num_train_timesteps).long().to(ours.device)
        noise = random.normal(ours.shape[1:]).to(ours.device)
        conditioning = conditioning.with_guidance(None)
        with torch.no_grad():
            target = self._features(schedule.add_noise(theirs, noise, t), t, conditioning)
        return perceptual_distance(self._features(schedule.add_noise(ours, noise, t), t, conditioning), target)

    def _features(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> list[Tensor]:
        network = self.teacher.network
        names = [name for name in blocks_of(network) if not name.startswith("up_")]
        with reading(network, names) as found:
            self.teacher(x_t, t, conditioning)
        return [found[name] for name in names]
