"""Text encoders leave the memory once their prompts are encoded."""

import pytest
import torch

from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import family_of
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.offload.released import ReleasedEncoders

PROMPTS = ["food", "animals", "smileys"]


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "sana"])
def test_a_pipeline_without_text_encoders_samples_the_prompts_that_it_knows(family_folder, name):
    pipeline = open_pipeline(family_folder(name))
    family = family_of(pipeline)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "batch_size": 3}
    before = torch.cat(list(FewStepSampler(pipeline).images(PROMPTS, [0, 1, 2], **settings)))
    encoders = family.encoders(pipeline)
    released = ReleasedEncoders(pipeline, [PROMPTS])
    assert family.encoders(pipeline) == {}
    assert all(parameter.is_meta for encoder in encoders.values() for parameter in encoder.parameters())
    sampler = FewStepSampler(pipeline, encoded=released.encoded)
    assert torch.equal(torch.cat(list(sampler.images(PROMPTS, [0, 1, 2], **settings))), before)
    with released.restored():
        assert torch.equal(torch.cat(list(FewStepSampler(pipeline).images(PROMPTS, [0, 1, 2], **settings))), before)
    assert family.encoders(pipeline) == {}
