"""serve: a page and an endpoint to try a student by."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from gendistill.cli.shared import TINY_SD, Device, Dtype, Quantization, app, console, quieten_libraries, warn


@app.command(
    epilog="[bold]Examples[/]: gendistill serve runs/demo/student\n\n"
    "gendistill serve runs/sd15/student --no-teacher --memory 6 --port 8000"
)
def serve(
    student: Annotated[str, typer.Argument(help="student folder, or whatever a teacher may be")] = TINY_SD,
    teacher: Annotated[
        str | None, typer.Option(help="to sample beside it; the one that its folder names where not given")
    ] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="the student alone, in half of the memory")] = False,
    like: Annotated[
        str | None, typer.Option(help="a few-step model of others, where its name does not tell: lcm-lora, dmd2-4step")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen at; others than this machine reach it at 0.0.0.0")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free")] = 7860,
    max_images: Annotated[int, typer.Option(min=1, help="that one request may ask for")] = 8,
    max_steps: Annotated[int, typer.Option(min=1, help="that one request may ask for")] = 100,
    max_waiting: Annotated[int, typer.Option(min=1, help="requests that wait; more are refused")] = 64,
    edge: Annotated[
        int | None, typer.Option(min=8, help="longest edge that may be asked for; the model's own where not given")
    ] = None,
    device: Device = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GiB that student and teacher may take; what is free where not given")
    ] = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="torch compiles the networks: a slow start, then faster where they are small"),
    ] = False,
) -> None:
    """A local web page to try STUDENT beside its teacher, and the images endpoint that applications speak, at /v1."""
    from gendistill.runtime.device import usable_device
    from gendistill.runtime.extras import install_line
    from gendistill.sampling.load import Opening
    from gendistill.serve.address import is_this_machine, listen
    from gendistill.serve.image_request import RequestLimits
    from gendistill.serve.studio import compile_networks, open_models, studio_of

    if teacher is not None and no_teacher:
        raise ValueError("--teacher and --no-teacher: expects one of them")
    if find_spec("gradio") is None:
        raise ValueError(f"serve: needs gradio; {install_line('serve')}")
    quieten_libraries()
    listening = listen(host, port)
    models, warnings = open_models(
        student,
        teacher,
        Opening(usable_device(device), dtype, quantization, like=like, memory=memory),
        with_teacher=not no_teacher,
    )
    if compiled:
        compile_networks(models)
    if not is_this_machine(host):
        warnings.append(f"--host {host}: whoever reaches this machine may sample; there is no password")
    warn(warnings)

    from gendistill.serve.server import run

    def started(address: str) -> None:
        console.print(f"{' and '.join(models)} at {address}, for applications at {address}/v1; Ctrl-C ends it", soft_wrap=True)

    limits = RequestLimits(images=max_images, steps=max_steps, edge=edge)
    with listening, studio_of(models, limits, max_waiting=max_waiting) as studio:
        studio.warm_up()
        run(studio, listening, started)
