"""Few-step sampling: solver steps, how a student wants to be sampled, and the sampler that does it."""

from .few_step import FewStepSampler, to_uint8
from .solvers import ddim_step
from .spec import StudentSpec

__all__ = ["FewStepSampler", "StudentSpec", "ddim_step", "to_uint8"]
