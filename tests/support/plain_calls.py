"""Images of students by plain diffusers; as a program, in a process that never imports gendistill."""

import json
import sys
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline


def plain_arguments(family, prompt, scale):
    """The arguments of the call of a pipeline of `family` (see `tiny_families.TINY`) for one image of `prompt`."""
    if family in ("unconditional", "edm", "rgba", "ldm"):
        return {}
    if family in ("classes", "grey"):
        return {"class_labels": int(prompt)}
    if family == "dit":
        return {"class_labels": [2 if prompt == "shark" else int(prompt)], "guidance_scale": scale}
    arguments = {"prompt": prompt, "guidance_scale": scale}
    if family in ("sana", "auraflow") or family.startswith("flux"):  # whose default size is 1024 pixels
        arguments |= {"height": 32, "width": 32}
    if family in ("sana", "pixart-alpha", "pixart-sigma"):  # they have lists of resolutions for a few network sizes
        return {**arguments, "use_resolution_binning": False}
    return arguments


def null_parts(folder):
    """Arguments that open a pipeline without the parts that are null in its model_index.json, which diffusers expects."""
    index = json.loads((Path(folder) / "model_index.json").read_text())
    return {name: None for name, entry in index.items() if entry == [None, None]}


def plain_pipeline(folder):
    """The student as a program opens it that has never heard of gendistill, and its settings."""
    spec = json.loads((Path(folder) / "gendistill.json").read_text())
    if not spec["lora"]:
        return DiffusionPipeline.from_pretrained(folder, **null_parts(folder)), spec
    pipeline = DiffusionPipeline.from_pretrained(spec["teacher"], **null_parts(spec["teacher"]))
    pipeline.load_lora_weights(folder)
    pipeline.scheduler = getattr(diffusers, spec["scheduler_class"]).from_pretrained(folder, subfolder="scheduler")
    return pipeline, spec


def plain_images(pipeline, spec, family, prompts, seeds):
    """Images (N, 3, H, W) of a student, one by one."""
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        (image,) = pipeline(
            **plain_arguments(family, prompt, spec["neutral_guidance" if spec["guidance"] == "baked" else "guidance_scale"]),
            **({"eta": spec["eta"]} if spec["eta"] else {}),
            num_inference_steps=spec["num_inference_steps"][0],
            generator=torch.manual_seed(seed),  # torch's own, from which schedulers sample where a pipeline passes none
            output_type="np",
        ).images
        image = torch.from_numpy(image).permute(2, 0, 1)
        images.append(image[:3] * image[3:] + 1 - image[3:] if family == "rgba" else image.expand(3, -1, -1))
    return torch.stack(images)


if __name__ == "__main__":  # requests: [[student folder, family, prompts, seeds], ...] as JSON, and a file for the images
    requests, file = json.loads(sys.argv[1]), sys.argv[2]
    torch.save([plain_images(*plain_pipeline(folder), *request) for folder, *request in requests], file)
    assert "gendistill" not in sys.modules
