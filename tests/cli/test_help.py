"""Help that teaches: examples that can be typed, lists from the registries, explanations of settings, completion by Tab."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from fresh_process import gendistill as process_of_gendistill

from gendistill import cli
from gendistill.cli import overview
from gendistill.cli.catalogue import DOCS, cache_file, catalogue
from gendistill.cli.shared import PANELS, app
from gendistill.methods import RECIPES
from gendistill.metrics.registry import METRICS
from gendistill.samplers.families import FAMILIES

ROOT = Path(__file__).parents[2]
GROUP = typer.main.get_command(app)
EXAMPLE = re.compile(r"gendistill (?:[^\n]+)")


@pytest.fixture(scope="module", autouse=True)
def cached_in_a_folder_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        catalogue.cache_clear()
        yield
    catalogue.cache_clear()


@pytest.fixture
def gendistill(monkeypatch, capsys):
    """Runs the command line here; gives what it prints."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["gendistill", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        shown = capsys.readouterr()
        assert exit_.value.code == code, shown.err
        return shown.err if code else shown.out

    return run


def examples(text):
    return [line.strip() for line in EXAMPLE.findall(re.sub(r"\[/?bold\]", "", text))]


def requires_options_that_exist(example):
    """Raises where a command does not accept the options and arguments of an example."""
    program, name, *arguments = shlex.split(example)
    assert program == "gendistill"
    GROUP.commands[name].make_context(name, arguments)


def test_gendistill_alone_shows_five_tasks_with_examples_that_the_commands_accept(gendistill):
    shown = gendistill()
    assert len(overview.TASKS) == 5
    for task, *commands in overview.TASKS:
        assert task in shown
        assert commands
        for command in commands:
            assert command in shown
            requires_options_that_exist(command)
    for further in ("gendistill --help", "gendistill methods", "gendistill explain SETTING", DOCS):
        assert further in shown


@pytest.mark.parametrize("name", GROUP.commands)
def test_every_command_has_a_group_and_examples_that_it_accepts_and_a_help_for_each_option(name):
    command = GROUP.commands[name]
    assert command.rich_help_panel in PANELS
    found = examples(command.epilog or "")
    assert found
    for example in found:
        assert example.startswith(f"gendistill {name}")
        requires_options_that_exist(example)
    for parameter in command.params:
        assert re.match(r"[A-Z]|\d|GAN:|int8|cuda|diffusers|lora", parameter.help or ""), (
            f"{parameter.name}: {parameter.help!r}"
        )


def test_an_option_is_still_read_by_its_old_name_with_a_warning_that_has_the_new_one(capsys):
    context = GROUP.commands["serve"].make_context("serve", ["--most-pictures", "3"])  # words: allowed
    assert context.params["max_images"] == 3
    assert "warning: --most-pictures is now --max-images" in capsys.readouterr().err  # words: allowed


@pytest.mark.parametrize("kind", ["methods", "metrics", "families"])
def test_what_is_registered_is_listed_with_a_sentence_and_a_page_of_the_documentation(gendistill, kind):
    names = {"methods": list(RECIPES), "metrics": list(METRICS), "families": [type(family).__name__ for family in FAMILIES]}[
        kind
    ]
    lines, entries = gendistill(kind).splitlines(), json.loads(gendistill(kind, "--json"))
    assert [entry["name"] for entry in entries] == names == [line.split()[0] for line in lines]
    for entry, line in zip(entries, lines, strict=True):
        assert re.match(r"[A-Z].{15,}[^.]$", entry["summary"])
        assert entry["summary"] in line
        assert line.split()[-1] == entry["docs"]
        assert entry["docs"].startswith(DOCS)


def test_the_page_of_everything_that_is_registered_is_in_the_documentation():
    found = catalogue()
    missing = [entry.docs for entry in (*found.methods, *found.metrics, *found.families) if not documented(entry.docs)]
    assert not missing


def documented(address):
    """Whether the page of an address, and the heading in it, is in docs/."""
    page, _, heading = address.removeprefix(DOCS).partition("#")
    file = ROOT / "docs" / f"{page.strip('/')}.md"
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if file.is_file() else None
    return headings is not None and (not heading or heading in [text.lower().strip("` ") for text in headings])


def test_the_address_of_the_documentation_is_the_one_of_the_package():
    assert f'Documentation = "{DOCS}"' in (ROOT / "pyproject.toml").read_text()


def test_a_setting_is_explained_with_its_choices_unit_default_range_and_paper(gendistill):
    shown = " ".join(gendistill("explain", "consistency.num_ddim_timesteps").split())
    for part in (
        "Number K of timesteps",
        "a whole number",
        "timesteps",
        "default 40",
        "at least 2",
        "arXiv:2310.04378, section 4.3",
    ):
        assert part in shown
    [found] = json.loads(gendistill("explain", "consistency.ema_decay", "--json"))
    assert found["default"] == 0.95
    assert found["range"] == "at least 0 and below 1"
    assert found["defaults_by_method"] | {"progressive": 0.99, "gan": 0.999} == found["defaults_by_method"]
    [trackers] = json.loads(gendistill("explain", "trainer.trackers", "--json"))
    assert trackers["kind"].startswith("a list of tensorboard, wandb")
    assert "[tensorboard]" in gendistill("explain", "trainer.trackers")


def test_explain_accepts_a_section_and_a_last_name_and_suggests_names_near_an_unknown_one(gendistill):
    of_section = [line.split()[0] for line in gendistill("explain", "guidance").splitlines()]
    assert of_section == ["guidance.mode", "guidance.scale", "guidance.range", "guidance.prompt_dropout"]
    assert re.search(r"progressive\.ema_decay +0\.99 ", gendistill("explain", "ema_decay"))
    assert "trainer.learning_rate: Learning rate" in gendistill("explain", "learning_rate")
    assert "trainer" in gendistill("explain")
    unknown = "error: setting trainer.learning_rat is not known; did you mean trainer.learning_rate"
    assert unknown in " ".join(gendistill("explain", "trainer.learning_rat", code=2).split())


def test_the_catalogue_is_read_from_the_cache_until_the_installation_changes(monkeypatch):
    found = catalogue()
    catalogue.cache_clear()
    saved = json.loads(cache_file().read_text())
    saved["catalogue"]["methods"][0]["summary"] = "From the cache"
    cache_file().write_text(json.dumps(saved))
    assert catalogue().methods[0].summary == "From the cache"
    cache_file().write_text(json.dumps(saved | {"installation": "another"}))
    catalogue.cache_clear()
    assert catalogue() == found


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("comp", {"compare"}),
        ("distill --method con", {"consistency"}),
        ("distill --set trainer.learn", {"trainer.learning_rate="}),
        ("evaluate student --metrics fd,prec", {"fd,precision"}),
        ("export student --format on", {"onnx"}),
        ("distill --config configs/gan", {"configs/gan.yaml"}),
        ("explain progressive.sam", {"progressive.sampler"}),
    ],
)
def test_the_tab_key_completes(typed, expected, tmp_path):
    words = ["gendistill", *typed.split(" ")]
    environment = {
        "_GENDISTILL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    process = process_of_gendistill([], tmp_path / "shown", folder=ROOT, environment=environment)
    process.wait()
    assert set(process.text.split()) == expected
