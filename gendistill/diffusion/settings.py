"""Settings of how a smaller network learns from the one that it was cut out of."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from gendistill.gan.settings import FeatureConfig, RelationConfig
from gendistill.section import Section
from gendistill.weights import Weight


class CompressionConfig(Section):
    """A smaller denoiser (`--method compression`, or the first stage of another method with `--compress`)."""

    output: Weight = Field(1.0, description="squared error of what the network says, from what the guided teacher says")
    task: Weight = Field(0.0, description="squared error from the data themselves, as the teacher was trained")
    features: FeatureConfig = Field(FeatureConfig(hints=0.5), description="what the blocks say, in the teacher's scale")
    relations: RelationConfig = Field(
        RelationConfig(), description="of a batch's pictures, as the middle of the network has them"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the average, which is the student")
    steps: int = Field(20, ge=1, description="that the smaller network is validated in before another method makes them fewer")
    trainer: dict[str, Any] = Field(
        {}, description="settings of the trainer for this stage where another follows: {max_steps: 4000}"
    )
