"""Every code block of README.md and docs/ works as it stands there: checked in full, and run in small."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from code_blocks import PAGES, ROOT, blocks_of, commands_of, gendistill_arguments
from typer.main import get_command

from gendistill import cli
from gendistill.cli.shared import app, parse_settings
from gendistill.configs import PRESETS
from gendistill.evaluation.probes import Probes
from gendistill.run.config import load_config
from gendistill.search.space import read_space

# Commands that no test runs, by their beginning, and why.
NOT_RUN = {
    ("pip", "install"): "it installs from the network",
    ("make",): "it is set-up, or takes minutes to hours; its target is checked",
    ("python", "benchmarks/"): "it measures for minutes to hours; its file is checked",
    ("python", "scripts/gpu_check.py"): "it needs a GPU; tests/test_gpu_check.py runs it in small on a CPU",
    ("python", "scripts/recipes/"): "it trains for minutes; its file is checked",
    ("gendistill", "demo"): "it trains for minutes; tests/test_installation.py runs it in small",
    ("gendistill", "search"): "it trains for minutes; tests/search runs it in small",
    ("gendistill", "sweep"): "it trains for minutes; tests/search runs it in small",
    ("gendistill", "distill", "my-model/", "--budget"): "it trains for its budget; tests/run/test_budget.py runs it in small",
    ("gendistill", "serve"): "it serves until Ctrl-C; tests/serve runs it",
}
# Python that no test runs, by what it holds, and why.
NO_SCRIPT = {
    "client.images": "it needs a running server; tests/serve sends it the same requests",
    "register(": "it is a template; tests/extending installs and runs it",
}
SLOW = {  # pages of more than some seconds
    "README.md",
    "docs/guides/does-it-still-fit.md",
    "docs/guides/evaluate.md",
    "docs/guides/fine-tune.md",
    "docs/guides/gans.md",
    "docs/guides/memory.md",
    "docs/guides/quantization.md",
    "docs/guides/stable-diffusion.md",
    "docs/guides/use-a-student.md",
    "docs/guides/your-checkpoint-and-loras.md",
    "docs/methods/compression.md",
}
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNABLE = {"bash", "python"}
LARGE = {"assets/tiny-sd": "my-model", "sd1": "my-model", "sdxl": "my-sdxl-student"}  # that are sampled or planned: in small


def not_run(command):
    return any(all(word.startswith(part) for word, part in zip(command, start, strict=False)) for start in NOT_RUN)


def test_every_block_names_a_language_that_is_checked():
    assert {block.language for block in BLOCKS} == {"bash", "python", "yaml", "toml", "text"}


def test_every_command_uses_options_and_settings_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = get_command(app).commands
    for block in BLOCKS:
        for command in commands_of(block) if block.language == "bash" else []:
            arguments = gendistill_arguments(command)
            if arguments:
                context = commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))
                settings = parse_settings(context.params.get("set_") or [])
                options = {
                    "method": context.params.get("method"),
                    "compress.factor": context.params.get("compress"),
                    "lora.enabled": context.params.get("lora") is True or None,
                }
                load_config(None, {name: value for name, value in options.items() if value is not None} | settings)
            elif not_run(command) and command[0] == "python":
                assert (ROOT / command[1]).is_file(), block
            elif command[0] == "make":
                targets = (ROOT / "Makefile").read_text()
                assert all(f"\n{target}:" in targets for target in command[1:]), block


def test_settings_in_files_are_settings():
    for block in BLOCKS:
        if block.language == "yaml" and "attributes:" not in block.text and "low:" not in block.text:
            load_config(None, _dotted(yaml.safe_load(block.text)))


def _dotted(settings):
    """Sections as they are: `load_config` takes them under their names."""
    return {str(name): value for name, value in settings.items()}


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in
                                  dict.fromkeys(block.page for block in BLOCKS if block.language in RUNNABLE)])  # fmt: skip
def test_the_blocks_of_a_page_run(page, small, monkeypatch):
    names = {}
    for block in BLOCKS:
        if block.page != page:
            continue
        if block.language == "python" and not any(part in block.text for part in NO_SCRIPT):
            script = small / f"block_{block.line}.py"
            script.write_text(block.text)
            names = runpy.run_path(str(script), init_globals=names, run_name="__main__")
        elif block.language == "bash":
            for command in commands_of(block):
                if not not_run(command):
                    run(command, block, monkeypatch)


def run(command, block, monkeypatch):
    """A command of gendistill in this process, one of another program in its own."""
    arguments = gendistill_arguments(command)
    if arguments is None:
        text = block.text.replace("\\\n", " ")
        line = next(line for line in text.splitlines() if line.startswith(command[0]))
        subprocess.run(["bash", "-euc", line], check=True, timeout=60)
        return
    if arguments[0] in ("sample", "grid", "plan") and arguments[1] in LARGE:
        arguments = [arguments[0], LARGE[arguments[1]], *arguments[2:]]
    monkeypatch.setattr(sys, "argv", ["gendistill", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None), f"{block}: {' '.join(command)}: exit code {end.value.code}"


def test_the_space_of_the_guide_is_a_space_of_the_demo(tmp_path):
    (block,) = [block for block in BLOCKS if block.language == "yaml" and "low:" in block.text]
    path = Path(tmp_path, "space.yaml")
    path.write_text(block.text)
    space = read_space(path, PRESETS["demo"], {})
    assert space.own_parameters(load_config(PRESETS["demo"])) is not None


def test_probes_of_the_guide_are_probes(tmp_path):
    (block,) = [block for block in BLOCKS if block.language == "yaml" and "attributes:" in block.text]
    path = Path(tmp_path, "probes.yaml")
    path.write_text(block.text)
    assert Probes.load(path).attributes
