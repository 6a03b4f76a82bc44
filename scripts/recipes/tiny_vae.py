"""Train tiny-sd's `AutoencoderKL`: 32x32 images to 8x8x4 latents. The first half of `assets/tiny-sd`.

python scripts/recipes/tiny_vae.py                # about 25 minutes on 2 CPU cores; run again to resume
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from emoji import load_emoji
from resumable import ResumableRun, recipe_parser

RUN = Path("runs/recipes/tiny-vae")
KL_WEIGHT = 1e-6


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[32, 64, 128],
        layers_per_block=1,
        norm_num_groups=16,
        latent_channels=4,
        sample_size=32,
    )


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirrored in half of the cases, colour channels permuted in a quarter: the decoder must sample what it has not seen."""
    if torch.rand((), generator=generator) < 0.5:
        images = images.flip(-1)
    if torch.rand((), generator=generator) < 0.25:
        images = images[:, torch.randperm(3, generator=generator)]
    return images


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean over images of 10 log10(peak^2 / MSE), reconstructed from the posterior's mode."""
    errors = []
    for batch in images.split(64):
        decoded = vae.decode(vae.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(((decoded - batch) ** 2).mean(dim=(1, 2, 3)))
    return (10 * torch.log10(4 / torch.cat(errors))).mean().item()


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Give every latent channel mean 0 and standard deviation 1, exactly, by folding both into the two 1x1 convolutions.

    Stable Diffusion's pipelines know one scaling factor for all channels and no shift; folded, none is needed.
    """
    latents = torch.cat([vae.encode(batch).latent_dist.sample() for batch in images.split(256)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    to_moments, from_latent = vae.quant_conv, vae.post_quant_conv
    scale = torch.cat([1 / std, torch.ones_like(std)])
    shift = torch.cat([-mean / std, -2 * std.log()])  # the second half of the moments is the log-variance
    to_moments.weight.mul_(scale[:, None, None, None])
    to_moments.bias.mul_(scale).add_(shift)
    from_latent.bias.add_(from_latent.weight[:, :, 0, 0] @ mean)
    from_latent.weight.mul_(std[None, :, None, None])
    vae.register_to_config(scaling_factor=1.0)


def main() -> None:
    args = recipe_parser(__doc__, RUN, steps=5000, batch=16, learning_rate=1e-3, seed=1).parse_args()

    torch.manual_seed(args.seed)
    train, held_out = load_emoji("train"), load_emoji("heldout")
    vae = build_vae()
    run = ResumableRun(args, vae, ema_decay=0.998)
    for step in run:
        chosen = torch.randint(len(train), (args.batch,), generator=run.generator)
        images = augmented(train.images[chosen], run.generator)
        posterior: DiagonalGaussianDistribution = vae.encode(images).latent_dist
        reconstructed = vae.decode(posterior.sample(run.generator)).sample
        error = reconstructed - images
        loss = error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * posterior.kl().mean()
        loss.backward()
        run.record(error.square().mean())
        if step % 500 == 499:
            print(f"held-out PSNR {held_out_psnr(vae, held_out.images[::4]):.2f} dB", flush=True)
    run.use_ema()
    normalise_latents(vae, train.images)
    vae.save_pretrained(args.run / "vae")
    psnr = f"{held_out_psnr(vae, held_out.images):.2f}"
    (args.run / "psnr.txt").write_text(psnr)
    print(f"held-out PSNR {psnr} dB")


if __name__ == "__main__":
    main()
