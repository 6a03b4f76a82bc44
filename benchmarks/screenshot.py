"""An image of an HTML file as headless Chromium shows it, at the width of a desk or of a phone, light or dark.

    python benchmarks/screenshot.py report.html --out report.png --width 390 --dark

Chromium's own window is never narrower than about 500 pixels, so the page stands in a frame of the asked width. The height is
the page's own where none is asked. What sticks out of the page sideways is an error.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
MEASURE = """<script>addEventListener("load", () => {
const page = document.querySelector("iframe").contentDocument.documentElement;
document.body.dataset.size = page.scrollWidth + "x" + page.scrollHeight;
});</script>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1280, help="CSS pixels")
    parser.add_argument("--height", type=int, help="CSS pixels; the whole page where left out")
    parser.add_argument("--top", type=int, default=0, help="CSS pixels to leave out above")
    parser.add_argument("--scale", type=float, default=1, help="pixels of the image in a CSS pixel")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    wide, high = measure(args.page, args.width, dark=args.dark)
    if wide > args.width:
        sys.exit(f"{args.page}: {wide} pixels wide in a window of {args.width}")
    shoot(args.page, args.out, args.width, high, dark=args.dark, scale=args.scale)
    image = Image.open(args.out)
    bottom = high if args.height is None else min(high, args.top + args.height)
    image.crop((0, *(round(args.scale * edge) for edge in (args.top, args.width, bottom)))).save(args.out)
    print(f"{args.out}: {args.width} x {bottom - args.top} of {high} CSS pixels")


def measure(page: Path, width: int, *, dark: bool) -> tuple[int, int]:
    """Width and height that the page takes in a window of a width, CSS pixels."""
    with tempfile.TemporaryDirectory() as folder:
        frame = _frame(page, Path(folder), width, 800, dark=dark)
        dom = _browse(folder, "--virtual-time-budget=3000", "--dump-dom", frame.as_uri())
    found = re.search(r'data-size="(\d+)x(\d+)"', dom)
    if found is None:
        raise ValueError(f"{page}: the browser gave no size.")
    return int(found[1]), int(found[2])


def shoot(page: Path, out: Path, width: int, height: int, *, dark: bool, scale: float) -> None:
    """The page at a width and height as a PNG file."""
    with tempfile.TemporaryDirectory() as folder:
        frame = _frame(page, Path(folder), width, height, dark=dark)
        size = f"--window-size={max(width, 600)},{height}"
        _browse(folder, size, f"--force-device-scale-factor={scale}", f"--screenshot={out.resolve()}", frame.as_uri())


def _frame(page: Path, folder: Path, width: int, height: int, *, dark: bool) -> Path:
    scheme = "dark" if dark else "light"
    frame = folder / "frame.html"
    frame.write_text(
        f'<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="{scheme}"><body style="margin: 0">'
        f'<iframe style="border: 0; display: block; width: {width}px; height: {height}px" srcdoc="{escape(page.read_text())}">'
        f"</iframe>{MEASURE}",
        encoding="utf-8",
    )
    return frame


def _browse(folder: str, *arguments: str) -> str:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"no browser: expects one of {', '.join(BROWSERS)} on the PATH")
    command = [browser, *OPTIONS, f"--user-data-dir={folder}/profile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


if __name__ == "__main__":
    main()
