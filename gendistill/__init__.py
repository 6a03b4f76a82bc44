"""gendistill distils a slow generative model into a fast one: both are folders that the same programs open.

from gendistill import distill, evaluate, FewStepSampler, load_config, load_teacher
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["FewStepSampler", "distill", "evaluate", "load_config", "load_teacher"]

if TYPE_CHECKING:
    from gendistill.diffusion.teacher import load_teacher
    from gendistill.evaluation.evaluate import evaluate
    from gendistill.run.config import load_config
    from gendistill.run.distill import distill
    from gendistill.samplers import FewStepSampler

_PLACES = {
    "FewStepSampler": "gendistill.samplers",
    "distill": "gendistill.run.distill",
    "evaluate": "gendistill.evaluation.evaluate",
    "load_config": "gendistill.run.config",
    "load_teacher": "gendistill.diffusion.teacher",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `import gendistill` alone does not load torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'gendistill' has no attribute {name!r}")
    from gendistill.runtime.extras import missing_extras_named

    with missing_extras_named():
        return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
