"""Where a study is stored: a SQLite file, a journal file, or a database that many machines reach."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna import Study
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

HEARTBEAT = 60  # seconds between two signs of life of a trial in a database
PATIENCE = 60  # seconds that a writer of SQLite waits for another one
RUN, RESUMED = "run", "resumed"  # attributes of a trial: the number of its run folder, and whether it resumes one


def open_storage(location: str | None, folder: Path) -> BaseStorage:
    """The storage of a study.

    Args:
        location: a `.log` file for a journal, or the URL of a database; None for `study.db` in `folder`.

    Raises:
        ValueError: it cannot be opened; the sentence has no password.
    """
    if location is not None and "://" not in location:
        if not location.endswith(".log"):
            raise ValueError(f"storage {location}: expects a file that ends in .log, or a URL such as sqlite:///study.db")
        if not Path(location).expanduser().absolute().parent.is_dir():
            raise ValueError(f"storage {location}: its folder does not exist; expects a file in an existing folder")
        return JournalStorage(JournalFileBackend(str(Path(location).expanduser())))
    url = URL.create("sqlite", database=str((folder / "study.db").absolute())) if location is None else _url(location)
    options = {"connect_args": {"timeout": PATIENCE}} if url.get_backend_name() == "sqlite" else {"pool_pre_ping": True}
    with storage_errors(url.render_as_string(), ImportError), warnings.catch_warnings():  # of a driver; heartbeats are new
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT,
            heartbeat_stale_trial_callback=requeue,
        )


def requeue(study: Study, trial: FrozenTrial | Trial) -> None:
    """Let another worker resume the run folder of a trial whose worker has ended."""
    run = trial.user_attrs.get(RUN, trial.number)
    study.enqueue_trial(trial.params, user_attrs={RUN: run, RESUMED: True})


@contextmanager
def storage_errors(location: str, *errors: type[Exception]) -> Iterator[None]:
    """Raise ValueError, in one sentence, if a database fails inside the context, or at another one of the `errors`."""
    caught: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError, *errors)
    try:
        yield
    except caught as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"storage {location} cannot be used: {reason}; expects a database that answers, with its driver installed"
        ) from error


def described(location: str | None, folder: Path) -> str:
    """The storage in an error: without a password."""
    if location is None:
        return str(folder / "study.db")
    return _url(location).render_as_string() if "://" in location else location


def _url(location: str) -> URL:
    try:
        return make_url(location)
    except SQLAlchemyError as error:
        raise ValueError("storage: the URL cannot be read; expects postgresql://USER:PASSWORD@HOST/DATABASE") from error
