"""`gendistill evaluate` for models and for sets of images."""

from __future__ import annotations

from typing import Any

from gendistill.evaluation.evaluate_generator import evaluate_generator
from gendistill.evaluation.evaluate_student import evaluate_student
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.generator_report import GeneratorComparison
from gendistill.evaluation.sets import SetEvaluation, evaluate_images, is_image_set
from gendistill.evaluation.student_report import StudentComparison
from gendistill.runtime.extras import missing_extras_named
from gendistill.runtime.plugins import load_plugins
from gendistill.sampling.load import gan_folder


@missing_extras_named()
def evaluate(
    model: str, config: EvaluationConfig | None = None, **options: Any
) -> StudentComparison | GeneratorComparison | SetEvaluation:
    """Evaluate a set of images against real ones, a student (diffusion model or GAN) against its teacher, or a teacher alone.

        evaluate("runs/mine/student", reference="my-images", num=1000)

    Each result has `warnings`, `files`, a `table()` for the terminal and `to_json()`.

    Args:
        config: all options; alternatively, pass the fields of `EvaluationConfig` by name.

    Raises:
        ValueError: the model, the images, the reference, a metric or a metric's network cannot be used.
        MissingExtraError: a package that this needs is not installed.
    """
    load_plugins()
    config = EvaluationConfig(**options) if config is None else config
    if is_image_set(model):
        return evaluate_images(model, config)
    if gan_folder(model) is not None:
        for name, value in {"--quantization": config.quantization, "--dtype": config.dtype}.items():
            if value not in (None, "none"):
                raise ValueError(f"{name} {value}: expects a diffusion model; {model} is a GAN")
        return evaluate_generator(model, config)
    if config.inputs is not None:
        raise ValueError(f"--input {config.inputs}: expects a GAN that translates images, not {model}")
    return evaluate_student(model, config)
