"""Programs in processes of their own that start at once: forks of one that has imported the libraries, but not gendistill."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

SERVER = """
import json, os, sys
import torch, peft, transformers, diffusers
from diffusers import StableDiffusionPipeline, StableDiffusion3Pipeline

torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
program = json.loads(line)
for number, name in enumerate([os.devnull, program["out"], program["errors"]]):
    os.dup2(os.open(name, os.O_RDWR), number)
os.chdir(program["folder"])
os.environ.update(program["environment"])
sys.path[:0], sys.argv = program["path"], program["arguments"]
exec(compile(program["code"], "<program>", "exec"), {"__name__": "__main__"})
"""


@cache
def _server():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SERVER], **pipes)


def ran_warm(code, *arguments, folder, environment=None, path=()):
    """The program `code`, ended: `returncode`, `stdout` and `stderr`, as `subprocess.run` has them.

    Args:
        arguments: of the program, in `sys.argv[1:]`.
        path: folders of modules that only this program finds.
    """
    with TemporaryDirectory() as place:
        files = {name: Path(place, name) for name in ("out", "errors")}
        for file in files.values():
            file.touch()
        program = {
            "code": code,
            "arguments": ["program", *map(str, arguments)],
            "folder": str(folder),
            "environment": environment or {},
            "path": [str(each) for each in path],
            **{name: str(file) for name, file in files.items()},
        }
        server = _server()
        server.stdin.write(json.dumps(program) + "\n")
        server.stdin.flush()
        code_of_end = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, code_of_end, files["out"].read_text(), files["errors"].read_text())
