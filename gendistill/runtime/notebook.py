"""How results show themselves in a notebook: as HTML with their tables and images in it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

MAX_SHOWN = 8  # images of one result
PRE = "<pre style='line-height:1.2;overflow-x:auto'>{code}</pre>"


def text_html(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>"


def table_html(table: Any, files: Iterable[Path] = ()) -> str:
    """What the terminal would print of a table, and links to the files of a result; images among them are shown."""
    console = Console(record=True, file=io.StringIO(), width=160)
    console.print(table)
    files = list(files)
    links = " · ".join(f"<a href='{html.escape(str(file))}'>{html.escape(str(file))}</a>" for file in files)
    return console.export_html(inline_styles=True, code_format=PRE) + f"<p>{links}</p>" + images_html(files)


def images_html(files: Sequence[Path]) -> str:
    """The first images among some files, inside the page."""
    shown = [file for file in files if file.suffix == ".png" and file.is_file()][:MAX_SHOWN]
    return "".join(
        f"<img alt='{html.escape(file.stem)}' style='max-width:100%;min-width:256px;image-rendering:auto;margin:2px' "
        f"src='data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}'>"
        for file in shown
    )
