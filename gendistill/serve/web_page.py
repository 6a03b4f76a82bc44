"""The web page: prompt, seed, steps and guidance; the images of student and teacher side by side, with their times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from gendistill.serve.image_request import Offer, read_request
from gendistill.serve.studio import Studio
from gendistill.serve.worker import Generated

TITLE = "gendistill"
FONT = ["system-ui", "sans-serif"]  # Gradio's default fonts would be downloaded
THEME = gr.themes.Soft(font=FONT, font_mono=["ui-monospace", "monospace"])
CSS = ".image img { width: 100%; height: 100%; object-fit: contain; image-rendering: auto }"
GENERATED_AT_ONCE = 8  # concurrent requests of the page in the worker's queue, which may share a batch
FILE_SECONDS = 600  # lifetime of Gradio's image files


def page_of(studio: Studio) -> gr.Blocks:
    """The page for the models of a studio."""
    offers, limits = studio.offers, studio.limits
    first = next(iter(offers.values()))
    with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(FILE_SECONDS, FILE_SECONDS)) as page:
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
        sample = gr.Button("Sample", variant="primary", elem_id="sample")
        notice = gr.Textbox(show_label=False, interactive=False, elem_id="notice", visible="hidden", container=False)
        outputs: list[Any] = []
        with gr.Row():
            for name in offers:
                with gr.Column():
                    label = name.capitalize()
                    outputs.append(
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
                    outputs.append(gr.Textbox(label=f"{label}'s time", interactive=False, elem_id=f"{name}-time"))

        def sample_all(prompt: Any, seed: Any, *settings: Any) -> Iterator[dict[Any, Any]]:
            yield {notice: gr.update(value="", visible="hidden"), **dict.fromkeys(outputs)}
            fields = {"prompt": prompt, "seed": _as_integer(seed)}
            times: list[float] = []
            warnings: list[str] = []
            for number, name in enumerate(offers):
                steps, scale = settings[2 * number : 2 * number + 2]
                try:
                    request = read_request(
                        {**fields, "model": name, "steps": _as_integer(steps), "guidance_scale": scale}, offers, limits
                    )
                    generated = studio.worker.submit(request).result()
                except (ValueError, RuntimeError) as error:  # rejected, busy, or failed
                    yield {notice: gr.update(value=str(error), visible=True)}
                    return
                fields["seed"] = request.seed  # all models get the same random seed
                times.append(generated.seconds)
                warnings += studio.advice(request)
                warning = gr.update(value="\n".join(warnings), visible=bool(warnings) or "hidden")
                image, time = outputs[2 * number : 2 * number + 2]
                values = Image.fromarray(generated.images[0].squeeze(-1).numpy())
                yield {notice: warning, image: values, time: _time(generated, request.steps, times)}

        inputs = [prompt, seed, *settings]
        events = [sample.click] if first.prompts is not None else [sample.click, prompt.submit]
        for event in events:
            event(sample_all, inputs, [notice, *outputs], concurrency_limit=GENERATED_AT_ONCE, api_visibility="private")
    page.queue(max_size=64)
    return page


def _settings(offer: Offer) -> list[Any]:
    name = offer.name
    label = name.capitalize()
    return [
        gr.Number(offer.steps, label=f"{label}'s steps", precision=None, elem_id=f"{name}-steps", min_width=100),
        gr.Number(offer.guidance_scale, label=f"{label}'s guidance", elem_id=f"{name}-guidance", min_width=100),
    ]


def _as_integer(value: Any) -> Any:
    """The integer of a number such as 4.0; other values unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _time(generated: Generated, steps: int, times: list[float]) -> str:
    text = f"{generated.seconds:.2f} s, {steps} step{'s' if steps != 1 else ''}"
    if generated.batch_size > 1:
        text += f", batch of {generated.batch_size} images"
    return f"{text}: {times[-1] / times[0]:.1f} times the student's" if len(times) > 1 else text
