"""Train assets/tiny-gan: a class-conditional 32x32 generator and its discriminator, on the emoji.

Classes are the category captions (category x vendor). Hinge loss (Lim & Ye 2017), spectral norm and projection (Miyato &
Koyama 2018), differentiable augmentation (Zhao et al. 2020), two time scales (Heusel et al. 2017), an average of the
generator. Hours on a CPU, minutes on a GPU; it resumes.

    python scripts/recipes/tiny_gan.py --device cuda
"""

import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torchvision.utils import save_image

from emoji import ASSETS, load_emoji
from gendistill.gan.architectures.resnet import ResNetDiscriminator, ResNetGenerator
from gendistill.gan.augmentation import REPEATED_SAMPLES, augment
from gendistill.gan.gan_folder import Gan, NetworkSource, save_gan
from gendistill.gan.generator import Generator, GeneratorSpec
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.feature_extractor import extract, load_extractor
from gendistill.metrics.features.gaussian import gaussian_statistics
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
        self.discriminator = ResNetDiscriminator(32, num_classes, args.discriminator_channels, 3, spread=True).to(args.device)
        self.rates = {"generator": args.learning_rate, "discriminator": args.learning_rate * args.discriminator_rate}
        self.optimizers = {
            name: torch.optim.Adam(getattr(self, name).parameters(), rate, betas=(0.0, 0.99), fused=True)
            for name, rate in self.rates.items()
        }
        self.step, self.seconds = 0, 0.0
        if (self.folder / "checkpoint.pt").exists():
            self.load()

    @property
    def parts(self) -> dict:
        networks = {name: getattr(self, name) for name in ("generator", "average", "discriminator")}
        return networks | {f"{name}_optimizer": optimizer for name, optimizer in self.optimizers.items()}

    def save(self) -> None:
        state = {name: module.state_dict() for name, module in self.parts.items()}
        torch.save({**state, "step": self.step, "seconds": self.seconds}, self.folder / "checkpoint.tmp")
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")

    def load(self) -> None:
        state = torch.load(self.folder / "checkpoint.pt", map_location=self.args.device, weights_only=True)
        for name, module in self.parts.items():
            module.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"resumed at step {self.step}")

    def set_learning_rates(self, scale: float) -> None:
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * scale

    def follow(self, share: torch.Tensor) -> None:
        """The average goes `share` (0-d) of the way; of the running statistics of batch norms it takes the newest."""
        with torch.no_grad():
            for mine, newest in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                mine.lerp_(newest, share)
            for mine, newest in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                mine.copy_(newest)


def adversarial_step(run: AdversarialRun, policy: tuple[str, ...]):
    """A step of both networks as one function.

    It takes images (B, 3, 32, 32), their classes (B,), noise (2, B, LATENT), augmentations (3, B, REPEATED_SAMPLES) and how far the
    average goes (0-d), and gives the logits of real and made images, (B,) each.
    """
    generator, discriminator, device = run.generator.train(), run.discriminator.train(), run.args.device

    def step(images, classes, z, draws, share):
        with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda"), cache_enabled=False):
            with torch.no_grad():
                fake = generator(z[0], classes).float()
            seen = torch.cat([augment(images, draws[0], policy), augment(fake, draws[1], policy)])
            of_real, of_fake = discriminator(seen, classes.repeat(2)).float().chunk(2)
        (F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()).backward()
        run.optimizers["discriminator"].step()
        run.optimizers["discriminator"].zero_grad()
        discriminator.requires_grad_(False)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda"), cache_enabled=False):
            made = augment(generator(z[1], classes).float(), draws[2], policy)
            loss = -discriminator(made, classes).float().mean()
        loss.backward()
        discriminator.requires_grad_(True)
        run.optimizers["generator"].step()
        run.optimizers["generator"].zero_grad()
        run.follow(share)
        return of_real.detach(), of_fake.detach()

    return step


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
    """fd-emoji of `num` images of classes by frequency."""
    random = torch.Generator(labels.device).manual_seed(seed)
    average.eval()
    features = []
    for _ in range(num // 250):
        some = labels[torch.randint(len(labels), (250,), device=labels.device, generator=random)]
        images = average(torch.randn(250, LATENT, device=labels.device, generator=random), some)
        features.append(extract(network, ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()))
    return frechet_distance(gaussian_statistics(torch.cat(features)), real)


def main() -> None:
    parser = recipe_parser(__doc__, Path("runs/recipes/tiny-gan"), steps=24_000, batch=128, learning_rate=2e-4, seed=0)
    parser.add_argument("--out", type=Path, default=ASSETS / "tiny-gan")
    parser.add_argument("--channels", type=int, nargs="+", default=[256, 192, 128, 96])
    parser.add_argument("--discriminator-channels", type=int, nargs="+", default=[96, 128, 192, 192])
    parser.add_argument("--discriminator-rate", type=float, default=2.0, help="its learning rate, times the generator's")
    parser.add_argument("--policy", nargs="+", default=["color", "translation", "cutout"])
    parser.add_argument("--ema", type=float, default=0.9997)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=None, help="save and stop after so many, to be resumed")
    args = parser.parse_args()
    device, policy = args.device, tuple(args.policy)

    emoji = load_emoji("train")
    names = sorted({caption["category"] for caption in emoji.captions})
    labels = torch.tensor([names.index(caption["category"]) for caption in emoji.captions], device=device)
    images = emoji.images.to(device)
    network = load_extractor("emoji", device)
    real = gaussian_statistics(extract(network, ((emoji.images + 1) * 127.5).round().to(torch.uint8)))
    run = AdversarialRun(args, len(names))
    average, discriminator = run.average, run.discriminator
    random, started, logged = torch.Generator(device), time.monotonic() - run.seconds, time.monotonic()
    stop = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    shown = torch.randn(200, LATENT, generator=torch.Generator().manual_seed(1)).to(device)
    shown_labels = torch.arange(len(names), device=device).repeat_interleave(10)

    step = adversarial_step(run, policy)
    while run.step < args.steps and time.monotonic() < stop:
        random.manual_seed(args.seed * 1_000_003 + run.step)
        rows = torch.randint(len(labels), (args.batch,), device=device, generator=random)
        z = torch.randn(2, args.batch, LATENT, device=device, generator=random)
        draws = torch.rand(3, args.batch, REPEATED_SAMPLES, device=device, generator=random)
        decay = min(1.0, (args.steps - run.step) / (0.3 * args.steps))  # falls to zero over the last third
        run.set_learning_rates(decay)
        average_by = 1 - min(args.ema, (1 + run.step) / (10 + run.step))
        of_real, of_fake = step(images[rows], labels[rows], z, draws, torch.tensor(average_by, device=device))
        run.step += 1

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
    spec = GeneratorSpec("noise", (LATENT,), (3, 32, 32), len(names), tuple(names))
    parts = Gan(Generator(average.cpu(), spec), source_of(average), discriminator.cpu(), source_of(discriminator))
    save_gan(args.out, parts, torch.float16)
    print(f"{args.out}: {run.step} steps in {run.seconds / 60:.1f} min")


def source_of(network: ModelMixin) -> NetworkSource:
    """Its class, and the arguments that it was made with."""
    arguments = {name: value for name, value in network.config.items() if not name.startswith("_")}
    return NetworkSource(f"{type(network).__module__}:{type(network).__name__}", json.loads(json.dumps(arguments)))


if __name__ == "__main__":
    main()
