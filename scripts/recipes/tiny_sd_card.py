"""Write tiny-sd's model card, with the figures of its `evaluation.json` and a grid of samples.

gendistill evaluate assets/tiny-sd --caption subcategory && python scripts/recipes/tiny_sd_card.py
"""

import importlib.metadata
import json
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

from emoji import ASSETS, load_emoji
from gendistill.evaluation.teacher_plans import TEACHER_SAMPLERS, TEACHER_SCALES, TEACHER_STEPS, load_rows, teacher_scheduler
from gendistill.samplers import FewStepSampler

FOLDER = ASSETS / "tiny-sd"
IMAGES = ASSETS.parent / "docs" / "images"
RUNS = Path("runs/recipes")
CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
license: apache-2.0
tags: [gendistill]
---

# tiny-sd

A small, genuine Stable Diffusion: 32x32 emoji from prompts, in the format of Stable Diffusion 1.5
(`UNet2DConditionModel` 4.2 M, `AutoencoderKL` 2.7 M with 8x8x4 latents, `CLIPTextModel` 0.4 M, `CLIPTokenizer`,
scaled-linear betas 0.00085 to 0.012, epsilon prediction, classifier-free guidance). It is the teacher that gendistill's
tests, demo and figures stand on.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("assets/tiny-sd")
picture = pipeline("google emoji of animal mammal", num_inference_steps=50, guidance_scale=3).images[0]
```

Prompts are `VENDOR emoji of TEXT`, where VENDOR is `google` or `twitter` and TEXT a name ("waving hand sign with medium
skin tone"), a subcategory ("hand fingers open") or a category ("people and body"), as in `assets/emoji`.

![64 named emoji of the training split, 50 DDIM steps, guidance 3](../../docs/images/tiny-sd-names.png)
![8 subcategory prompts, 8 seeds each, 50 DDIM steps, guidance 3](../../docs/images/tiny-sd-subcategories.png)

## Figures

`{metric}` against the {reference_count} pictures of {reference}, CLIP score by tiny-clip, {prompts}; a guided step is two
network calls. Made by `gendistill evaluate assets/tiny-sd --caption subcategory`.

| network calls | sampler | {header} |
|---|---|{rules}
{rows}

VAE: {psnr} dB PSNR on the held-out pictures.

## Limits

Of 64 emoji drawn at random from the names of the training split (the first grid and `docs/images/tiny-sd-names.txt`), about
half are clearly what was named, by eye (people, hands, couples, beds, bread, elephants), a quarter are in part (flags of
other colours, faces of another mood), and the rest are not (small objects, rare animals, signs with letters).

## How it was made

`scripts/recipes/tiny_vae.py` (seed 1, 5,000 steps of 16 pictures), then `scripts/recipes/tiny_sd.py` in {runs} runs, each
from the average of the one before, on the training split of `assets/emoji`, on 2 shared CPU cores (AdamW, EMA 0.999):

| run | steps | batch | learning rate | seed | captions: name / subcategory / category / empty | minutes | note |
|---|---|---|---|---|---|---|---|
{stages}

Weights are the moving average, in float16. {versions}.

## Licence and attribution

Weights: Apache-2.0. They were trained on Noto Emoji (copyright Google LLC, Apache License 2.0) and Twemoji (copyright
Twitter, Inc. and other contributors, CC-BY 4.0); see `assets/emoji/README.md`.
"""


def figures_table() -> dict[str, object]:
    """Rows of the card's table: one a solver and number of network calls, one column a guidance scale."""
    rows = load_rows(FOLDER / "evaluation.json")
    protocol = rows[0].protocol
    lines = []
    for calls in sorted({row.network_calls for row in rows}, reverse=True):
        for solver in TEACHER_SAMPLERS:
            cells = []
            for scale in TEACHER_SCALES:
                found = [
                    row
                    for row in rows
                    if (row.network_calls, row.sampler, row.protocol.guidance_scale) == (calls, solver, scale)
                ]
                score = found[0].scores if found else None
                cells.append(f"{score[protocol.metric]:.1f} / {score['clip_score']:.1f}" if score else "")
            if any(cells):
                lines.append(f"| {calls} | {solver} | {' | '.join(cells)} |")
    return {
        "metric": protocol.metric,
        "reference": protocol.reference,
        "reference_count": protocol.reference_count,
        "prompts": protocol.prompts,
        "header": " | ".join(f"guidance {scale:g}: {protocol.metric} / CLIP" for scale in TEACHER_SCALES),
        "rules": "---|" * len(TEACHER_SCALES),
        "rows": "\n".join(lines),
    }


def draw_samples() -> None:
    """64 names of the training split, and 8 subcategories with 8 seeds each."""
    sampler = FewStepSampler.from_pretrained(FOLDER)
    sampler.pipeline.scheduler = teacher_scheduler("ddim", sampler.pipeline.scheduler.config)
    captions = load_emoji("train").captions
    chosen = torch.randperm(len(captions), generator=torch.Generator().manual_seed(4)).tolist()
    names = [captions[index]["name"] for index in chosen[:64]]
    subcategories = [prompt for prompt in sorted({captions[index]["subcategory"] for index in chosen[:8]}) for _ in range(8)]
    for file, prompts in {"tiny-sd-names.png": names, "tiny-sd-subcategories.png": subcategories}.items():
        batches = sampler.pictures(
            prompts, range(len(prompts)), num_inference_steps=TEACHER_STEPS, guidance_scale=3.0, batch_size=64
        )
        grid = make_grid(torch.cat(list(batches)), nrow=8, padding=2, pad_value=1)
        save_image(torch.nn.functional.interpolate(grid[None], scale_factor=2)[0], IMAGES / file)
    (IMAGES / "tiny-sd-names.txt").write_text("\n".join(names) + "\n")


def stage_row(number: int, run: Path) -> str:
    """A training run of `tiny_sd.py`, from its log and settings, as a row of the card."""
    settings = json.loads((run / "settings.json").read_text())
    trained = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    shares = [*settings["level_shares"], 1 - sum(settings["level_shares"])]
    captions = " / ".join(f"{share:.0%}" for share in shares)
    return (
        f"| {number} | {settings['steps']:,} | {settings['batch']} | {settings['learning_rate']:g} | {settings['seed']} "
        f"| {captions} | {trained['minutes']:.0f} | {settings['note']} |"
    )


def main() -> None:
    runs = sorted(path.parent for path in RUNS.glob("tiny-sd*/settings.json"))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    draw_samples()
    card = CARD.format(
        **figures_table(),
        psnr=(RUNS / "tiny-vae" / "psnr.txt").read_text().strip(),
        runs=len(runs),
        stages="\n".join(stage_row(number, run) for number, run in enumerate(runs, start=1)),
        versions=versions,
    )
    (FOLDER / "README.md").write_text(card)


if __name__ == "__main__":
    main()
