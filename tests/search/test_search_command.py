"""`gendistill search`: trials of a few steps from the command line."""

import json
import signal
import sys

import optuna
import pytest
from fresh_process import gendistill as process_of_gendistill
from tiny_runs import settings_of

from gendistill import cli
from gendistill.run.config import load_config, save_config
from gendistill.search.space import read_space
from gendistill.search.study import InOrder
from gendistill.search.study_storage import RUN, described

SPACE = """
trainer.learning_rate: {low: 1e-4, high: 1e-2, log: true}
consistency.ema_decay: [0.9, 0.95, 0.99]
"""


@pytest.fixture
def search(place, monkeypatch, capsys):
    """search(*arguments, space=...): the command line, in a folder with `config.yaml`; returns its JSON, or its error."""
    few = {"trainer__max_steps": 2, "trainer__num_validation": 2, "trainer__num_solver_images": 0, "watch__prompts": 0}
    few |= {"trainer__validate_every": 1, "consistency__ema_decay": 0.95}
    save_config(settings_of(place, "teacher", "run", **few), place / "config.yaml")

    def run(*arguments, space=SPACE, code=0):
        (place / "space.yaml").write_text(space)
        words = ["search", "config.yaml", "--space", "space.yaml", "--out", "found", "--minutes-per-trial", "1", "--json"]
        monkeypatch.setattr(sys, "argv", ["gendistill", *words, *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        assert end.value.code == code, shown.err
        return " ".join(shown.err.split()) if code else json.loads(shown.out)

    return run


def study_of(place):
    return optuna.load_study(study_name="found", storage=f"sqlite:///{place}/found/study.db")


def test_a_search_starts_with_the_own_values_and_goes_on_to_more_trials(search, place):
    found = search("--trials", "2")["trials"]
    assert found[0]["settings"] == {"trainer.learning_rate": 2e-4, "consistency.ema_decay": 0.95}
    more = search("--trials", "3")["trials"]
    assert more[:2] == found
    assert len({json.dumps(trial["settings"]) for trial in more}) == 3
    for number, trial in enumerate(more):
        config = load_config(place / "found" / "trials" / str(number) / "config.yaml")
        assert config.trainer.learning_rate == trial["settings"]["trainer.learning_rate"]
        assert config.trainer.max_minutes == 1
    best = min((trial for trial in more if trial["state"] == "complete"), key=lambda trial: trial["quality"])
    assert load_config(place / "found" / "best.yaml").consistency.ema_decay == best["settings"]["consistency.ema_decay"]
    page = (place / "found" / "report.html").read_text()
    assert "trainer.learning_rate" in page
    assert "<svg" in page
    assert "was begun with another minutes" in search("--trials", "3", "--minutes-per-trial", "2", code=2)


def test_a_trial_whose_worker_was_killed_goes_on_in_its_run_folder(search, place):
    search("--trials", "1")
    study = study_of(place)
    trial = study.ask({"trainer.learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)})
    trial.set_user_attr(RUN, trial.number)
    (place / "found" / "trials" / f".{trial.number}.lock").touch()  # the system frees the lock of a killed process
    found = search("--trials", "2")["trials"]
    assert len(found) == 2
    assert found[1]["run"].endswith("trials/1")
    assert found[1]["settings"]["trainer.learning_rate"] == trial.params["trainer.learning_rate"]
    states = [each.state.name for each in study_of(place).trials]
    assert states[1] == "FAIL"
    assert len(states) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_search_that_was_stopped_resumes_the_run_of_its_trial(search, place, number):
    (place / "space.yaml").write_text("consistency.ema_decay: [0.95]\n")
    words = ["search", "config.yaml", "--space", "space.yaml", "--out", "found", "--minutes-per-trial", "1", "--trials", "1"]
    words += ["--set", "trainer.max_steps=300", "--set", "trainer.validate_every=300"]
    worker = process_of_gendistill(words, place / "output", folder=place)
    while not list(place.glob("found/trials/0/checkpoints/step*")) and not worker.ended_within(0.1):
        pass
    [first] = place.glob("found/trials/0/samples/step-000000-*.png")
    written = first.stat().st_mtime_ns
    worker.signal(number)
    code = worker.wait()
    assert code == (-number if number == signal.SIGKILL else 143), worker.text
    assert number == signal.SIGKILL or "To resume it, repeat the command" in worker.text
    [trial] = search(*words[8:], space="consistency.ema_decay: [0.95]\n")["trials"]
    assert trial["state"] == "complete"
    assert first.stat().st_mtime_ns == written  # a run that began again would have validated its first step again
    assert not list(place.glob("found/trials/1"))
    assert not list(place.glob("found/trials/0/checkpoints"))


@pytest.mark.slow
def test_a_front_of_quality_latency_and_memory(search):
    found = search("--trials", "2", "--objective", "quality,latency,memory")["trials"]
    assert all(trial["latency"] > 0 and trial["memory"] > 0 for trial in found)


@pytest.mark.slow
def test_a_grid_has_each_point_once_and_a_journal_stores_it(search):
    space = "consistency.ema_decay: [0.9, 0.95]\n"
    found = search("--sampler", "grid", "--storage", "study.log", "--trials", "9", space=space)["trials"]
    assert [trial["settings"]["consistency.ema_decay"] for trial in found] == [0.95, 0.9]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_two_workers_of_one_study_never_run_the_same_trial(search, place, sampler):
    (place / "space.yaml").write_text("consistency.ema_decay: [0.9, 0.92, 0.94, 0.96]\ntrainer.warmup_steps: [1, 2]\n")
    words = ["search", "config.yaml", "--space", "space.yaml", "--out", "found", "--trials", "6", "--sampler", sampler]
    workers = [process_of_gendistill(words, place / f"output-{n}", folder=place) for n in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0], workers[0].text + workers[1].text
    runs = [trial.user_attrs[RUN] for trial in study_of(place).trials if RUN in trial.user_attrs]
    assert len(runs) == len(set(runs)) == 6
    assert all("trial" in worker.text for worker in workers)
    if sampler == "grid":
        assert len({str(trial.params) for trial in study_of(place).trials if RUN in trial.user_attrs}) == 6


def test_the_points_of_a_grid_do_not_depend_on_who_asks():
    study = optuna.create_study(sampler=InOrder([{"a": 1}, {"a": 2}, {"a": 3}]))
    trials = [study.ask() for _ in range(3)]
    assert [trial.suggest_categorical("a", [1, 2, 3]) for trial in reversed(trials)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("trainer.learning_rat: [1, 2]", "setting trainer.learning_rat is not known; did you mean trainer.learning_rate?"),
        ("learning_rate: {low: 1, high: 2}", "did you mean trainer.learning_rate?"),
        ("trainer.learning_rate: {low: 0, high: 1}", "setting trainer.learning_rate is 0"),
        ("trainer.learning_rate: {low: 1e-3, high: 1e-4}", "expects low below high"),
        ("trainer.learning_rate: {lowest: 1}", "expects a list of choices, or a range such as"),
        ("trainer.optimizer: [adamw, adamv]", "setting trainer.optimizer is 'adamv'; expects adamw or"),
        ("trainer.num_validation: [4, 8]", "is the same for all trials"),
        ("- a", "expects the names of settings"),
        ("a: [", "is not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_space_is_one_sentence(search, place, space, expected):
    assert expected in search(space=space, code=2)
    assert not (place / "found").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--storage", "sqlite:////nowhere/at/all.db"], "storage sqlite:////nowhere/at/all.db cannot be used: unable to open"),
        (["--storage", "nosuch://me:secret@host/db"], "storage nosuch://me:***@host/db cannot be used"),
        (["--storage", "postgresql://me:secret@127.0.0.1:1/db"], "storage postgresql://me:***@127.0.0.1:1/db cannot be used"),
        (["--storage", "study.txt"], "storage study.txt: expects a file that ends in .log, or a URL"),
        (["--storage", "nowhere/study.log"], "its folder does not exist"),
        (["--sampler", "best"], "sampler best: expects one of tpe, random, grid"),
        (["--objective", "latency"], "objective latency: expects quality"),
        (["--sampler", "grid"], "the range of trainer.learning_rate has no step"),
        (["--set", "data.prompts=nowhere.txt"], "'nowhere.txt' cannot be read"),
    ],
)
def test_a_mistake_in_an_option_is_one_sentence(search, arguments, expected):
    assert expected in search(*arguments, code=2)


def test_a_database_that_fails_in_a_search_is_one_sentence_without_its_password(search, place):
    """Here a SQLite file that another program has replaced."""
    search("--trials", "1", "--storage", f"sqlite:///{place}/study.db")
    (place / "study.db").write_bytes(b"something else" * 99)
    assert "study.db cannot be used: file is not a database" in search("--storage", f"sqlite:///{place}/study.db", code=2)
    assert described("postgresql://me:secret@host/db", place) == "postgresql://me:***@host/db"


def test_ranges_have_the_type_of_their_setting(tmp_path):
    (tmp_path / "space.yaml").write_text(
        "trainer.batch_size: {low: 8, high: 32, step: 8}\nguidance.scale: {low: 1, high: 8}\nsolvers: [[ddim], [ddim, tcd]]\n"
    )
    space = read_space(tmp_path / "space.yaml", None, {})
    assert [type(each).__name__ for each in space.distributions.values()] == [
        "IntDistribution", "FloatDistribution", "CategoricalDistribution",
    ]  # fmt: skip
    assert space.own_parameters(load_config(None, {"guidance.scale": 2})) == {
        "trainer.batch_size": 32, "guidance.scale": 2, "solvers": '["ddim", "tcd"]',
    }  # fmt: skip
    assert space.own_parameters(load_config(None, {"trainer.batch_size": 12})) is None
    assert space.value_of('["ddim"]') == ["ddim"]


@pytest.mark.slow
def test_a_trial_that_is_worse_than_others_at_the_same_time_is_pruned(search, place):
    space = "trainer.learning_rate: {low: 1e-4, high: 1e-3}\n"
    search("--trials", "3", space=space)
    study = study_of(place)
    for _ in range(3):  # trials that were good at 50 % of their time
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE,
                params={"trainer.learning_rate": 1e-4},
                distributions={"trainer.learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-3)},
                value=1e-6,
                user_attrs={RUN: 99},
                system_attrs={"completed_rung_0": 1e-6},
            )
        )
    found = search("--trials", "7", space=space)["trials"]
    assert found[-1]["state"] == "pruned"
    assert not (place / "found" / "trials" / "6" / "student").exists()
