"""Tiny random pipelines of every family, by name."""

import tiny_pipeline
from tiny_multimodal import MULTIMODAL
from tiny_transformers import TRANSFORMERS

TRANSFORMER_FAMILIES = {**TRANSFORMERS, **MULTIMODAL}
TINY = {**tiny_pipeline.TINY, **TRANSFORMER_FAMILIES}
