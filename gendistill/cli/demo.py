"""demo: distill the model that comes with the package, and see what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gendistill.cli.distilling import distill
from gendistill.cli.evaluating import evaluate
from gendistill.cli.shared import DISTILL, app, console, parse_settings

SUBJECTS = (
    "food fruit",
    "animal mammal",
    "face smiling",
    "sky and weather",
    "plant flower",
    "place building",
    "heart",
    "drink",
)


@app.command(rich_help_panel=DISTILL, epilog="[bold]Example[/]: gendistill demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Run folder; a run that was stopped is resumed")] = Path("runs/demo"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any setting: trainer.max_steps=500")] = None,
) -> None:
    """Distill tiny-sd, which comes with the package, into a 4-step student, then evaluate it: ten minutes on a laptop."""
    from gendistill.configs import PRESETS
    from gendistill.run.config import load_config
    from gendistill.runtime.extras import MissingExtraError, missing_extras_named
    from gendistill.sampling.image_sheet import write_image_sheet
    from gendistill.training.checkpoint import Checkpoints

    out = out.expanduser()
    preset, student, sheet = PRESETS["demo"], out / "student", out / "images.png"
    config = load_config(preset, parse_settings(set_ or []))
    resume = bool(Checkpoints(out / "checkpoints").steps())
    distill(config=preset, set_=set_, out=str(out), resume=resume)
    prompts = [f"google emoji of {subject}" for subject in SUBJECTS]
    write_image_sheet(student, prompts, sheet, guidance_scale=config.guidance.scale)
    results = f"{sheet} (the teacher at 50 steps above the student at {config.steps[0]}, same prompts and seeds)"
    try:
        with missing_extras_named():
            evaluate(str(student), caption="subcategory", out=out)
        results += f" and {out / 'report.html'}"
    except MissingExtraError as error:
        console.print(f"[yellow]no report[/]: {escape(str(error))}", soft_wrap=True, highlight=False)
    console.print(f"see {escape(results)}", soft_wrap=True, highlight=False)
