"""The packages of one command in the order of their first call, and calls from lower to higher packages.

    python benchmarks/walk.py distill assets/tiny-sd --prompts prompts.txt --set trainer.max_steps=2 --out /tmp/walk

A profiler counts the calls between functions of different packages; imports are not counted.
"""

import sys
from collections import Counter
from pathlib import Path

import gendistill.run.distill  # imports and class definitions before the profiling
import gendistill.run.dry_run  # noqa: F401
from gendistill.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_house import FLOORS

NAMES = {"samplers", "schedulers", "metrics"}


def package_of(filename: str, packages: dict[str, str | None]) -> str | None:
    """The package of a file; None outside gendistill."""
    if filename not in packages:
        parts = Path(filename).parts
        names = [part for part in parts if part in FLOORS]
        inside = "gendistill" in parts or any(part in NAMES for part in parts)
        packages[filename] = names[0] if names and inside and "site-packages" not in parts[:-3] else None
    return packages[filename]


def walk() -> tuple[list[str], Counter[tuple[str, str]]]:
    """Run the command line of `sys.argv`; the packages in order of entry, and calls between packages."""
    entered: list[str] = []
    calls: Counter[tuple[str, str]] = Counter()
    packages: dict[str, str | None] = {}

    def count(frame, event, _):
        if event != "call" or frame.f_code.co_name == "<module>":
            return
        package = package_of(frame.f_code.co_filename, packages)
        if package is None:
            return
        if package not in entered:
            entered.append(package)
        caller = frame.f_back
        while caller is not None and (calling_package := package_of(caller.f_code.co_filename, packages)) is None:
            caller = caller.f_back
        if caller is not None and calling_package != package:
            calls[(calling_package, package)] += 1

    sys.setprofile(count)
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
