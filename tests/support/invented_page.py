"""A complete report of invented figures and real emoji, for tests and for inspection.

python tests/support/invented_page.py report.html
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from gendistill.evaluation.reporting.colours import colour_numbers
from gendistill.evaluation.reporting.curves import Point, Series, curves
from gendistill.evaluation.reporting.page import (
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Figure,
    Galleries,
    Gallery,
    ImageComparison,
    ImageRow,
    Notice,
    Page,
    PageSection,
    Table,
    TableRow,
    Text,
    write_page,
)
from gendistill.evaluation.reporting.plot import Plot
from gendistill.evaluation.reporting.rows import PlottedValue, by_row

EMOJI = Path(__file__).parents[2] / "assets" / "emoji" / "heldout-000.tar.gz"
MODELS = ("tiny-sd", "progressive", "consistency")
STEPS = (1, 2, 4, 8, 16, 50)
COLOURS = colour_numbers(MODELS, reference="tiny-sd")
DISTANCES = {
    "tiny-sd": (28.5, 10.4, 3.52, 1.71, 1.31, 1.08),
    "progressive": (4.84, 2.27, 1.49, 1.22, 1.18, 1.16),
    "consistency": (3.12, 1.62, 1.35, 1.41, 1.52, 1.66),
}
KINDS = {"tiny-sd": "Teacher, DDIM", "progressive": "Halved six times", "consistency": "Consistency distillation"}
DISTANCE = "fd-emoji, lower is better"
GROUPS = (
    "person sport, people with medium dark skin tones at play",
    *("country flag", "arts & crafts", "hand fingers open", "family", "time", "sky & weather", "animal marine"),
    *("clothing", "transport water", "food asian", "musical instrument", "office", "zodiac", "arrow", "face sleepy"),
    *("heart", "plant flower", "tool", "book paper", "mail", "lock", "game"),
)


def emoji(count: int) -> tuple[np.ndarray, list[str]]:
    """Held-out images uint8 (count, 3, 32, 32) and their captions."""
    images, captions = [], []
    with tarfile.open(EMOJI) as shard:
        members = {member.name: member for member in shard.getmembers()}
        for name in sorted(name for name in members if name.endswith(".png"))[:: len(members) // 3 // count][:count]:
            data, text = (shard.extractfile(members[file]) for file in (name, name.replace(".png", ".txt")))
            assert data is not None
            assert text is not None
            images.append(np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB")).transpose(2, 0, 1))
            captions.append(text.read().decode())
    return np.stack(images), captions


def blurred(images: np.ndarray, amount: float, seed: int) -> np.ndarray:
    """Images of an invented model: interpolations between real images and noise."""
    noise = np.random.default_rng(seed).normal(128, 60, images.shape)
    return ((1 - amount) * images + amount * noise).clip(0, 255).astype(np.uint8)


def interval(value: float, fraction: float = 0.06) -> tuple[float, float]:
    return value * (1 - fraction), value * (1 + 1.3 * fraction)


def results() -> Table:
    rows = []
    for model, distances in DISTANCES.items():
        for steps, distance in zip(STEPS, distances, strict=True):
            clip, low_high = 62 - 4 * np.log2(distance + 1) / 2, interval(distance)
            recall = 0.86 - 0.05 * np.log2(distance + 1)
            cells = [
                Cell(model, colour=COLOURS[model]),
                Cell(str(steps), value=steps),
                Cell(f"{distance:.2f}", f"{low_high[0]:.2f}–{low_high[1]:.2f}", distance),
                Cell(f"{clip:.1f}", f"±{0.31:.1f}", clip),
                Cell(f"{0.9 - 0.02 * distance**0.5:.2f}", value=0.9 - 0.02 * distance**0.5),
                Cell(f"{recall:.2f}", value=recall),
                Cell(f"{4.1 + 1.13 * steps:.1f}", value=4.1 + 1.13 * steps),
                Cell(f"{214 + 3 * (model == 'tiny-sd')}", value=214, muted=True),
            ]
            rows.append(TableRow.from_cells(*cells, highlight=model == "consistency" and steps == 4, group=KINDS[model]))
    columns = [
        Column("model", align="left"),
        Column("steps"),
        Column("fd-emoji", "Fréchet distance of 128 features; the interval holds 95 of 100 bootstrap samples.", "lower"),
        Column("CLIP", "Mean CLIP score of image and prompt.", "higher"),
        Column("precision", "Fraction of sampled images in the manifold of real ones.", "higher"),
        Column("recall", "Fraction of real images in the manifold of sampled ones.", "higher"),
        Column("ms", "Median time per image after warm-up.", "lower"),
        Column("MiB", "Peak memory."),
    ]
    return Table(
        columns, rows, "2,000 images of 754 prompts, the same seeds for all. The best of a column is marked."
    ).with_best()


def costs(cost: str) -> list[Series]:
    series = []
    for model, distances in DISTANCES.items():
        points = []
        for steps, distance in zip(STEPS, distances, strict=True):
            x = {"steps": steps, "ms": 4.1 + 1.13 * steps * (1.7 if model == "tiny-sd" else 1)}[cost]
            points.append(Point(x, distance, *interval(distance), label=str(steps)))
        series.append(Series(model, tuple(points), COLOURS[model]))
    return series


def guidance() -> list[Series]:
    teacher = [(56.1, 2.9, "1"), (59.0, 1.5, "2"), (60.8, 1.08, "3"), (61.9, 1.7, "5")]
    student = [(55.6, 3.3, "1"), (58.1, 1.9, "2"), (59.9, 1.35, "3"), (60.9, 1.9, "5")]
    return [
        Series(name, tuple(Point(x, y, *interval(y), label=label) for x, y, label in points), colour, dashed=not colour)
        for name, points, colour in (("tiny-sd, 50 steps", teacher, 0), ("progressive, 8 steps", student, 1))
    ]


def groups() -> Plot:
    random = np.random.default_rng(0)
    teacher, student = [], []
    for value in random.uniform(1, 3, len(GROUPS)):
        changed = value + random.gamma(1.2, 0.9) - 0.2
        teacher.append(PlottedValue(value, value - 0.2, value + 0.3))
        student.append(PlottedValue(changed, changed - 0.3, changed + 0.4))
    values = {"tiny-sd, 50 steps": teacher, "consistency, 4 steps": student}
    return by_row("distance to the group's real images", GROUPS, values, [0, COLOURS["consistency"]])


def fractions() -> Plot:
    tones = {"light": (0.21, 0.27), "medium light": (0.19, 0.22), "medium": (0.2, 0.2), "dark": (0.2, 0.14)}
    teacher, student = (
        [PlottedValue(fraction, fraction - 0.03, fraction + 0.03) for fraction in column]
        for column in zip(*tones.values(), strict=True)
    )
    return by_row("fraction of images by skin tone", list(tones), {"tiny-sd": teacher, "consistency": student}, [0, 2])


def page() -> Page:
    images, captions = emoji(32)
    galleries = [
        Gallery(f"{model}, {steps} steps", blurred(images, amount, seed), captions, note, COLOURS[model])
        for seed, (model, steps, amount, note) in enumerate(
            [
                ("tiny-sd", 50, 0.02, "60.6 ms"),
                ("progressive", 4, 0.1, "8.6 ms"),
                ("consistency", 4, 0.08, "8.6 ms"),
                ("tiny-sd", 4, 0.3, "11.8 ms"),
                ("progressive", 1, 0.25, "5.2 ms"),
                ("consistency", 1, 0.2, "5.2 ms"),
            ]
        )
    ]
    worst = [
        ImageRow(
            captions[number],
            [blurred(images, amount, number)[number] for amount in (0.02, 0.3, 0.2)],
            "rank 1 of 377" if not number else "",
        )
        for number in range(5)
    ]
    headline = Cards(
        [
            Card(
                "1.35",
                "consistency at 4 steps",
                "fd-emoji, 1.27–1.46; the teacher at 50 steps has 1.08",
                COLOURS["consistency"],
            ),
            Card("1.49", "progressive at 4 steps", "fd-emoji, 1.40–1.61", COLOURS["progressive"]),
            Card("7.0×", "as fast as the teacher", "8.6 ms per image, teacher 60.6 ms"),
            Card("0.89", "of the gap closed", "between the best solver of 4 calls and the teacher"),
        ]
    )
    return Page(
        "tiny-sd and two students",
        subtitle="Every figure on this page is invented. It shows the layout of a report.",
        sections=[
            PageSection(
                "Results",
                [
                    headline,
                    Notice("2,000 images are few for 2,048 features: distances are biased upwards by up to 0.3."),
                    results(),
                ],
                lead="The consistency student is as good in 4 steps as its teacher in 16, in a seventh of the time.",
            ),
            PageSection(
                "Quality against cost",
                [
                    Figure(
                        curves(costs("ms"), "milliseconds per image", DISTANCE, x_log=True, y_log=True, front="lower"),
                        "Filled points are on the Pareto front: no other point is faster and better. Numbers are step counts.",
                    ),
                    Figure(
                        curves(costs("steps"), "steps", DISTANCE, x_log=True, y_log=True),
                        "Bars contain 95 of 100 bootstrap samples.",
                    ),
                    Figure(curves(guidance(), "CLIP score, higher is better", DISTANCE), "One point per guidance scale."),
                ],
                lead="The models on the Pareto front offer the best trade-offs.",
            ),
            PageSection(
                "Regressions",
                [
                    Figure(groups(), "The 20 groups with the largest losses, of 198."),
                    ImageComparison(list(MODELS), worst),
                    Text("Attributes of images with neutral prompts:"),
                    Figure(fractions()),
                ],
            ),
            PageSection("The same prompts and seeds", [Galleries(galleries)], lead="Image k has seed k in every grid."),
            PageSection(
                "Protocol",
                [
                    Details(
                        "How the figures were measured",
                        [
                            ("extractor", "assets/emoji-features, sha256:0f3b9c1e7a55d2c4"),
                            ("resize", "none"),
                            ("images", "2,000"),
                            ("reference", "assets/emoji/heldout-{000..000}.tar.gz, 754 images"),
                            ("seeds", "0 to 1,999"),
                            ("versions", "gendistill 0.1.0, torch 2.14.1, diffusers 0.42.1"),
                        ],
                        opened=True,
                    ),
                    Details(
                        "How to read an interval",
                        "It contains 95 of 100 bootstrap samples of the images.",
                    ),
                ],
            ),
        ],
        footer="Invented by tests/support/invented_page.py.",
    )


if __name__ == "__main__":
    write_page(page(), Path(sys.argv[1]))
