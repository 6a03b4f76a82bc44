"""`python -m gendistill.configs ddp`: the path of a preset, for `accelerate launch --config_file` and other programs."""

from __future__ import annotations

import sys

from gendistill.configs import accelerate_path, preset_path

if __name__ == "__main__":
    try:
        [name] = sys.argv[1:]
        print(accelerate_path(name) or preset_path(name))
    except ValueError as error:
        sys.exit(f"{error}; usage: python -m gendistill.configs NAME")
