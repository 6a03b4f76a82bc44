"""Train an ESRGAN generator of 23 blocks on enlarged emoji, by the L1 loss alone (the RRDB_PSNR of Wang et al. 2018).

Targets are the emoji enlarged to 64 pixels (Lanczos), inputs are the targets downsampled to 16 pixels (bicubic, antialiased):
what `gendistill distill --method gan` makes of `--data assets/emoji` for this teacher. The network starts as an interpolation.
About an hour on two CPU cores; resumable.

    python scripts/recipes/train_esrgan.py --out runs/esrgan/teacher
    python scripts/recipes/train_esrgan.py --out runs/esrgan/teacher --steps 0    # save the checkpoint's EMA as it is
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from emoji import load_emoji
from gendistill.data.gan_batches import downsampled
from gendistill.data.images import as_tensor, fitted
from gendistill.gan.architectures.rrdb import RESIDUAL_SCALE, RRDBGenerator
from gendistill.gan.gan_folder import Gan, NetworkSource, save_gan
from gendistill.gan.generator import Generator, GeneratorSpec
from resumable import ResumableRun, recipe_parser

SIZE, SCALE = 64, 4
SPEC = GeneratorSpec("image", (3, SIZE // SCALE, SIZE // SCALE), (3, SIZE, SIZE))


def enlarged(split: str, every: int = 1) -> torch.Tensor:
    """Every `every`-th emoji of a split as (N, 3, SIZE, SIZE) in [-1, 1]."""
    images = ((load_emoji(split).images[::every] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.stack([as_tensor(fitted(Image.fromarray(image), SIZE, SIZE)) for image in images])


@torch.no_grad()
def start_as_interpolation(network: RRDBGenerator) -> None:
    """Weights with which the network is an interpolation by a [1 2 1]/4 kernel after each doubling.

    Channels 0 to 2 carry the image and 3 to 5 its negative, since x = (f(x) - f(-x)) / 1.2 for the leaky ReLU f.
    """
    identity = torch.zeros(3, 3)
    identity[1, 1] = 1
    smooth = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16
    for layer, kernel, signed in (
        (network.first, identity, False),
        (network.ups[0], smooth, False),
        (network.ups[1], smooth, True),
        (network.high, identity, True),
        (network.out, identity, True),
    ):
        channels = 3 if layer is network.out else 6
        layer.weight[:channels] = 0
        layer.bias[:channels] = 0
        for k in range(channels):
            sign = 1 if k < 3 else -1
            if layer is network.first:
                layer.weight[k, k % 3] = sign * kernel
            elif not signed:  # before the first leaky ReLU
                layer.weight[k, k] = kernel
            else:
                layer.weight[k, k % 3], layer.weight[k, k % 3 + 3] = sign * kernel / 1.2, -sign * kernel / 1.2
    for block in network.body:  # starts as the identity, since its third dense block cancels its input: not as 1.2 times it
        last = block.blocks[2].convs[-1]
        last.weight[:, : last.out_channels, 1, 1] -= torch.eye(last.out_channels) / RESIDUAL_SCALE
    network.trunk.weight.mul_(0.1)
    network.trunk.bias.zero_()


@torch.no_grad()
def psnr(generated: torch.Tensor, targets: torch.Tensor) -> float:
    """The mean peak signal-to-noise ratio in dB of images in [-1, 1] over all channels (values rounded to 8 bits)."""
    generated = ((generated.clamp(-1, 1) + 1) * 127.5).round() / 255
    errors = (generated - (targets + 1) / 2).pow(2).flatten(1).mean(1)
    return (-10 * errors.log10()).mean().item()


@torch.no_grad()
def upscaled(network: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([network(part) for part in inputs.split(32)])


def main() -> None:
    parser = recipe_parser(__doc__, Path("runs/recipes/esrgan"), steps=3500, batch=4, learning_rate=5e-4, seed=0)
    parser.add_argument("--out", type=Path, default=Path("runs/esrgan/teacher"))
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--growth", type=int, default=16)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    network = RRDBGenerator(channels=args.channels, growth=args.growth)
    start_as_interpolation(network)
    targets, held_out = enlarged("train"), enlarged("heldout", 6)
    inputs, held_out_inputs = downsampled(targets, SPEC), downsampled(held_out, SPEC)
    bicubic = F.interpolate(held_out_inputs, scale_factor=SCALE, mode="bicubic")
    print(
        f"bicubic {psnr(bicubic, held_out):.2f} dB; initial {psnr(upscaled(network, held_out_inputs), held_out):.2f} dB",
        flush=True,
    )

    run = ResumableRun(args, network, warmup=50, weight_decay=0, ema_decay=0.995, decay_fraction=0.7)
    for step in run:
        rows = torch.randint(len(inputs), (args.batch,), generator=run.generator)
        flip = torch.rand((), generator=run.generator) < 0.5
        source, target = (images[rows].flip(3) if flip else images[rows] for images in (inputs, targets))
        loss = (network(source) - target).abs().mean()
        loss.backward()
        run.record(loss)
        if step % 250 == 249:
            print(f"step {step + 1}: {psnr(upscaled(network, held_out_inputs), held_out):.2f} dB", flush=True)

    run.use_ema()
    figures = {
        "steps": run.step,
        "minutes": round(run.seconds / 60, 1),
        "psnr": round(psnr(upscaled(network, held_out_inputs), held_out), 2),
        "psnr_bicubic": round(psnr(bicubic, held_out), 2),
        "images": len(held_out),
    }
    arguments = {name: value for name, value in network.config.items() if not name.startswith("_")}
    source = NetworkSource(f"{RRDBGenerator.__module__}:RRDBGenerator", json.loads(json.dumps(arguments)))
    save_gan(args.out, Gan(Generator(network.eval(), SPEC), source))
    (args.out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{args.out}: {figures}")


if __name__ == "__main__":
    main()
