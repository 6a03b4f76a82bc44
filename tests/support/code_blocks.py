"""The code blocks of README.md and docs/, and the commands of those that are for a shell."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks_of(page):
    """Every fenced block of a page, in order."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        body = re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE)
        yield Block(str(page.relative_to(ROOT)), text[: found.start()].count("\n") + 1, found[2], body)


def commands_of(block):
    """The commands of a block for a shell, each as a list of words: lines joined where they continue, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [command for command in commands if command]


def gendistill_arguments(command):
    """What a command gives to the command line of gendistill; None where it calls something else.

    `accelerate launch OPTIONS -m gendistill.cli ARGUMENTS` calls it in several processes.
    """
    if command[0] == "gendistill":
        return command[1:]
    if command[:2] == ["accelerate", "launch"]:
        return command[command.index("gendistill.cli") + 1 :]
    return None
