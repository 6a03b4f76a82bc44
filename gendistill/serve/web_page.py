"""The page: a prompt, a seed, steps and guidance; the student's image beside the teacher's, with their times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from gendistill.serve.image_request import Offer, read_request
from gendistill.serve.studio import Studio
from gendistill.serve.worker import Generated

TITLE = "gendistill"
FONT = ["system-ui", "sans-serif"]  # Gradio's own would be fetched from elsewhere
THEME = gr.themes.Soft(font=FONT, font_mono=["ui-monospace", "monospace"])
CSS = ".image img { width: 100%; height: 100%; object-fit: contain; image-rendering: auto }"
GENERATED_AT_ONCE = 8  # people whose requests wait in our own queue, where they may go into one batch
KEPT = 600  # seconds that Gradio keeps an image's file


def page_of(studio: Studio) -> gr.Blocks:
    """A page for a studio's models, its settings as wide as its limits."""
    offers, limits = studio.offers, studio.limits
    first = next(iter(offers.values()))
    with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(KEPT, KEPT)) as page:
        with gr.Row():
            if first.prompts is None:
                prompt: Any = gr.Textbox(label="Prompt", lines=2, autofocus=True, elem_id="prompt", scale=4)
            else:
                prompt = gr.Dropdown(list(first.prompts), value=first.prompts[0], label="Prompt", elem_id="prompt", scale=4)
            seed = gr.Number(0, label="Seed", precision=None, elem_id="seed", min_width=100)
        settings: list[Any] = []
        with gr.Row():
            for offer in offers.values():
                settings += _settings(offer)
        generate = gr.Button("Sample", variant="primary", elem_id="sample")
        told = gr.Textbox(show_label=False, interactive=False, elem_id="told", visible="hidden", container=False)
        shown: list[Any] = []
        with gr.Row():
            for name in offers:
                with gr.Column():
                    label = name.capitalize()
                    shown.append(
                        gr.Image(
                            label=label,
                            format="png",
                            interactive=False,
                            height=384,
                            elem_id=f"{name}-image",
                            elem_classes="image",
                            buttons=["download"],
                        )
                    )
                    shown.append(gr.Textbox(label=f"{label}'s time", interactive=False, elem_id=f"{name}-time"))

        def draw_both(prompt: Any, seed: Any, *settings: Any) -> Iterator[dict[Any, Any]]:
            yield {told: gr.update(value="", visible="hidden"), **dict.fromkeys(shown)}
            given = {"prompt": prompt, "seed": _whole(seed)}
            times: list[float] = []
            warnings: list[str] = []
            for place, name in enumerate(offers):
                steps, scale = settings[2 * place : 2 * place + 2]
                try:
                    asked = read_request(
                        {**given, "model": name, "steps": _whole(steps), "guidance_scale": scale}, offers, limits
                    )
                    found = studio.worker.submit(asked).result()
                except (ValueError, RuntimeError) as error:  # refused, busy, or not to be sampled
                    yield {told: gr.update(value=str(error), visible=True)}
                    return
                given["seed"] = asked.seed  # where none was typed, both have the same one
                times.append(found.seconds)
                warnings += studio.advice(asked)
                warning = gr.update(value="\n".join(warnings), visible=bool(warnings) or "hidden")
                image, time = shown[2 * place : 2 * place + 2]
                generated = Image.fromarray(found.images[0].squeeze(-1).numpy())
                yield {told: warning, image: generated, time: _time(found, asked.steps, times)}

        given = [prompt, seed, *settings]
        asking = [generate.click] if first.prompts is not None else [generate.click, prompt.submit]
        for ask in asking:
            ask(draw_both, given, [told, *shown], concurrency_limit=GENERATED_AT_ONCE, api_visibility="private")
    page.queue(max_size=64)
    return page


def _settings(offer: Offer) -> list[Any]:
    name = offer.name
    label = name.capitalize()
    return [
        gr.Number(offer.steps, label=f"{label}'s steps", precision=None, elem_id=f"{name}-steps", min_width=100),
        gr.Number(offer.guidance_scale, label=f"{label}'s guidance", elem_id=f"{name}-guidance", min_width=100),
    ]


def _whole(value: Any) -> Any:
    """A field's number as it was typed: 4 where it came as 4.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _time(found: Generated, steps: int, times: list[float]) -> str:
    text = f"{found.seconds:.2f} s, {steps} step{'s' if steps != 1 else ''}"
    if found.together > 1:
        text += f", {found.together} images at once"
    return f"{text}: {times[-1] / times[0]:.1f} times the student's" if len(times) > 1 else text
