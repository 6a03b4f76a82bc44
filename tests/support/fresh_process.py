"""`gendistill` in processes of its own that start at once: forks of a server that has imported everything already."""

import gc
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["pytest", "gendistill.cli", "gendistill.run.distill", "gendistill.run.dry_run", "gendistill.evaluation.sets"]
)

WRITES = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "shutil.rmtree")


class FreshProcess:
    """`work()` in a process of its own, on one thread; what it prints goes to a file.

    Args:
        work: a function that can be pickled.
        before: another one, called first: what sets a trap.
        errors: a file of its own for what it prints to standard error.
    """

    def __init__(self, work, output, *, folder=None, environment=None, before=None, errors=None):
        self.output = Path(output)
        self.process = _context.Process(target=_run, args=(work, self.output, errors, folder, environment or {}, before))
        self.process.start()

    def ended_within(self, seconds):
        self.process.join(seconds)
        return self.process.exitcode is not None

    def wait(self, seconds=900):
        """The exit code, minus the signal where one ended it."""
        if not self.ended_within(seconds):
            self.signal(signal.SIGKILL)
            raise TimeoutError(f"still running after {seconds} s: {self.text}")
        return self.process.exitcode

    def signal(self, number):
        os.kill(self.process.pid, number)

    @property
    def text(self):
        return " ".join(self.output.read_text().split())


def gendistill(arguments, output, **options):
    """The command line with these arguments."""
    return FreshProcess(partial(_command_line, [str(argument) for argument in arguments]), output, **options)


def ran(*arguments, folder=None):
    """The command line with these arguments, ended: `returncode`, `stdout` and `stderr`, as `subprocess.run` has them."""
    with TemporaryDirectory() as place:
        out, errors = Path(place, "out"), Path(place, "errors")
        code = gendistill(arguments, out, errors=errors, folder=folder or Path.cwd()).wait()
        return subprocess.CompletedProcess(arguments, code, out.read_text(), errors.read_text())


def together(count, start):
    """`count` processes that work together: start(rank, environment) makes each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [start(rank, {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]


def die_at_write(folder, number):
    """SIGKILL just before the `number`-th time that Python opens, makes, renames or removes something in `folder`."""
    writes = iter(range(1, number))

    def hook(event, arguments):
        if event in WRITES and str(arguments[0]).startswith(str(folder)) and next(writes, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def count_writes(folder, into):
    """One byte into a file for each of these times."""
    counter = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event, arguments):
        if event in WRITES and str(arguments[0]).startswith(str(folder)):
            os.write(counter, b".")

    sys.addaudithook(hook)


def limit(what, size):
    """At most so many bytes: `resource.RLIMIT_FSIZE` of a file, or `resource.RLIMIT_AS` of memory beside what there is."""
    if what == resource.RLIMIT_AS:
        size += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(what, (size, size))


def _run(work, output, errors, folder, environment, before):
    import torch

    gc.freeze()  # what the server has imported; a garbage collection that visits it takes 0.3 s and copies its memory
    with open(output, "ab") as file, open(errors or output, "ab") as beside:
        os.dup2(file.fileno(), 1)
        os.dup2(beside.fileno(), 2)
    os.chdir(folder or "/")
    os.environ.update(environment)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore Ctrl-C
    if before is not None:
        before()
    work()


def _command_line(arguments):
    from gendistill import cli

    sys.argv = ["gendistill", *arguments]
    cli.main()
