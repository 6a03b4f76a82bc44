"""The candidates of `gendistill finetune` on three new styles of emoji: closeness to the style, and what is kept without it.

    python benchmarks/finetune_candidates.py --student runs/full/student --minutes 10 --images 1,20,200 --at-once 2

The styles are made on the fly from the embedded emoji: one hue, outlined, pixelated. Each candidate learns N images of the
training split with the trigger word of the style. The table has the distance of its 4-call images to the held-out emoji in that
style, that of the teacher fine-tuned the plain way at 50 steps, and the gap closed on prompts without the trigger. Each run has
one thread, `--at-once` runs are parallel. The study can be resumed: it keeps trained and measured runs.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps
from rich.console import Console
from rich.table import Table
from study import called, evaluated, folder_of, run_all

from gendistill.assets import asset_path
from gendistill.data.sources.source import open_source
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.evaluator import build_evaluator
from gendistill.samplers import FewStepSampler, StudentSpec

TRAINING, HELD_OUT, CAPTION = "assets/emoji/train-*.tar.gz", "assets/emoji/heldout-*.tar.gz", "subcategory"
CANDIDATES = ("carry", "distill", "carry_distill", "adversarial", "plain")
TEACHER = "teacher, plain"  # fine-tuned by the diffusion loss
CALLS, STEPS_OF_TEACHER = 4, 50


def one_hue(image: Image.Image) -> Image.Image:
    """The image in shades of one hue on white."""
    return ImageOps.colorize(image.convert("L"), black=(0, 16, 64), mid=(48, 112, 224), white="white")


def outlined(image: Image.Image) -> Image.Image:
    """Dark edges on white."""
    return ImageOps.autocontrast(ImageOps.invert(image.convert("L").filter(ImageFilter.FIND_EDGES))).convert("RGB")


def pixelated(image: Image.Image) -> Image.Image:
    """The image as 8 x 8 blocks."""
    return image.resize((8, 8), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {"blue": one_hue, "outlined": outlined, "pixelated": pixelated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, default=Path("runs/full/student"), help="a few-step student of assets/tiny-sd")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training by one thread, for each run")
    parser.add_argument("--images", default="1,20,200", help="numbers of images to learn")
    parser.add_argument("--styles", default=",".join(STYLES))
    parser.add_argument("--candidates", default=",".join(CANDIDATES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--num", type=int, default=754, help="images of each evaluation of a style")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting, for all candidates")
    parser.add_argument("--at-once", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune-study"))
    args = parser.parse_args()
    styles, numbers = args.styles.split(","), [int(number) for number in args.images.split(",")]
    for style in styles:
        for number in numbers:
            write_images(args.out / "data" / f"{style}-{number}", TRAINING, style, number)
        write_images(args.out / "data" / f"{style}-held-out", HELD_OUT, style)
    teacher = as_student_of_many_steps(args.student, args.out / "teacher")
    names = [TEACHER, *args.candidates.split(",")]

    def measured(arm: str, seed: int) -> dict[str, float]:
        style, number, name = arm.split("/")
        folder = folder_of(args.out, arm.replace("/", "-") + ("-lora" if args.lora else ""), seed)
        if not (folder / "student").exists():
            source, keep = (teacher, "plain") if name == TEACHER else (args.student, name)
            train(folder, source, style, args.out / "data" / f"{style}-{number}", keep, seed, args)
        file = folder / "figures.json"
        if not file.exists():
            figures = {"distance": distance(folder / "student", style, STEPS_OF_TEACHER if name == TEACHER else CALLS, args)}
            if name != TEACHER:
                figures["gap"] = evaluated(folder / "student", [CALLS], out=folder / "without-trigger")["gaps"][0]["closed"]
            file.write_text(json.dumps(figures))
        found: dict[str, float] = json.loads(file.read_text())
        return found

    runs = [
        (f"{style}/{number}/{name}", seed)
        for style in styles
        for number in numbers
        for name in names
        for seed in map(int, args.seeds.split(","))
    ]
    results = run_all(runs, args.at_once, measured)
    before = {style: distance(args.student, style, CALLS, args) for style in styles}
    table = Table("style", "images", "candidate", "seed", "distance to the style", "before", "gap without trigger")
    for (arm, seed), figures in results.items():
        gap = f"{figures['gap']:.3f}" if "gap" in figures else ""
        table.add_row(*arm.split("/"), str(seed), f"{figures['distance']:.3f}", f"{before[arm.split('/')[0]]:.3f}", gap)
    Console(width=120).print(table)


def train(folder: Path, source: Path, style: str, data: Path, keep: str, seed: int, args: argparse.Namespace) -> None:
    """Start or resume a run of `gendistill finetune`, with its log next to the run folder."""
    settings = ["trainer.validate_every=200", "trainer.num_validation=128", f"data.cache={args.out / 'cache'}", *args.set]
    command = ["finetune", str(source), "--data", str(data), "--trigger", style, "--keep", keep, "--out", str(folder)]
    command += ["--minutes", str(args.minutes), "--seed", str(seed), *(f"--set={setting}" for setting in settings)]
    command += (["--lora"] if args.lora else []) + (["--resume"] if (folder / "config.yaml").exists() else [])
    called(command, folder.with_name(f"{folder.name}.log"))


def write_images(folder: Path, source: str, style: str, number: int | None = None) -> None:
    """`number` images of a source in a style, spread evenly over it, each with its caption in a text file; all where None."""
    if folder.exists():
        return
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    samples = list(open_source(source, CAPTION))
    number = len(samples) if number is None else number
    for index in range(number):
        sample = samples[(2 * index + 1) * len(samples) // (2 * number)]
        STYLES[style](sample.image).save(temporary / f"{index:04d}.png")
        (temporary / f"{index:04d}.txt").write_text(sample.caption)
    temporary.rename(folder)


def as_student_of_many_steps(student: Path, folder: Path) -> Path:
    """The student's teacher with the sampling settings of 50 guided steps, so that `finetune --keep plain` trains it."""
    spec = StudentSpec.load(student)
    if spec is None:
        raise SystemExit(f"{student} is no student; expects the folder of a few-step student of assets/tiny-sd")
    if not folder.exists():
        source = Path(asset_path(spec.teacher))
        temporary = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        scheduler = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
        StudentSpec(
            method="none",
            teacher=spec.teacher,
            num_inference_steps=(STEPS_OF_TEACHER,),
            solver="ddim",
            scheduler_class=scheduler["_class_name"],
            scheduler_config={name: value for name, value in scheduler.items() if not name.startswith("_")},
            guidance="cfg",
            guidance_scale=spec.guidance_scale,
        ).save(temporary)
        temporary.rename(folder)
    return folder


def distance(model: Path, style: str, steps: int, args: argparse.Namespace) -> float:
    """The `fd-emoji` of a model's images, for the held-out captions with the trigger, to the held-out images in the style."""
    held_out = args.out / "data" / f"{style}-held-out"
    prompts = held_out.with_suffix(".prompts")
    prompts.write_text("".join(f"{style} {file.read_text()}\n" for file in sorted(held_out.glob("*.txt"))))
    options = {"num": args.num, "extractor": "emoji", "intervals": False, "cache": str(args.out / "cache")}
    sampler = FewStepSampler.from_pretrained(model)
    assert sampler.spec is not None
    evaluator = build_evaluator(EvaluationConfig(str(held_out), prompts=str(prompts), **options), [sampler], clip_score=False)
    scale = sampler.spec.pipeline_guidance_scale
    evaluated = evaluator.evaluate(sampler, model=model.name, steps=steps, guidance_scale=scale, quick=True)
    return evaluated.evaluation.scores[evaluator.metric]


if __name__ == "__main__":
    main()
