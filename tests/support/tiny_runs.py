"""Settings of a run of a few steps, and what it wrote into its log."""

import json

from gendistill.run.config import load_config


def settings_of(place, teacher, name, /, **changes):
    """A data-free run in place/name, unless the changes (by dotted name, `trainer__max_steps`; None takes one out) say else."""
    prompts = place / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("food\nemoji of animals\n")
    given = {
        "teacher": str(teacher),
        "out": str(place / name),
        "device": "cpu",
        "steps": [2],
        "solvers": ["ddim"],
        "data.prompts": str(prompts),
        "data.cache": str(place / "cache"),
        "data.num_synthetic": 4,
        "data.synthetic_steps": 2,
        "trainer.max_steps": 4,
        "trainer.batch_size": 2,
        "trainer.log_every": 1,
        "trainer.checkpoint_every": 2,
        "trainer.num_validation": 4,
        "trainer.trackers": [],
        "watch.prompts": 1,
        "watch.seeds": 2,
    }
    given |= {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(None, {name: value for name, value in given.items() if value is not None})


def logged(run, name):
    """What the log of a run folder has by that name, line after line."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]
