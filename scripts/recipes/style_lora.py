"""Train style LoRAs for `assets/tiny-sd` on emoji that `emoji_styles.py` makes, as anyone trains one for Stable Diffusion.

    OMP_NUM_THREADS=1 python scripts/recipes/style_lora.py hue outlined pixelated     # some minutes each on one CPU core

The ordinary denoising loss on a PEFT adapter. For each style: `OUT/STYLE.safetensors` with diffusers' keys and
`OUT/kohya/STYLE.safetensors` with kohya's. The trigger word of a style is its name, in front of a prompt of tiny-sd.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from safetensors.torch import save_file
from torch.nn import functional as F

from emoji import ASSETS
from emoji_styles import STYLES, styled_emoji
from gendistill.export.kohya import kohya_metadata, kohya_weights
from gendistill.export.student_folder import save_lora
from gendistill.samplers.families import family_of
from gendistill.samplers.layouts.unet_layout import StableDiffusionLayout

ADAPTER = "style"


def train_style_lora(style: str, *, num: int, steps: int, batch_size: int, rank: int, learning_rate: float, seed: int):
    """The pipeline of tiny-sd with a trained adapter `style`."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "tiny-sd")
    pipeline.set_progress_bar_config(disable=True)
    network, noising = pipeline.unet.requires_grad_(False), DDPMScheduler.from_config(pipeline.scheduler.config)
    images, captions = zip(*styled_emoji(style, num=num, seed=seed), strict=True)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        moments = [pipeline.vae.encode(part).latent_dist.mean for part in pixels.split(256)]
        latents = torch.cat(moments) * pipeline.vae.config.scaling_factor
        distinct = sorted(set(captions))
        states = torch.cat(
            [pipeline.encode_prompt(distinct[i : i + 64], "cpu", 1, False)[0] for i in range(0, len(distinct), 64)]
        )
    row_of = {caption: row for row, caption in enumerate(distinct)}
    rows = torch.tensor([row_of[caption] for caption in captions])
    targets = list(family_of(pipeline).lora_targets)
    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian"), ADAPTER)
    optimizer = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], lr=learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in range(1, steps + 1):
        chosen, t = torch.randint(len(latents), (batch_size,)), torch.randint(1000, (batch_size,))
        noise = torch.randn_like(latents[chosen])
        prediction = network(noising.add_noise(latents[chosen], noise, t), t, states[rows[chosen]]).sample
        loss = F.mse_loss(prediction, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
        losses.append(float(loss.detach()))
        if step % 100 == 0:
            print(f"{style}: step {step}, loss {np.mean(losses[-100:]):.4f}", flush=True)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("styles", nargs="+", choices=STYLES)
    parser.add_argument("--num", type=int, default=2000, help="images, at random of the training split")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes/style-loras"))
    options = vars(parser.parse_args())
    out, styles = options.pop("out"), options.pop("styles")
    (out / "kohya").mkdir(parents=True, exist_ok=True)
    for style in styles:
        pipeline = train_style_lora(style, **options)
        save_lora(pipeline, ADAPTER, out, torch.float32, f"{style}.safetensors")
        weights = kohya_weights(pipeline, StableDiffusionLayout(), ADAPTER, torch.float32)
        save_file(weights, out / "kohya" / f"{style}.safetensors", metadata={"format": "pt", **kohya_metadata(weights)})


if __name__ == "__main__":
    main()
