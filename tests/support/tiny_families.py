"""Tiny random pipelines of every family, by name."""

import tiny_pipeline
from tiny_transformers import TRANSFORMERS

TINY = {**tiny_pipeline.TINY, **TRANSFORMERS}
