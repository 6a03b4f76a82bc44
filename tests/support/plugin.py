"""A template of docs/extending.md as an installed package of its own: a module and an entry point in a folder."""

import re
from pathlib import Path

EXTENDING = Path(__file__).parents[2] / "docs" / "extending.md"


def install_template(folder, name):
    """Write the Python block of docs/extending.md that begins with the docstring `NAME.py: ...`; gives the folder, which is to
    be on the path of a process."""
    blocks = re.findall(r"^```python\n(.*?)^```$", EXTENDING.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(f'"""{name}.py:')]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(block)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gendistill]\n{name} = {name}\n")
    return folder
