"""The notebooks: their cells run at tiny size, and their kept outputs are those of a run."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
from accelerate.state import AcceleratorState, GradientState
from conftest import TINY
from paths import REPOSITORY
from small_pretraining import small_run

NOTEBOOKS = REPOSITORY / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
TINY_MODEL = {
    "projection_dim": 16,
    "vision_config": {**TINY, "image_size": 32},
    "text_config": {**TINY, "num_multimodal_layers": 2, "max_position_embeddings": 40},
}
MAX_BYTES = 600_000


def cells_of(path: Path) -> list[dict]:
    """Return the cells of code, with their source as one text."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def execute(path: Path, **parameters: object) -> dict:
    """Run the cells in this process, with other parameters; return their names."""
    names: dict = {"__name__": "__main__"}
    for cell in cells_of(path):
        exec(compile(cell["source"], path.name, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert parameters.keys() <= names.keys()
            names |= parameters
    return names


@pytest.fixture
def figures(monkeypatch, tmp_path, no_curves):
    """Run in a new folder, draw without a screen, and count the figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str))  # the tests do without
    matplotlib.use("Agg")
    from matplotlib import pyplot

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield pyplot
    pyplot.close("all")


def test_training_runs(figures, capsys):
    options = small_run(Path("runs/tiny"), 4, TINY_MODEL)
    names = execute(NOTEBOOKS / "train_and_look_inside.ipynb", OUTPUT_DIR="runs/tiny", OPTIONS=options, ROWS=12)
    printed = capsys.readouterr().out
    assert len(names["trained"]) == 2 and len(figures.get_fignums()) == 4
    assert "color: " in printed and "shape: " in printed and "itm  R@1, 5, 10" in printed


def test_search_runs(figures, pretrained, capsys):
    names = execute(NOTEBOOKS / "search_and_rerank.ipynb", MODEL=str(pretrained), SCENES=12, RERANK_K=4)
    assert {hit.key for hit in names["candidates"]} == {hit.key for hit in names["reranked"]}
    assert len(names["index"]) == 12 and len(names["ranks"]) == 12 and len(figures.get_fignums()) == 3
    assert Path("results.html").read_text(encoding="utf-8").count("<li>") == 4
    assert "12 images; not readable: none" in capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_are_kept(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    outputs = [output for cell in cells_of(path) for output in cell["outputs"]]
    assert {"image/png", "text/plain"} <= {kind for output in outputs for kind in output.get("data", ())}
    assert all(output["output_type"] != "error" for output in outputs)
    counts = [cell["execution_count"] for cell in cells_of(path)]
    assert counts == [*range(1, len(counts) + 1)], "run all cells of a new kernel, in order"
    for place in ("/tmp/", "/home/", "/root/", "/Users/"):
        assert place not in text
