"""Tiny random pipelines of every family, by name."""

import tiny_pipeline
import transformers
from packaging.version import Version
from tiny_multimodal import MULTIMODAL
from tiny_transformers import TRANSFORMERS

# earlier tokenizers of T5 and Gemma cannot be built without SentencePiece
BUILT = TRANSFORMERS if Version(transformers.__version__).major >= 5 else {}
TRANSFORMER_FAMILIES = {**BUILT, **MULTIMODAL}
TINY = {**tiny_pipeline.TINY, **TRANSFORMER_FAMILIES}
