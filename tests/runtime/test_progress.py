"""Progress: a bar on a terminal, lines elsewhere; both with time left, memory and what the work reports."""

import io

from rich.console import Console

from gendistill.runtime.progress import WorkProgress


def shown(terminal, lines_every=0.0, total=4, time_limit=None):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    progress = WorkProgress("training", total, 1, console=console, lines_every=lines_every, time_limit=time_limit)
    progress.update(2, "loss 0.5000, validation 1.25")
    progress.update(3)
    progress.close()
    return console.file.getvalue()


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end():
    lines = shown(terminal=False).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("training 2/4, 0:00:00 elapsed, 0:00:00 left, ")
    assert all(" GiB, loss 0.5000, validation 1.25" in line for line in lines)
    assert len(shown(terminal=False, lines_every=60).splitlines()) == 1
    assert "left" not in shown(terminal=False, total=None)
    assert " 0:00:50 left" in shown(terminal=False, total=None, time_limit=50)


def test_the_time_left_ends_at_the_time_limit():
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    progress = WorkProgress("training", 2000, console=console, time_limit=420)
    progress.started -= 400  # 900 steps in 400 seconds: 490 seconds more to the last step, 20 to the limit
    progress.update(900)
    progress.close()
    assert " 0:00:20 " in console.file.getvalue()


def test_on_a_terminal_there_is_a_bar_with_the_same():
    bar = shown(terminal=True)
    assert "3/4" in bar
    assert "GiB" in bar
    assert "loss 0.5000, validation 1.25" in bar
