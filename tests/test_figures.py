"""The scripts in `docs/figures` draw the figures of the documents from what is in the repository."""

import importlib
import json
import re
from pathlib import Path

import pytest
from paths import REPOSITORY

matplotlib = pytest.importorskip("matplotlib", reason='the figures need pip install "albef_hf[train]"')

FIGURES = REPOSITORY / "docs" / "figures"
SCRIPTS = ("architecture", "step", "concepts")


@pytest.fixture
def drawn(tmp_path, monkeypatch) -> list[Path]:
    """Return the figures that the scripts draw."""
    monkeypatch.syspath_prepend(str(FIGURES))
    with matplotlib.rc_context():  # importing `drawing` changes the settings
        drawing = importlib.import_module("drawing")
        monkeypatch.setattr(drawing, "FOLDER", tmp_path)
        for script in SCRIPTS:
            importlib.import_module(script).main()
    return sorted(tmp_path.iterdir())


def test_the_scripts_draw_the_figures_that_are_committed(drawn):
    assert [path.name for path in drawn] == sorted(path.name for path in FIGURES.glob("*.svg"))
    for path in drawn:
        new, committed = (file.read_text(encoding="utf-8") for file in (path, FIGURES / path.name))
        assert size(new) == size(committed) and "nan" not in new and "<text" not in new
        assert abs(len(new) - len(committed)) < 0.1 * len(committed), f"draw {path.name} again"


def size(svg: str) -> set[str]:
    """Return width and height of a figure."""
    return set(re.findall(r'(?:height|width)="([\d.]+pt)"', svg[: svg.index("<g ")]))


def test_the_short_runs_show_what_the_page_says():
    runs = json.loads((FIGURES / "short_runs.json").read_text(encoding="utf-8"))

    def last(run: str, name: str) -> float:
        return [record[name] for record in runs[run]["log"] if name in record][-1]

    assert last("queue", "mutual_information_bound") > last("batch", "mutual_information_bound")
    assert last("queue", "itc_text_r10") < last("batch", "itc_text_r10")
    assert last("uniform", "loss_itm") < last("batch", "loss_itm")
