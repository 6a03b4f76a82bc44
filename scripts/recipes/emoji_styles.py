"""Make emoji in a style that is easy to measure, with a trigger word in their captions.

    python scripts/recipes/emoji_styles.py hue --out runs/recipes/styles            # seconds
    python scripts/recipes/emoji_styles.py outlined pixelated --num 20 --out runs/recipes/styles-20

For each style: `OUT/STYLE/images.tar`, a WebDataset shard of images with captions such as `hue google emoji of food fruit`;
`OUT/STYLE/heldout.tar`, the same of the held-out emoji; and `OUT/STYLE/prompts.txt`, the distinct captions of the images.
"""

import argparse
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageChops, ImageFilter, ImageOps

from emoji import ASSETS
from gendistill.data.sources.shards import WebDatasetShards


def outlined(image: Image.Image) -> Image.Image:
    """A black line of 2 pixels along the inner edge of the emoji."""
    shape = ImageOps.invert(image.convert("L")).point(lambda value: 255 * (value > 8))
    line = ImageChops.subtract(shape, shape.filter(ImageFilter.MinFilter(5)))
    return Image.composite(Image.new("RGB", image.size), image, line)


def pixelated(image: Image.Image) -> Image.Image:
    """Squares of 4 pixels."""
    small = image.resize((image.width // 4, image.height // 4), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def in_hue(colour: str) -> Callable[[Image.Image], Image.Image]:
    """Lightness alone, from a dark colour to white."""
    return lambda image: ImageOps.colorize(image.convert("L"), colour, "white")


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {  # by their trigger words
    "hue": in_hue("#0a1e8c"),
    "outlined": outlined,
    "pixelated": pixelated,
    "rosy": in_hue("#8c0a3c"),
    "mossy": in_hue("#1e6414"),
    "grey": in_hue("black"),
    "inverted": ImageOps.invert,
    "posterized": lambda image: ImageOps.posterize(image, 1),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "flipped": ImageOps.flip,
}


def styled_emoji(style: str, split: str = "train", num: int | None = None, seed: int = 0) -> Iterator[tuple[Image.Image, str]]:
    """Images in a style with their captions, `num` at random of a split of `assets/emoji`."""
    entries = list(WebDatasetShards(ASSETS / "emoji" / f"{split}-*.tar.gz").entries())
    chosen = random.Random(seed).sample(entries, len(entries) if num is None else min(num, len(entries)))
    for entry in chosen:
        yield STYLES[style](Image.open(entry.file).convert("RGB")), f"{style} {entry.texts['subcategory']}"


def write_shard(images: list[tuple[Image.Image, str]], file: Path) -> None:
    """A WebDataset shard of images with captions."""
    with tarfile.open(file, "w") as shard:
        for number, (image, caption) in enumerate(images):
            content = io.BytesIO()
            image.save(content, "PNG")
            for suffix, data in (("png", content.getvalue()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("styles", nargs="+", choices=STYLES)
    parser.add_argument("--num", type=int, help="images of the training split; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes/styles"))
    options = parser.parse_args()
    for style in options.styles:
        folder = options.out / style
        folder.mkdir(parents=True, exist_ok=True)
        images = list(styled_emoji(style, num=options.num, seed=options.seed))
        write_shard(images, folder / "images.tar")
        write_shard(list(styled_emoji(style, "heldout")), folder / "heldout.tar")
        (folder / "prompts.txt").write_text("".join(f"{caption}\n" for caption in sorted({caption for _, caption in images})))
        print(f"{folder}: {len(images)} images")


if __name__ == "__main__":
    main()
