"""Features without weights: colours, their layout, and the strength of detail by scale.

They need no network, at any image size, and do not see what an image shows. A blurred, noisy, washed out or oversaturated set
of images is far from a real one in them. `validation` uses them where no network is on the machine.
"""

import torch
from torch.nn import functional as F

from gendistill.metrics.features.extractors import FeatureExtractor

SIZE = 64  # pixels of the side that images are resized to
GRID = 4  # cells of a side
SCALES = 4  # octaves of detail, from that of single pixels on
FLOOR = 0.01  # detail of a cell below it, of images in [0, 1], is not seen


class PixelStatistics(FeatureExtractor):
    """Mean colours of a 4x4 grid, and the logarithm of the root mean square of four octaves of detail in each of its cells."""

    name, weights_hash = "pixels", "0" * 16
    resize = f"to {SIZE}x{SIZE}, bilinear with antialiasing, in float32, not rounded"
    dim = 3 * GRID**2 * (1 + SCALES)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        scaled = images.float() / 255
        if scaled.shape[-2:] == (SIZE, SIZE):
            return scaled
        return F.interpolate(scaled, (SIZE, SIZE), mode="bilinear", antialias=True)

    @torch.inference_mode()
    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        features, image = [F.adaptive_avg_pool2d(prepared, GRID)], prepared
        for _ in range(SCALES):
            coarse = F.avg_pool2d(image, 2)
            detail = image - F.interpolate(coarse, scale_factor=2)
            strength = F.adaptive_avg_pool2d(detail.square(), GRID).sqrt()
            features.append((strength / FLOOR + 1).log())
            image = coarse
        return torch.cat([feature.flatten(1) for feature in features], dim=1)
