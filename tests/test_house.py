"""The plan of the house: imports run downhill, each idea has one place and one name."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = ("samplers", "schedulers", "metrics", "assets", "configs")  # imported as gendistill.samplers and so on
FLOORS = {
    name: floor
    for floor, names in enumerate(
        (
            "assets configs",
            "schedulers metrics runtime settings",
            "samplers losses networks training",
            "diffusion gan",
            "data export",
            "methods sampling",
            "evaluation serve",
            "run",
            "search",
            "cli",
        ),
        start=0,
    )
    for name in names.split()
}
FRONT_DOOR = "__init__"


def shipped():
    """Every shipped module: its file, and its dotted name."""
    for top in ("gendistill", *OUTSIDE):
        for file in sorted((ROOT / top).rglob("*.py")):
            inside = file.relative_to(ROOT).with_suffix("").parts
            if top == "gendistill" and len(inside) > 2 and inside[1] in OUTSIDE:
                continue  # a link to one of the folders outside
            yield file, ".".join(inside if top == "gendistill" else ("gendistill", *inside))


MODULES = dict(shipped())


def imported(file):
    """Dotted names of what a file imports of the project, wherever in the file it does."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.relative_to(ROOT)}: relative imports hide where an import goes"
            if (node.module or "").split(".")[0] == "gendistill":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "gendistill")


def package(name):
    """The room of a dotted name: `data` of `gendistill.data.sources.folder`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else FRONT_DOOR


def test_no_import_runs_uphill_or_in_a_circle_of_packages():
    """Between packages an import goes to a lower floor, so there can be no circle; the front door alone imports from above."""
    wrong = set()
    for file, name in MODULES.items():
        here = package(name)
        for target in imported(file):
            there = package(target)
            if FRONT_DOOR in (here, there) or here == there:
                continue
            if FLOORS[there] >= FLOORS[here]:
                wrong.add(f"{name} ({here}, {FLOORS[here]}) imports {target} ({there}, {FLOORS[there]})")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_modules_import_each_other_in_a_circle():
    names = set(MODULES.values())
    edges = {}
    for file, name in MODULES.items():
        found = set()
        for target in imported(file):
            module = target if target in names else target.rpartition(".")[0]
            if module in names and module != name:
                found.add(module)
        edges[name.removesuffix(".__init__")] = found
    state = {}

    def visit(name, path):
        if state.get(name) == "done":
            return
        assert state.get(name) != "open", "circle: " + " -> ".join([*path[path.index(name) :], name])
        state[name] = "open"
        for target in sorted(edges.get(name, ())):
            visit(target, [*path, name])
        state[name] = "done"

    for name in sorted(edges):
        if name != "gendistill":  # the front door imports when it is asked
            visit(name, [])


def test_no_module_lies_loose_at_the_root_and_every_package_is_on_the_plan():
    assert [file.name for file in (ROOT / "gendistill").glob("*.py")] == ["__init__.py"]
    packages = {name.split(".")[1] for name in MODULES.values() if len(name.split(".")) > 2}
    assert packages == set(FLOORS)


def test_the_packages_that_are_installed_are_those_that_there_are():
    listed = set(re.findall(r'^    "(gendistill[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    there = {name.removesuffix(".__init__") for name in MODULES.values() if name.endswith("__init__")}
    assert listed == there


def test_no_two_public_classes_or_modules_have_one_name():
    classes, modules = Counter(), Counter()
    for file, name in MODULES.items():
        tree = ast.parse(file.read_text())
        classes.update(node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))
        modules[name.rpartition(".")[2]] += 1
    twice = [name for count in (classes, modules) for name, times in count.items() if times > 1 and not name.startswith("__")]
    assert not twice, twice


def test_no_file_is_longer_than_400_lines():
    long = {str(file.relative_to(ROOT)): count for file in MODULES if (count := file.read_text().count("\n")) > 400}
    assert not long


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"\.unet\b", "samplers/families/"),
        (r"config\.method ==", "nowhere"),
        (r"unittest\.mock|__class__ =[^=]", "nowhere"),
    ],
    ids=["a family alone knows its network's name", "no question to the method's name", "no test tool in shipped code"],
)
def test_what_is_known_in_one_place_alone(pattern, allowed):
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in MODULES
        if not str(file.relative_to(ROOT)).startswith(allowed)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found
