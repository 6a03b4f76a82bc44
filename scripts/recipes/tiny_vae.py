"""Train the `AutoencoderKL` of tiny-sd or of tiny-sd3: the first part of the recipes of these assets.

    python scripts/recipes/tiny_vae.py                # about 25 minutes on 2 CPU cores; run again to resume
    python scripts/recipes/emoji_data.py --resolution 64 --out runs/recipes/emoji-64
    V="--pipeline tiny-sd3 --images runs/recipes/emoji-64 --batch 4 --bfloat16"
    python scripts/recipes/tiny_vae.py $V --init assets/tiny-sd/vae --run runs/recipes/tiny-sd3-vae --minutes 20
    python scripts/recipes/tiny_vae.py $V --decoder-of runs/recipes/tiny-sd3-vae/vae --run runs/recipes/tiny-sd3-decoder \\
        --minutes 30                                  # optional: the same latents, decoded better

tiny-sd's has latents of 8x8x4 for 32x32 images, normalised by channel; tiny-sd3's, as Stable Diffusion 3's, of 8x8x16 for
64x64 images, no 1x1 convolutions around the latents, and one scaling and one shift factor.
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from emoji import ASSETS, load_emoji
from resumable import ResumableRun, recipe_parser

KL_WEIGHT = 1e-6


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "tiny-sd": {"block_out_channels": [32, 64, 128], "norm_num_groups": 16, "latent_channels": 4, "sample_size": 32},
    "tiny-sd3": {
        "block_out_channels": [16, 32, 64, 128],
        "norm_num_groups": 8,
        "latent_channels": 16,
        "sample_size": 64,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}


def build_vae(pipeline: str) -> AutoencoderKL:
    architecture = ARCHITECTURES[pipeline]
    levels = len(architecture["block_out_channels"])
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=1,
        **architecture,
    )


def initialise(vae: AutoencoderKL, trained: AutoencoderKL) -> None:
    """Copy the weights of a trained autoencoder, or of one with fewer levels to the inner levels, wherever the shapes fit."""
    weights, outer = vae.state_dict(), len(vae.config.block_out_channels) - len(trained.config.block_out_channels)
    for name, weight in trained.state_dict().items():
        inner = re.sub(r"encoder\.down_blocks\.(\d+)", lambda level: f"encoder.down_blocks.{int(level[1]) + outer}", name)
        if inner in weights and weights[inner].shape == weight.shape:
            weights[inner].copy_(weight)


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images, flipped with probability 1/2 and with permuted colour channels with probability 1/4, for generalisation."""
    if torch.rand((), generator=generator) < 0.5:
        images = images.flip(-1)
    if torch.rand((), generator=generator) < 0.25:
        images = images[:, torch.randperm(3, generator=generator)]
    return images


def reconstruction_loss(error: torch.Tensor) -> torch.Tensor:
    return error.square().mean() + 0.1 * error.abs().mean()


def half_size(x: torch.Tensor) -> torch.Tensor:
    """Images or latents (N, C, H, W) at half of the edges."""
    return F.avg_pool2d(x, 2)


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean PSNR over images, 10 log10(peak^2 / MSE), of reconstructions from the posterior's mode."""
    errors = []
    for batch in images.split(64):
        decoded = vae.decode(vae.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(((decoded - batch) ** 2).mean(dim=(1, 2, 3)))
    return (10 * torch.log10(4 / torch.cat(errors))).mean().item()


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Make latents of mean 0 and standard deviation 1: by channel in the 1x1 convolutions, or by the two factors."""
    latents = torch.cat([vae.encode(batch).latent_dist.sample() for batch in images.split(256)])
    if vae.quant_conv is None:  # latents = (encoded - shift_factor) * scaling_factor
        vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    else:
        normalise_channels(vae, latents)


def normalise_channels(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Normalise every latent channel to mean 0 and standard deviation 1 by changing the weights of the two 1x1 convolutions.

    Stable Diffusion's pipelines have one scaling factor for all channels and no shift.
    """
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
    parser = recipe_parser(__doc__, Path("runs/recipes/tiny-vae"), steps=5000, batch=16, learning_rate=1e-3, seed=1)
    parser.add_argument("--pipeline", choices=ARCHITECTURES, default="tiny-sd")
    parser.add_argument(
        "--images", type=Path, default=ASSETS / "emoji", help="folder of emoji_data.py, of the right resolution"
    )
    parser.add_argument(
        "--init", type=Path, help="folder of an autoencoder, or of one with fewer levels, for the initial weights"
    )
    parser.add_argument(
        "--decoder-of", type=Path, help="folder of an autoencoder to train the decoder of, for the same latents"
    )
    parser.add_argument(
        "--scale-equivariance",
        type=float,
        default=0.0,
        help="weight of the loss of small images, decoded from small latents: smoother latents, which are learned faster",
    )
    parser.add_argument("--bfloat16", action="store_true", help="autocast: faster where the CPU has instructions for it")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, held_out = load_emoji("train", args.images), load_emoji("heldout", args.images)
    vae = AutoencoderKL.from_pretrained(args.decoder_of) if args.decoder_of else build_vae(args.pipeline)
    vae.to(memory_format=torch.channels_last).encoder.requires_grad_(not args.decoder_of)
    if args.init:
        initialise(vae, AutoencoderKL.from_pretrained(args.init))
    run = ResumableRun(args, vae, ema_decay=0.998)
    for step in run:
        rows = torch.randint(len(train), (args.batch,), generator=run.generator)
        images = augmented(train.images[rows], run.generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            posterior: DiagonalGaussianDistribution = vae.encode(images).latent_dist
            latents = posterior.sample(run.generator)
            error = vae.decode(latents).sample - images
            loss = reconstruction_loss(error) + KL_WEIGHT * posterior.kl().mean()
            if args.scale_equivariance:
                smaller = vae.decode(half_size(latents)).sample - half_size(images)
                loss = loss + args.scale_equivariance * reconstruction_loss(smaller)
        loss.backward()
        run.record(error.square().mean())
        if step % 500 == 499:
            print(f"held-out PSNR {held_out_psnr(vae, held_out.images[::4]):.2f} dB", flush=True)
    run.use_ema()
    if not args.decoder_of:
        normalise_latents(vae, train.images)
    vae.save_pretrained(args.run / "vae")
    psnr = f"{held_out_psnr(vae, held_out.images):.2f}"
    (args.run / "psnr.txt").write_text(psnr)
    print(f"held-out PSNR {psnr} dB")


if __name__ == "__main__":
    main()
