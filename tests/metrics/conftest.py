import sys
from pathlib import Path

import pytest
import torch

from gendistill.metrics.distances.clip_score import load_scorer
from gendistill.metrics.features.feature_extractor import EmojiFeatures

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def held_out():
    """(images uint8 (N, 3, 32, 32), captions) of the embedded data's held-out split."""
    sys.path.insert(0, str(ROOT / "scripts" / "recipes"))
    from emoji import load_emoji

    emoji = load_emoji("heldout")
    return ((emoji.images + 1) * 127.5).round().to(torch.uint8), emoji.captions


@pytest.fixture(scope="session")
def extractor():
    return EmojiFeatures.from_folder(ROOT / "assets" / "emoji-features")


@pytest.fixture(scope="session")
def scorer():
    return load_scorer(ROOT / "assets" / "tiny-clip")
