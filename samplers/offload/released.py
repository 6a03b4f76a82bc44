"""Text encoders that leave the device's memory once their prompts are encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import release_memory

from gendistill.samplers.families import family_of
from gendistill.samplers.offload.placing import Disk, HostMemory
from gendistill.samplers.prompt_cache import PromptCache


class ReleasedEncoders:
    """A pipeline without its text encoders, and the conditions of all prompts that are sampled without them.

    The encoders wait in the host's memory, those of a CPU on the disk. The pipeline's components are None meanwhile, so that
    its device is that of its other networks.

    Args:
        pipeline: an opened pipeline; it is changed.
        batches: the prompts, as they are sampled together.

    Attributes:
        encoded: the conditions of the prompts, in the host's memory; for `FewStepSampler`.
    """

    @torch.no_grad()
    def __init__(self, pipeline: Any, batches: Iterable[Sequence[str]]) -> None:
        family, device = family_of(pipeline), torch.device(family_of(pipeline).device(pipeline))
        self.pipeline = pipeline
        self.encoded = PromptCache(lambda prompts: family.encode(pipeline, list(prompts)), max_bytes=None)
        for prompts in batches:
            self.encoded.conditions(prompts, torch.device("cpu"))
            self.encoded.to("cpu")
        self.encoded.unconditional = family.unconditional(pipeline)
        self._networks = family.encoders(pipeline)
        self._storage = Disk(device) if device.type == "cpu" else HostMemory(torch.device("cpu"))
        self._release()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The pipeline with its text encoders, in the host's memory, while the context is open."""
        for name, network in self._networks.items():
            self._storage.load(name, network)
            setattr(self.pipeline, name, network)
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        for name, network in self._networks.items():
            setattr(self.pipeline, name, None)
            self._storage.offload(name, network)
        release_memory()
