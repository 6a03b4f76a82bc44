"""Train assets/tiny-gan: a class-conditional 32x32 generator and its discriminator, on the emoji.

Classes are the category captions (category x vendor). Hinge loss (Lim & Ye 2017), spectral norm and projection (Miyato &
Koyama 2018), differentiable augmentation (Zhao et al. 2020), two time scales (Heusel et al. 2017), an average of the
generator. Hours on a CPU, minutes on a GPU; it resumes.

    python scripts/recipes/tiny_gan.py --steps 40000 --device cuda
"""

import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.utils import save_image

from emoji import ASSETS, load_emoji
from gendistill.gan.architectures.resnet import ResNetDiscriminator, ResNetGenerator
from gendistill.gan.augmentation import DRAWS, augment
from gendistill.metrics.features import extract, load_extractor
from gendistill.metrics.frechet import frechet_distance, gaussian_statistics
from resumable import recipe_parser

LATENT = 128


class AdversarialRun:
    """Generator, its average, discriminator and both optimizers, with checkpoints."""

    def __init__(self, args, num_classes: int) -> None:
        self.folder, self.args = args.run, args
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        self.generator = ResNetGenerator(LATENT, num_classes, args.channels).to(args.device)
        self.average = ResNetGenerator(LATENT, num_classes, args.channels).to(args.device).requires_grad_(False)
        self.average.load_state_dict(self.generator.state_dict())
        self.discriminator = ResNetDiscriminator(32, num_classes, args.discriminator_channels, 3).to(args.device)
        slow, fast = args.learning_rate, args.learning_rate * args.discriminator_rate
        self.optimizers = {
            "generator": torch.optim.Adam(self.generator.parameters(), slow, betas=(0.0, 0.99), fused=True),
            "discriminator": torch.optim.Adam(self.discriminator.parameters(), fast, betas=(0.0, 0.99), fused=True),
        }
        self.step, self.seconds = 0, 0.0
        if (self.folder / "checkpoint.pt").exists():
            self.load()

    @property
    def modules(self) -> dict:
        return {
            "generator": self.generator,
            "average": self.average,
            "discriminator": self.discriminator,
            **{f"{name}_optimizer": optimizer for name, optimizer in self.optimizers.items()},
        }

    def save(self) -> None:
        state = {name: module.state_dict() for name, module in self.modules.items()}
        torch.save({**state, "step": self.step, "seconds": self.seconds}, self.folder / "checkpoint.tmp")
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")

    def load(self) -> None:
        state = torch.load(self.folder / "checkpoint.pt", map_location=self.args.device, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"resumed at step {self.step}")

    def follow(self, decay: float) -> None:
        """The average follows; of the running statistics of batch norms it takes the newest."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - decay)
            for mine, newest in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                mine.copy_(newest)


@torch.no_grad()
def recalibrate(average: ResNetGenerator, labels: torch.Tensor, random: torch.Generator, batches: int = 100) -> None:
    """Statistics of batch norms as the averaged weights have them (Brock et al. 2019, section 3.1)."""
    norms = [module for module in average.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    average.train()
    for _ in range(batches):
        some = labels[torch.randint(len(labels), (256,), device=labels.device, generator=random)]
        average(torch.randn(256, LATENT, device=labels.device, generator=random), some)
    average.eval()
    for norm in norms:
        norm.momentum = 0.1


@torch.no_grad()
def distance(average: ResNetGenerator, labels: torch.Tensor, real, network, num: int, seed: int) -> float:
    """fd-emoji of `num` pictures of classes by frequency."""
    random = torch.Generator(labels.device).manual_seed(seed)
    average.eval()
    features = []
    for _ in range(num // 250):
        some = labels[torch.randint(len(labels), (250,), device=labels.device, generator=random)]
        pictures = average(torch.randn(250, LATENT, device=labels.device, generator=random), some)
        features.append(extract(network, ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()))
    return frechet_distance(gaussian_statistics(torch.cat(features)), real)


def main() -> None:
    parser = recipe_parser(__doc__, Path("runs/recipes/tiny-gan"), steps=40_000, batch=128, learning_rate=2e-4, seed=0)
    parser.add_argument("--out", type=Path, default=ASSETS / "tiny-gan")
    parser.add_argument("--channels", type=int, nargs="+", default=[256, 192, 128, 96])
    parser.add_argument("--discriminator-channels", type=int, nargs="+", default=[96, 128, 192, 192])
    parser.add_argument("--discriminator-rate", type=float, default=2.0, help="its learning rate, times the generator's")
    parser.add_argument("--r1", type=float, default=0.0, help="gradient penalty on real pictures, every 16 steps")
    parser.add_argument("--policy", nargs="+", default=["color", "translation", "cutout"])
    parser.add_argument("--ema", type=float, default=0.9995)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=None, help="save and stop after so many, to be resumed")
    args = parser.parse_args()
    device, policy = args.device, tuple(args.policy)

    emoji = load_emoji("train")
    names = sorted({caption["category"] for caption in emoji.captions})
    labels = torch.tensor([names.index(caption["category"]) for caption in emoji.captions], device=device)
    pictures = emoji.pictures.to(device)
    network = load_extractor("emoji", device)
    real = gaussian_statistics(extract(network, ((emoji.pictures + 1) * 127.5).round().to(torch.uint8)))
    run = AdversarialRun(args, len(names))
    generator, discriminator, average = run.generator, run.discriminator, run.average
    random, started, logged = torch.Generator(device), time.monotonic() - run.seconds, time.monotonic()
    stop = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    shown = torch.randn(200, LATENT, generator=torch.Generator().manual_seed(1)).to(device)
    shown_labels = torch.arange(len(names), device=device).repeat_interleave(10)

    while run.step < args.steps and time.monotonic() < stop:
        random.manual_seed(args.seed * 1_000_003 + run.step)
        rows = torch.randint(len(labels), (args.batch,), device=device, generator=random)
        z = torch.randn(2 * args.batch, LATENT, device=device, generator=random)
        draws = torch.rand(3 * args.batch, DRAWS, device=device, generator=random).split(args.batch)
        classes = labels[rows]
        decay = min(1.0, (args.steps - run.step) / (0.3 * args.steps))  # falls to zero over the last third
        for name, optimizer in run.optimizers.items():
            factor = args.discriminator_rate if name == "discriminator" else 1.0
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * factor * decay

        generator.train()
        with torch.no_grad():
            fake = generator(z[: args.batch], classes)
        seen = torch.cat([augment(pictures[rows], draws[0], policy), augment(fake, draws[1], policy)])
        of_real, of_fake = discriminator(seen, classes.repeat(2)).chunk(2)
        loss_d = F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()
        if args.r1 and run.step % 16 == 0:
            x = pictures[rows].requires_grad_()
            slope = torch.autograd.grad(discriminator(augment(x, draws[0], policy), classes).sum(), x, create_graph=True)[0]
            loss_d = loss_d + 16 * args.r1 / 2 * slope.square().sum((1, 2, 3)).mean()
        loss_d.backward()
        run.optimizers["discriminator"].step()
        run.optimizers["discriminator"].zero_grad()

        discriminator.requires_grad_(False)
        loss_g = -discriminator(augment(generator(z[args.batch :], classes), draws[2], policy), classes).mean()
        loss_g.backward()
        discriminator.requires_grad_(True)
        run.optimizers["generator"].step()
        run.optimizers["generator"].zero_grad()
        run.step += 1
        run.follow(min(args.ema, (1 + run.step) / (10 + run.step)))

        if time.monotonic() - logged > 30 or run.step == args.steps:
            logged, run.seconds = time.monotonic(), time.monotonic() - started
            found = distance(average, labels, real, network, 2000, seed=7)
            line = {
                "step": run.step,
                "minutes": round(run.seconds / 60, 2),
                "real": round(of_real.mean().item(), 3),
                "fake": round(of_fake.mean().item(), 3),
                "fd-emoji": round(found, 3),
            }
            print(json.dumps(line), flush=True)
            with (run.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            with torch.no_grad():
                save_image(average.eval()(shown, shown_labels) / 2 + 0.5, run.folder / "grid.png", nrow=20)
            run.save()

    run.seconds = time.monotonic() - started
    run.save()
    recalibrate(average, labels, random.manual_seed(args.seed))
    print("recalibrated fd-emoji", round(distance(average, labels, real, network, 2000, seed=7), 3))
    for part, name in ((average, "generator"), (discriminator, "discriminator")):
        part.half().save_pretrained(args.out / name)
    (args.out / "recipe.json").write_text(
        json.dumps({"steps": run.step, "minutes": round(run.seconds / 60, 1), "classes": names}) + "\n"
    )


if __name__ == "__main__":
    main()
