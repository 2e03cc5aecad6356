"""Progress in log files: how many lines there are, and what they say."""

import io
import sys

import pytest
import transformers
from tqdm.auto import tqdm

from albef_hf import progress as module
from albef_hf.progress import ProgressLines, log_library_progress, progress


def test_a_line_comes_every_so_many_steps_with_the_numbers_of_the_last(capsys):
    bar = progress(total=700, unit="step", every=100)
    bar.initial = bar.n = 250
    for step in range(251, 661):
        bar.set_postfix({"itc": f"{step / 100:.4g}"})
        bar.update()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["300/700", "400/700", "500/700", "600/700", "660/700"]
    assert lines[1].startswith("57% 400/700 [00:00<00:00, ") and lines[1].endswith("step/s, itc=4]")


def test_else_a_line_comes_when_time_has_passed_and_one_at_the_end(capsys, monkeypatch):
    now = iter(range(10**6))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now)))
    assert list(progress(range(100), "index")) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("index: 100% 100/100 [") and 4 <= len(lines) <= 5
    for _ in progress(iter("abc"), "stream"):
        pass
    for _ in progress([], "nothing"):
        pass
    assert capsys.readouterr().err.splitlines()[0].startswith("stream: 3 it [")


def test_a_terminal_and_who_disables_it_get_what_tqdm_shows(monkeypatch):
    assert isinstance(progress([]), ProgressLines)
    assert isinstance(progress([], disable=True), tqdm)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3), "bar")) == [0, 1, 2]
    assert "\r" in terminal.getvalue() and "bar: 100%" in terminal.getvalue()


def test_the_bars_of_transformers_are_lines_too_unless_they_are_disabled(capsys):
    before = transformers.logging.set_tqdm_hook(None)
    try:
        log_library_progress()
        assert list(transformers.utils.logging.tqdm(range(5), "encode", leave=False)) == list(range(5))
        assert capsys.readouterr().err.startswith("encode: 100% 5/5 [")
        transformers.logging.disable_progress_bar()
        assert list(transformers.utils.logging.tqdm(range(5))) == list(range(5))
        assert not capsys.readouterr().err
    finally:
        transformers.logging.enable_progress_bar()
        transformers.logging.set_tqdm_hook(before)


@pytest.fixture(autouse=True)
def at_the_terminal_of_none(monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
