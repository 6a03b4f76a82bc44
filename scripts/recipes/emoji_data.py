"""Create `assets/emoji`: the emoji of Google's Noto set and of Twemoji as 32x32 images with captions of three levels.

    python scripts/recipes/emoji_data.py                      # downloads both npm packages with `npm pack`
    python scripts/recipes/emoji_data.py --packages DIR       # or reads the two .tgz files in DIR
    python scripts/recipes/emoji_data.py --resolution 64 --out runs/recipes/emoji-64         # for assets/tiny-sd3

The images are the 64-pixel PNGs, composited on white and downsampled to the resolution (Lanczos). Each has three captions,
from the most to the least specific:

    name         google emoji of waving hand sign with medium skin tone
    subcategory  google emoji of hand fingers open
    category     google emoji of people and body

A fixed tenth of the emoji (by hash of the base name, so that all skin tones and both vendors are in one split) is held out.
The dataset card, README.md, is written by hand.
"""

import argparse
import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

VERSION = "16.0.0"
VENDORS = ("google", "twitter")
HELD_OUT = 0.1
SHARD_SIZE = 2000
SKIN_TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}


def plain(text: str) -> str:
    """`Food & Drink` -> `food and drink`, `face-hand` -> `face hand`."""
    return re.sub(r"\s+", " ", text.lower().replace("&", "and").replace("-", " ").replace(":", "")).strip()


def with_tones(name: str, tones: str) -> str:
    """A name with its skin tones, such as `hand with dark skin tone`."""
    words = [f"{SKIN_TONES[tone]} skin tone" for tone in tones.split("-")]
    return f"{name} with {' and '.join(dict.fromkeys(words))}"


def is_held_out(name: str) -> bool:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT


def read_image(archive: tarfile.TarFile, path: str, resolution: int) -> bytes:
    """The 64-pixel PNG on white at the resolution, as an uncompressed PNG: the gzip of the shard compresses across images."""
    member = archive.extractfile(path)
    assert member is not None, path
    image = Image.open(io.BytesIO(member.read())).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB").resize((resolution, resolution), Image.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=0)
    return out.getvalue()


def read_vendor(package: Path, vendor: str, resolution: int) -> list[dict]:
    """All images of the package, in the order of its `emoji.json`."""
    with tarfile.open(package) as archive:
        table = archive.extractfile("package/emoji.json")
        assert table is not None
        samples = []
        for emoji in json.load(table):
            base = emoji["name"].lower().replace(":", "")
            variants = [(base, emoji)]
            variants += [(with_tones(base, tones), v) for tones, v in emoji.get("skin_variations", {}).items()]
            for name, variant in variants:
                if not variant[f"has_img_{vendor}"]:
                    continue
                samples.append(
                    {
                        "key": f"{vendor}-{variant['unified'].lower()}",
                        "png": read_image(archive, f"package/img/{vendor}/64/{variant['image']}", resolution),
                        "split": "heldout" if is_held_out(base) else "train",
                        "json": {
                            "vendor": vendor,
                            "unified": variant["unified"],
                            "name": f"{vendor} emoji of {name}",
                            "subcategory": f"{vendor} emoji of {plain(emoji['subcategory'])}",
                            "category": f"{vendor} emoji of {plain(emoji['category'])}",
                        },
                    }
                )
    return samples


def write_shard(path: Path, samples: list[dict]) -> None:
    """A WebDataset shard: `KEY.png`, `KEY.txt` (the name caption) and `KEY.json` (all three) for each sample."""
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as shard,
    ):
        for sample in samples:
            parts = {
                "json": json.dumps(sample["json"]).encode(),
                "png": sample["png"],
                "txt": sample["json"]["name"].encode(),
            }
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{sample['key']}.{extension}")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, help="folder with the two npm packages as .tgz files")
    parser.add_argument("--resolution", type=int, default=32, help="side of the images in pixels, at most 64")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "assets" / "emoji")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        packages = args.packages or Path(scratch)
        names = {vendor: f"emoji-datasource-{vendor}" for vendor in VENDORS}
        if args.packages is None:
            specs = [f"{name}@{VERSION}" for name in names.values()]
            subprocess.run(["npm", "pack", "--silent", *specs], cwd=scratch, check=True)
        samples = []
        for vendor, name in names.items():
            samples += read_vendor(packages / f"{name}-{VERSION}.tgz", vendor, args.resolution)

    args.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "heldout"):
        split_samples = [sample for sample in samples if sample["split"] == split]
        for start in range(0, len(split_samples), SHARD_SIZE):
            write_shard(args.out / f"{split}-{start // SHARD_SIZE:03d}.tar.gz", split_samples[start : start + SHARD_SIZE])
    size = sum(f.stat().st_size for f in args.out.iterdir()) / 1e6
    print(f"{len(samples)} images {dict(Counter(s['split'] for s in samples))}, {size:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
