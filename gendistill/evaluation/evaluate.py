"""`gendistill evaluate MODEL`, whatever the model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gendistill.evaluation.evaluate_generator import GeneratorComparison, evaluate_generator
from gendistill.evaluation.evaluate_student import Comparison, evaluate
from gendistill.sampling.load import gan_folder


def evaluate_model(
    model: str, *, inputs: Path | None = None, quantization: str | None = None, **options: Any
) -> Comparison | GeneratorComparison:
    """A GAN by `evaluate_generator`, a diffusion model by `evaluate`, with their `options`.

    Args:
        inputs: pictures, for a GAN that paints pictures anew.
        quantization: of a diffusion model; as it was trained to where None.

    Raises:
        ValueError: the model, the reference or a metric network cannot be used.
    """
    if gan_folder(model) is not None:
        if quantization not in (None, "none"):
            raise ValueError(f"--quantization {quantization}: takes a diffusion model; {model} is a GAN")
        return evaluate_generator(model, inputs=inputs, **options)
    if inputs is not None:
        raise ValueError(f"--input {inputs}: takes a GAN that paints pictures anew, not {model}")
    return evaluate(model, quantization=quantization, **options)
