"""Progress in log files: the number of lines and their content."""

import io
import sys

import pytest
import transformers

from albef_hf.utils import progress as module
from albef_hf.utils.progress import ProgressLines, log_library_progress, progress


def test_lines_are_written_at_an_interval_with_the_latest_values(capsys):
    bar = progress(total=700, unit="step", every=100)
    bar.initial = bar.n = 250
    for step in range(251, 661):
        bar.set_postfix({"itc": f"{step / 100:.4g}"})
        bar.update()
    bar.close()
    shown = capsys.readouterr().err
    lines = shown.splitlines()
    assert [line.split()[1] for line in lines] == ["300/700", "400/700", "500/700", "600/700", "660/700"]
    assert lines[1].startswith("57% 400/700 [00:00<00:00, ") and lines[1].endswith("step/s, itc=4]")
    assert "\r" not in shown


def test_lines_are_written_after_some_time_and_at_the_end(capsys, monkeypatch):
    now = iter(range(10**6))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now)))
    assert list(progress(range(100), "index")) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("index: 100% 100/100 [") and 4 <= len(lines) <= 5


@pytest.mark.parametrize(("items", "line"), [(iter("abc"), "stream: 3 it ["), ("abc", "stream: 100% 3/3 ["), ([], "")])
def test_short_work_gets_one_line(capsys, items, line):
    for _ in progress(items, "stream", leave=False):
        pass
    shown = capsys.readouterr().err
    assert shown.startswith(line) and shown.count("\n") == bool(line)


def test_other_methods_of_tqdm_do_not_disturb_lines(capsys):
    with progress(total=3, desc="work", every=2) as bar:
        bar.set_description("other")
        bar.refresh()
        bar.write("a text")
        bar.update(3)
    with progress(total=3, disable=True) as bar:
        bar.update(3)
    shown = capsys.readouterr()
    assert shown.err.startswith("other: 100% 3/3 [") and shown.err.count("\n") == 1
    assert shown.out == "a text\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    assert isinstance(progress([]), ProgressLines)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3), "bar", every=1)) == [0, 1, 2]
    assert "\r" in terminal.getvalue() and "bar: 100%" in terminal.getvalue()


def test_bars_of_libraries_become_lines_or_are_disabled(capsys):
    before = transformers.logging.set_tqdm_hook(None)
    try:
        log_library_progress()
        assert list(transformers.utils.logging.tqdm(range(5), "encode", leave=False)) == list(range(5))
        assert capsys.readouterr().err.startswith("encode: 100% 5/5 [")
        transformers.logging.disable_progress_bar()
        assert isinstance(transformers.utils.logging.tqdm(range(5)), transformers.utils.logging.EmptyTqdm)
    finally:
        transformers.logging.enable_progress_bar()
        transformers.logging.set_tqdm_hook(before)
