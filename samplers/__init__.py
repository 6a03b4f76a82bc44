"""Few-step sampling: opening models, solver steps, how a student wants to be sampled, and the sampler that does it."""

from .few_step import FewStepSampler, pictures_at_once, to_uint8
from .solvers import ddim_step, invert_ddim_step
from .spec import StudentSpec

__all__ = ["FewStepSampler", "StudentSpec", "ddim_step", "invert_ddim_step", "pictures_at_once", "to_uint8"]
