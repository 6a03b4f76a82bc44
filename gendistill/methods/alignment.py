"""What a student is told of its teacher's ways from noise to latents.

From any point of such a way the student's x_0 is held against the way's end: one by one (matching), all together
(distribution), and in how near they are to each other (semantic). The terms are a method's whole loss
(`methods.latent_alignment`), or stand beside its own with `align.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.rollout import come_to
from gendistill.diffusion.settings import AlignConfig
from gendistill.diffusion.trained_networks import Networks
from gendistill.losses import distributions
from gendistill.losses.distributions import patch_sliced_wasserstein as patches
from gendistill.losses.pixel import l2, pseudo_huber
from gendistill.losses.terms import RELATION_LOSSES, Loss, Term, weighted
from gendistill.methods.clip_distance import ClipDistance
from gendistill.methods.latent_adversary import LatentAdversary
from gendistill.methods.latent_perception import LatentPerception
from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import weight_at
from gendistill.training.method import Update

MATCHING: dict[str, Loss] = {"pseudo_huber": pseudo_huber, "l2": l2}
SEMANTIC = {name: RELATION_LOSSES[name] for name in ("distance", "angle", "contrastive")}
PATCH, LINES = 3, 16  # latents along an edge; directions


class Alignment:
    """All terms between a student and the ways of its teacher.

    Args:
        steps: step counts that the student is to be sampled at, whose own ways it also learns from.
        adversary: who tells its latents from the teacher's; None where nothing adversarial is asked for.
        clip: what pictures of the latents mean; None where nothing is asked of that.
    """

    def __init__(
        self,
        networks: Networks,
        config: AlignConfig,
        steps: Sequence[int],
        *,
        adversary: LatentAdversary | None = None,
        clip: ClipDistance | None = None,
    ) -> None:
        self.networks, self.config, self.steps = networks, config, list(steps)
        self.perception = LatentPerception(networks.teacher) if config.match.perceptual != 0 else None
        self.adversary, self.clip = adversary, clip

    def painted(self, batch: Batch, random: PerSampleRandom) -> Tensor:
        """The student's x_0 (B, C, h, w), seen from one point of each of `batch.ways`."""
        ways = _ways(batch)
        x_t, t = self._begin(ways, random)
        return self.networks.student(x_t, t, ways.conditioning).x_0

    def updates(self, ours: Tensor, batch: Batch, random: PerSampleRandom) -> Iterator[Update]:
        """Of those that learn from what a student has `painted` before it does itself."""
        ways = _ways(batch)
        if self.adversary is not None and weight_at(self.config.distribution.adversarial, random.step):
            yield self.adversary.update(ours, ways.latents, ways.conditioning, random)

    def terms(self, ours: Tensor, batch: Batch, random: PerSampleRandom) -> Iterator[Term]:
        """Name, weight and loss (0-d) of each that counts in this step, of what a student has `painted` of `batch.ways`; the
        latents of the data are those of other pictures."""
        ways, step = _ways(batch), random.step
        theirs, conditioning = ways.latents, ways.conditioning
        for name, weight, loss in weighted(MATCHING, self.config.match, step):
            yield name, weight, loss(ours, theirs)
        if self.perception is not None and (weight := weight_at(self.config.match.perceptual, step)):
            yield "perceptual", weight, self.perception(ours, theirs, conditioning, random)
        yield from self._as_sets(ours, theirs, batch.latents, step)
        if self.adversary is not None and (weight := weight_at(self.config.distribution.adversarial, step)):
            yield "adversarial", weight, self.adversary.fooled(ours, conditioning, random)
        for name, weight, relation in weighted(SEMANTIC, self.config.semantic, step):
            yield name, weight, relation(ours, theirs)
        if self.clip is not None and (weight := weight_at(self.config.semantic.clip, step)):
            yield "clip", weight, self.clip(ours, theirs)

    def loss(self, ours: Tensor, batch: Batch, random: PerSampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """All terms by their weights in one scalar, and each for the log."""
        terms = list(self.terms(ours, batch, random))
        total = sum((weight * term for _, weight, term in terms), batch.latents.new_zeros(()))
        return total, {name: term.detach() for name, _, term in terms}

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
            return come_to(self.networks.average, ways.noise, ways.conditioning, steps, made)
        index = torch.where(chance < config.start_share, 0, (place * last).long()).to(device)
        return ways.points[torch.arange(len(ways), device=device), index], ways.times[index]


def _ways(batch: Batch) -> Trajectories:
    assert batch.ways is not None  # what alignment learns from
    return batch.ways
