"""What is written is complete, readable as the umask says, and takes the place of nothing else."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_pipeline import ROOT

from gendistill.runtime.files import (
    SIGNATURE,
    as_os_error,
    atomic_write,
    folder_lock,
    holds_nothing,
    is_signed,
    new_folder,
    replace_folder,
    require_new,
    require_vacant,
    updated_folder,
    written_alone,
)

HOLDING = """
import sys
from pathlib import Path
from gendistill.runtime.files import folder_lock
with folder_lock(Path(sys.argv[1]), "out"):
    print("held", flush=True)
    sys.stdin.read()
"""


def mode_of(path):
    return oct(path.stat().st_mode & 0o777)


@pytest.fixture
def umask():
    """umask(0o022): a umask for the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "of_file", "of_folder"), [(0o022, "0o644", "0o755"), (0o077, "0o600", "0o700")])
def test_every_writer_honours_the_umask_also_where_safetensors_writes_for_the_owner_alone(
    umask, tmp_path, mask, of_file, of_folder
):
    umask(mask)

    def fill(folder):
        (folder / "unet").mkdir(parents=True, mode=0o700)
        save_file({"a": torch.zeros(1)}, folder / "unet" / "weights.safetensors")

    for write in (atomic_write, written_alone):
        with write(tmp_path / write.__name__) as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        assert mode_of(tmp_path / write.__name__) == of_file
    for write in (new_folder, updated_folder):
        with write(tmp_path / write.__name__) as temporary:
            fill(temporary)
    fill(tmp_path / "temporary")
    replace_folder(tmp_path / "temporary", tmp_path / "replaced")
    for folder in ("new_folder", "updated_folder", "replaced"):
        assert mode_of(tmp_path / folder) == mode_of(tmp_path / folder / "unet") == of_folder
        assert mode_of(tmp_path / folder / "unet" / "weights.safetensors") == of_file
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_second_process_is_refused_in_one_sentence_and_a_killed_one_leaves_no_lock(tmp_path):
    def hold():
        command = [sys.executable, "-c", HOLDING, str(tmp_path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, **pipes)
        assert process.stdout.readline() == "held\n"
        return process

    refused = pytest.raises(ValueError, match=f"^out {tmp_path} is in use by another process that writes into it; expects")
    with hold() as first:
        with refused, folder_lock(tmp_path, "out"):
            pass
        first.send_signal(signal.SIGKILL)
    with folder_lock(tmp_path, "out"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path, "out"):
        (tmp_path / "written").touch()
    assert "the file system has no locks" in caplog.text


def test_a_folder_that_is_updated_keeps_the_files_of_others_and_is_unchanged_after_an_error(tmp_path):
    student = tmp_path / "student"
    (student / "unet").mkdir(parents=True)
    for name in ("unet/weights", "unet/notes", "program"):
        (student / name).write_text("before")
    with pytest.raises(FileNotFoundError), updated_folder(student) as temporary:
        (temporary / "unet" / "weights").write_text("no such folder")
    assert (student / "unet" / "weights").read_text() == "before"
    with updated_folder(student, outdated=["program"]) as temporary:
        (temporary / "unet").mkdir(parents=True)
        (temporary / "unet" / "weights").write_text("after")
    assert {str(path.relative_to(student)): path.read_text() for path in student.rglob("*") if path.is_file()} == {
        "unet/weights": "after",
        "unet/notes": "before",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_folder_or_file_of_others_is_refused_and_one_of_ours_or_an_empty_one_is_not(tmp_path):
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    (tmp_path / "empty" / ".DS_Store").write_text("x")
    (tmp_path / "empty" / "log.txt").touch()
    require_vacant(tmp_path / "empty", "out", holds_nothing)
    with pytest.raises(ValueError, match=r"holds \.DS_Store and 2 more, which would be lost"):
        require_vacant(tmp_path / "empty", "out")
    with pytest.raises(ValueError, match=r"log\.txt: is a file; expects a new or an empty folder"):
        require_vacant(tmp_path / "empty" / "log.txt", "out")
    (tmp_path / "of.others").write_text("x")
    (tmp_path / "link").symlink_to("of.others")
    with (tmp_path / "ours.npy").open("wb") as file:
        np.save(file, np.zeros(3))
        file.write(SIGNATURE)
    assert len(np.load(tmp_path / "ours.npy")) == 3
    for name in ("of.others", "link"):
        with pytest.raises(ValueError, match=f"{name}: exists and would be lost; expects a new name"):
            require_new(tmp_path / name, "out", is_signed)
    for name in ("ours.npy", "new", "empty/log.txt"):
        require_new(tmp_path / name, "out", is_signed)


def test_errors_of_the_disk_are_known_by_their_text_too():
    class RustError(Exception):
        pass

    assert as_os_error(RustError("Error while serializing: I/O error: File too large (os error 27)")).errno == errno.EFBIG
    assert as_os_error(RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")).errno == errno.ENOSPC
    assert as_os_error(RuntimeError("shapes differ")) is None
