"""plan: what it takes, before it starts."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gendistill.cli.shared import TINY_SD, AsJson, app, console, quieten_libraries, show


@app.command(
    epilog="[bold]Examples[/]: gendistill plan runs/mine/student --memory 8\n\n"
    "gendistill plan sdxl --size 768x1024 --batch 2 --dtype bfloat16"
)
def plan(
    model: Annotated[
        str, typer.Argument(help="local model or student, with weights or without; or sd1, sd2-base, sd2-v, sdxl")
    ] = TINY_SD,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of the pictures; the model's own where not given")] = None,
    batch: Annotated[int, typer.Option(min=1, help="pictures drawn together")] = 1,
    guided: Annotated[bool, typer.Option("--guided", help="with classifier-free guidance, which doubles the batch")] = False,
    dtype: Annotated[str, typer.Option(help="of the weights: float16, bfloat16 or float32")] = "float16",
    memory: Annotated[float | None, typer.Option(min=0, help="GiB that are free; the usual GPUs where not given")] = None,
    as_json: AsJson = False,
) -> None:
    """What sampling MODEL takes of a GPU's memory, by where its parts are kept: predicted from configs, nothing is loaded."""
    from gendistill.planning import plan_sampling

    quieten_libraries()
    found = plan_sampling(model, size=size, batch=batch, guided=guided, dtype=dtype, memory=memory)
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    show(found.table())
    for line in found.sentences():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
