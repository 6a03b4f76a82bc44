"""The way of one `gendistill distill` through the packages: in which order they are entered, and which calls run uphill.

    python benchmarks/walk.py distill assets/tiny-sd --prompts prompts.txt --set trainer.max_steps=2 --out /tmp/walk

Every call from a function of one package to one of another is counted as the program runs; imports are left out.
"""

import sys
from collections import Counter
from pathlib import Path

import gendistill.run.distill  # so that nothing is imported, and no class made, as the program is watched
import gendistill.run.dry_run  # noqa: F401
from gendistill.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_house import FLOORS

NAMES = {"samplers", "schedulers", "metrics"}


def room(filename: str, rooms: dict[str, str | None]) -> str | None:
    """The package that a file belongs to; None outside of gendistill."""
    if filename not in rooms:
        parts = Path(filename).parts
        found = [part for part in parts if part in FLOORS]
        inside = "gendistill" in parts or any(part in NAMES for part in parts)
        rooms[filename] = found[0] if found and inside and "site-packages" not in parts[:-3] else None
    return rooms[filename]


def walk() -> tuple[list[str], Counter[tuple[str, str]]]:
    """Run the command line of `sys.argv`; the packages in order of entry, and calls between packages."""
    entered: list[str] = []
    calls: Counter[tuple[str, str]] = Counter()
    rooms: dict[str, str | None] = {}

    def watch(frame, event, _):
        if event != "call" or frame.f_code.co_name == "<module>":
            return
        here = room(frame.f_code.co_filename, rooms)
        if here is None:
            return
        if here not in entered:
            entered.append(here)
        caller = frame.f_back
        while caller is not None and (there := room(caller.f_code.co_filename, rooms)) is None:
            caller = caller.f_back
        if caller is not None and there != here:
            calls[(there, here)] += 1

    sys.setprofile(watch)
    try:
        main()
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
    return entered, calls


if __name__ == "__main__":
    entered, calls = walk()
    print("entered: " + " → ".join(f"{name} [{FLOORS[name]}]" for name in entered))
    for (caller, called), count in calls.most_common():
        if FLOORS[called] > FLOORS[caller]:
            print(f"uphill: {caller} calls {called} {count} times")
