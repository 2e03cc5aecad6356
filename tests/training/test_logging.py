"""The log, its trackers and curves."""

import json

import pytest
from accelerate import Accelerator
from full_disk import file_size_limit
from PIL import Image
from small_pretraining import records_of

from albef_hf.training.curves import _label, _panels, plot_curves
from albef_hf.training.guards import MATCHING_PRIOR
from albef_hf.training.logging import RunLog, installed_trackers


def test_a_tracker_that_does_not_start_is_an_error_with_a_remedy(pretrain, monkeypatch):
    def fail(self, *arguments, **settings):
        raise ConnectionError("no key")

    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    with pytest.raises(ValueError, match=r"report_to \(tensorboard\) did not start: no key. Log in"):
        pretrain()


def test_records_are_written_when_there_is_room_again(tmp_path, capsys):
    log = RunLog(Accelerator(cpu=True), tmp_path, 3, 1)
    log.begin()
    log.write(1, {"loss": 1.0})
    whole = (tmp_path / "log.jsonl").read_bytes()
    with file_size_limit(len(whole) + 5):  # which leaves a part of the next line
        log.write(2, {"loss": 2.0})
        log.write(3, {"loss": 3.0})
    assert (tmp_path / "log.jsonl").read_bytes() == whole
    log.write(4, {"loss": 4.0})
    assert [record["loss"] for record in records_of(tmp_path)] == [1, 2, 3, 4] and not log.writer.failed
    log.begin(records=2)
    assert [record["loss"] for record in records_of(tmp_path)] == [1, 2]


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("albef_hf.training.logging.get_available_trackers", lambda: [])
    assert installed_trackers(["tensorboard"]) == []
    with pytest.raises(ValueError, match="pip install wandb"):
        installed_trackers(["wandb"])


def test_the_panel_of_the_evaluation_shows_what_chooses_the_best_and_no_counts():
    record = {
        "itm_r_mean": 5.0,
        "itm_text_r1": 4.0,
        "itm_text_r_mean": 4.5,
        "rows_left_out": 3,
        "rows/image_missing": 3,
    }
    panels = _panels([{"step": 1, "seconds": 1.0, **record}])
    assert panels["evaluation (%)"] == ["itm_r_mean", "itm_text_r_mean"]


def test_legends_name_losses_and_recalls_as_the_paper_does():
    names = ["loss_mlm", "itc_text_r1", "itm_image_r10", "per_label/neutral", "exchanged_images_accuracy"]
    assert [_label(name) for name in names] == ["MLM", "ITC, R@1", "ITM, R@10", "neutral", "exchanged images accuracy"]


def test_a_panel_of_kinds_says_how_many_it_shows():
    panels = _panels([{"step": 1, **{f"per_label/{index}": 1.0 for index in range(12)}, "f1/red": 2.0}])
    assert len(panels["per label by kind, 8 of 12 (%)"]) == 8 and panels["f1 by kind (%)"] == ["f1/red"]


def test_negative_values_are_drawn(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    records = [{"step": 0, "r2": -40.0}]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: [path.touch(), drawn.extend(figure.axes)])
    plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert drawn[0].get_ylim()[0] < -40 and drawn[0].get_xlim()[1] > 0


def test_curves_have_a_panel_for_everything_in_the_log(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    records = [
        {"step": 1, "loss": 2.0, "loss_itc": 1.4, "loss_itm": 0.6, "gradient_norm": 1.0, "learning_rate": 0.1},
        {"step": 1, "seconds": 0.2, "accuracy": 40.0, "accuracy/yes": 30.0, "rows_left_out": 1},
    ]
    panels = {title: names for title, names in _panels(records).items() if names}
    assert panels == {
        "losses (nats)": ["loss_itc", "loss_itm"],
        "ITM: loss (nats)": ["loss_itm"],
        "gradient (norm)": ["gradient_norm"],
        "AdamW (learning rate)": ["learning_rate"],
        "evaluation (%)": ["accuracy"],
        "accuracy by kind (%)": ["accuracy/yes"],
    }
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 800
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **_: [path.touch(), drawn.extend(figure.axes)])
        plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    priors = [axes.get_title() for axes in drawn for line in axes.lines if line.get_ydata()[0] == MATCHING_PRIOR]
    assert priors == ["ITM: loss"]
    assert [axes.get_ylabel() for axes in drawn[:3]] == ["nats", "nats", "norm"]
    assert [text.get_text() for text in drawn[0].get_legend().get_texts()] == ["ITC", "ITM"]
    (tmp_path / "log.jsonl").write_text("")
    plot_curves(tmp_path / "log.jsonl", tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()
