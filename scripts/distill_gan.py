"""Compress a generator that gendistill has never seen: a script to copy and change.

Your own, from a module that Python can import here:

    python scripts/distill_gan.py teacher=my_module:Generator generator.weights=generator.safetensors \\
        teacher_config=arguments.json data.path=my-images compress.factor=4 out=runs/small

NAME=VALUE changes any setting, as in `gendistill distill --set`. Without a teacher, for those who want to look first: a
super-resolver is defined below, taught for a minute to double the emoji's size, and given as `distill_gan:SuperResolver` to
the same function, which knows nothing of it. Minutes on a CPU.

    python scripts/distill_gan.py
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from gendistill.cli.shared import parse_settings
from gendistill.data.images import as_tensor
from gendistill.data.sources.source import open_source
from gendistill.run.config import load_config
from gendistill.run.distill import distill

EMOJI = str(Path(__file__).parents[1] / "assets" / "emoji" / "train-000.tar.gz")
SETTINGS = {
    "method": "gan",
    "out": "runs/distill-gan",
    "compress.factor": 4.0,
    "trainer.max_steps": 2000,
    "trainer.batch_size": 32,
    "trainer.learning_rate": 5e-4,
}


class SuperResolver(nn.Module):
    """Images (B, 3, h, w) in [-1, 1] to twice their size, by residual blocks and a pixel shuffle."""

    def __init__(self, width: int = 64, num_blocks: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(num_blocks)
        )
        self.last = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return F.interpolate(x, scale_factor=2.0) + F.pixel_shuffle(self.last(h), 2)


def teach(folder: Path, steps: int = 150, batch: int = 32) -> dict[str, object]:
    """A teacher for those who brought none: the settings that open it."""
    images = torch.stack([as_tensor(sample.image) for sample in open_source(EMOJI, "name", 0)])
    torch.manual_seed(0)
    network = SuperResolver()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in track(range(steps), "teaching the teacher"):
        large = images[torch.randint(len(images), (batch,))]
        small = F.interpolate(large, scale_factor=0.5, mode="bicubic", antialias=True)
        loss = (network(small) - large).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "teacher.safetensors")
    (folder / "teacher.json").write_text(json.dumps({"width": 64, "num_blocks": 6}))
    print(f"the teacher is off by {loss.item():.4f} a channel, of 2")
    return {
        "teacher": "distill_gan:SuperResolver",
        "teacher_config": str(folder / "teacher.json"),
        "generator.weights": str(folder / "teacher.safetensors"),
        "generator.kind": "image",
        "generator.input_shape": [3, 16, 16],
        "data.path": EMOJI,
        "trainer.max_steps": 150,
        "trainer.learning_rate": 1e-3,
    }


def main() -> None:
    settings = {**SETTINGS, **parse_settings(sys.argv[1:])}
    if "teacher" not in settings:
        settings = {**SETTINGS, **teach(Path(settings["out"]) / "teacher"), **settings}
    print(distill(load_config(None, settings)).describe())


if __name__ == "__main__":
    main()
