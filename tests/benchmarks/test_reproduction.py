"""The paper's Table 1 in the small: what its rows leave out, and the script from the first run to the table."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from paths import REPOSITORY
from small_pretraining import TINY_MODEL

from albef_hf import AlbefConfig, AlbefForPreTraining, MomentumTeacher

REPRODUCTION = REPOSITORY / "benchmarks" / "reproduction"


@pytest.fixture(scope="module")
def objectives():
    sys.path.append(str(REPRODUCTION))
    import objectives

    yield objectives
    sys.path.remove(str(REPRODUCTION))


@pytest.fixture(scope="module")
def report(objectives):
    import report

    return report


@pytest.fixture(scope="module")
def intervals(report):
    import intervals

    return intervals


def make(head: type[AlbefForPreTraining]) -> AlbefForPreTraining:
    torch.manual_seed(0)
    return head(AlbefConfig(**TINY_MODEL))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 1000, (6, 8), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, 2] = ids[:, 2]
    return {
        "input_ids": ids,
        "mlm_input_ids": ids.index_fill(1, torch.tensor([2]), 103),
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pixel_values": torch.randn(6, 3, 32, 32, generator=generator),
    }


def test_all_ways_begin_with_the_same_weights(objectives):
    full = make(AlbefForPreTraining).state_dict()
    for way in objectives.PRETRAININGS.values():
        weights = make(way.head).state_dict()
        assert weights.keys() == full.keys()
        assert all(torch.equal(weights[name], full[name]) for name in full)


def test_without_contrast_only_matching_and_masked_language_teach(objectives, batch):
    student = make(objectives.WithoutContrast)
    outputs = student(**batch, teacher_outputs=MomentumTeacher(student, queue_size=4)(**batch), alpha=0.4)
    torch.testing.assert_close(outputs.loss, outputs.loss_itm + outputs.loss_mlm)
    outputs.loss.backward()
    assert all(weight.grad is None for weight in student.contrastive_head.parameters())
    assert student.albef.vision_model.norm.weight.grad.abs().sum() > 0
    assert outputs.info_nce > 0  # it is still told how well pairs are aligned


def test_negatives_are_hard_only_where_the_paper_says_so(objectives):
    assert {name: way.settings.get("hardness_strength", 1) for name, way in objectives.PRETRAININGS.items()} == {
        **dict.fromkeys(("without_contrast", "random_negatives"), 0),
        **dict.fromkeys(("hard_negatives", "distilled_contrast", "full"), 1),
    }


def test_the_contrast_alone_is_distilled(objectives, batch):
    student = make(objectives.PlainLanguage)
    teacher = MomentumTeacher(student, queue_size=4).eval()
    targets = teacher(**batch)
    assert targets.logits is None
    full = MomentumTeacher(make(AlbefForPreTraining), queue_size=4).eval()(**batch)
    torch.testing.assert_close(targets.image_embeds, full.image_embeds)
    torch.testing.assert_close(targets.text_embeds, full.text_embeds)
    student.eval()
    plain, soft = (student(**batch, teacher_outputs=targets, alpha=alpha) for alpha in (0.0, 0.4))
    assert plain.loss_mlm == soft.loss_mlm
    assert plain.loss_itc != soft.loss_itc


def test_what_is_saved_is_an_ordinary_model(objectives, batch, tmp_path):
    student = make(objectives.WithoutContrast).eval()
    before = torch.get_rng_state()
    student.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["AlbefForPreTraining"]
    again = AlbefForPreTraining.from_pretrained(tmp_path).eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    torch.testing.assert_close(again(**inputs).itm_logits, student(**inputs).itm_logits)


def lines(**metrics: dict[int, float]) -> str:
    """A result file: the accuracy in entailment of each seed, by way to pretrain."""
    return "".join(
        json.dumps(
            {
                "pretraining": name,
                "noise": 0.4,
                "seed": seed,
                "task": "entailment",
                "distilled": False,
                "cpu_seconds": 36.0,
                "metrics": {"accuracy": accuracy},
            }
        )
        + "\n"
        for name, by_seed in metrics.items()
        for seed, accuracy in by_seed.items()
    )


def test_the_report_pairs_by_seed(report, tmp_path, monkeypatch):
    results = tmp_path / "results.jsonl"
    results.write_text(lines(without_contrast={1: 50, 2: 60, 3: 70}, random_negatives={3: 73, 2: 62, 1: 51, 4: 10}))
    values, hours = report.read_results(results)
    assert hours == pytest.approx(7 * 36 / 3600)
    # 50, 60, 70: standard deviation 10, half width 4.303 * 10 / sqrt(3); differences 1, 2, 3 likewise
    shown = report.shown_columns(values[0.4])
    assert [(moment, [column.title for column in some]) for moment, some in shown.items()] == [
        ("after fine-tuning", ["SNLI-VE"])
    ]
    (columns,) = shown.values()
    assert "| MLM + ITM | 60.0 ± 24.8 | 3 |" in report.table(values[0.4], columns)
    # The fourth seed has no partner.
    assert "| ITC + MLM + ITM | MLM + ITM | +2.0 ± 2.5 |" in report.differences(values[0.4], columns)
    results.write_text(lines(without_contrast={1: 50, 2: 60, 3: 70}, random_negatives={1: 53, 2: 63, 3: 73.1}))
    assert "**+3.0 ± 0.1**" in report.differences(report.read_results(results)[0][0.4], columns)
    drawn = []
    monkeypatch.setattr(report.Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes[0].lines))
    report.plot(values, tmp_path / "plot.png")
    seeds, mean, *others = [[float(y) for y in line.get_ydata()] for line in drawn]
    assert (seeds, mean) == ([50, 60, 70], [60]) and others == [[73, 62, 51, 10], [49]]


def test_shares_of_noise_are_averaged_seed_by_seed(report, tmp_path):
    results = tmp_path / "results.jsonl"
    noisy = lines(full={1: 50, 2: 60, 3: 70}, hard_negatives={1: 40})
    results.write_text(noisy + lines(full={1: 70, 2: 70, 4: 10}).replace('"noise": 0.4', '"noise": 0.0'))
    pooled = report.pool(report.read_results(results)[0])
    assert [*pooled.values()] == [{1: 60, 2: 65}], "only what both shares have"
    vqa = lines(full={1: 5}).replace("entailment", "vqa")
    results.write_text(results.read_text() + vqa)
    assert report.pool(report.read_results(results)[0]) == pooled, "there is one share of it"
    results.write_text(results.read_text() + (noisy + vqa).replace('"noise": 0.4', '"noise": 0.2'))
    again = report.pool(report.read_results(results)[0])
    assert {column.title: by_seed for (_, column), by_seed in again.items()} == {
        "SNLI-VE": {1: pytest.approx(170 / 3), 2: pytest.approx(190 / 3)},
        "VQA": {1: 5},
    }


def test_the_report_tells_of_distillation_in_all_and_of_reranking(report):
    column, by_contrast, reranked = report.COLUMNS[8], report.CONTRAST[1], report.RERANKED[1]
    cells = {(report.ROWS[2], column): {1: 50, 2: 51}, (report.ROWS[4], column): {1: 52, 2: 53.5}}
    assert f"| {report.ROWS[4].title} | {report.ROWS[2].title} | +2.2 ± 3.2 |" in report.differences(cells, [column])
    cells = {(report.ROWS[1], by_contrast): {1: 50, 2: 50, 3: 50}, (report.ROWS[1], reranked): {1: 52, 2: 53, 3: 54}}
    assert f"| {report.ROWS[1].title} |  | **+3.0 ± 2.5** |" in report.gains(cells, report.CONTRAST, report.RERANKED)


def test_contrast_is_not_judged_where_there_was_none(report, tmp_path):
    line = {"noise": 0.0, "seed": 1, "task": "pretraining", "distilled": False, "cpu_seconds": 1.0}
    metrics = {name: 9.0 for column in report.MEASURED if column.task == "pretraining" for name in column.metrics}
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(line | {"pretraining": "without_contrast", "metrics": metrics}))
    cells = report.read_results(results)[0][0.0]
    assert [column.title for _, column in cells] == ["TR, ITM alone", "IR, ITM alone"] * 2
    assert {column for _, column in cells} == {*report.EVERY_PAIR, *report.EVERY_PAIR_BY_LOGIT}


def test_lines_of_an_earlier_version_are_refused(report, tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text(lines(full={1: 50}) + lines(full={2: 50}).replace('"accuracy"', '"exactness"'))
    with pytest.raises(SystemExit, match="results.jsonl has lines of an earlier version: take them out"):
        report.read_results(results)


def test_one_value_has_no_interval(intervals):
    mean, half = intervals.interval([3.0])
    assert mean == 3 and math.isnan(half)


def test_students_t(intervals):
    """The table against the density, integrated."""
    for freedom, bound in enumerate(intervals.STUDENT, start=1):
        x = torch.linspace(-bound, bound, 200_001, dtype=torch.float64)
        density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        factor = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
        assert factor * torch.trapezoid(density, x).item() == pytest.approx(0.95, abs=2e-4)


@pytest.fixture
def reproduce(objectives, no_curves, tmp_path):
    """Run the script in this process, or in one for each job, with the tiny recipes; return what it prints."""
    import reproduce

    def run(capsys, *arguments: str) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        given = ["--recipe", str(REPRODUCTION / "smoke"), "--seeds", "1", "--noise", "0.4"]
        reproduce.main([*given, "--output_dir", str(tmp_path / "out"), *arguments])
        return capsys.readouterr().out

    return run


def what_matching_knows(model: Path, monkeypatch, capsys) -> None:
    """The table of a model, and of a matching that knows everything, by the log-odds alone."""
    import negatives

    monkeypatch.setattr(sys, "argv", ["negatives.py", "--model", str(model), "--pictures", "8"])
    negatives.main()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 5 and shown[2].startswith("| contrast, cosine |") and shown[3].count(" ± ") == 2
    knowing = torch.tensor([[-1.0, 2.0], [2.0, 2.0], [0.0, 2.5]])  # the right one, at random, hard
    monkeypatch.setattr(negatives, "match", lambda *_: knowing)
    negatives.main()
    assert capsys.readouterr().out.splitlines()[2:] == [
        shown[2],
        "| matching, log-odds | 100.0 ± 0.0 | 100.0 ± 0.0 |",
        "| matching, logit of a match | 50.0 ± 0.0 | 0.0 ± 0.0 |",
    ]
    assert all((negatives.random_texts(9) != torch.arange(9)).all() for _ in range(20))


def test_all_of_it_runs_resumes_and_reports(reproduce, report, tmp_path, capsys, monkeypatch):
    """First a pretraining, then what is missing of a table, and nothing twice."""
    results = tmp_path / "out" / "results.jsonl"
    said = reproduce(capsys, "--pretrainings", "full", "--tasks", "--jobs", "2")
    first = results.read_text()
    metrics = json.loads(first)["metrics"]
    ways = {name.removesuffix(f"_{way}_r{k}") for name in metrics for way in ("text", "image") for k in (1, 5, 10)}
    ways -= {*metrics}
    assert ways == {
        *("itc", "reranked", "itm", "reranked_by_logit", "itm_by_logit"),
        *("itc_of_many", "reranked_of_many"),
    }
    assert len(metrics) == 42 and metrics["itc_of_many_image_r10"] < metrics["itc_image_r10"] == 100
    for by_logit in ("", "_by_logit"):  # of ten images, 16 candidates are all
        for k in (1, 5, 10):
            assert metrics[f"itm{by_logit}_image_r{k}"] == metrics[f"reranked{by_logit}_image_r{k}"]
    assert "1 of 1 runs are to be done" in said and first.count("\n") == 1
    more = ["--pretrainings", "without_contrast", "full", "--tasks", "retrieval"]
    candidates, script = [], sys.modules["reproduce"]
    kept = script.RetrievalScores
    monkeypatch.setattr(
        script, "RetrievalScores", lambda *ways: candidates.append([w.logits.shape[1] for w in ways]) or kept(*ways)
    )
    assert "4 of 5 runs are to be done" in reproduce(capsys, *more)
    assert candidates == [[16, 10]], "the two steps, of the one pretraining that was left"
    assert results.read_text().startswith(first)
    done = [json.loads(line) for line in results.read_text().splitlines()]
    assert sorted((line["pretraining"], line["task"], line["distilled"]) for line in done) == [
        ("full", "pretraining", False),
        ("full", "retrieval", False),
        ("full", "retrieval", True),
        ("without_contrast", "pretraining", False),
        ("without_contrast", "retrieval", False),
    ]
    assert "0 of 5 runs are to be done" in reproduce(capsys, *more)
    lost = next(line for line in done if line["pretraining"] == "without_contrast")  # after its last checkpoint
    results.write_text("".join(json.dumps(line) + "\n" for line in done if line is not lost))
    assert "1 of 5 runs are to be done" in reproduce(capsys, *more)
    again = json.loads(results.read_text().splitlines()[-1])
    assert {**again, "cpu_seconds": lost["cpu_seconds"]} == lost
    log = tmp_path / "out" / "logs" / "without_contrast-noise0.4-seed1-pretraining.txt"
    assert "resumed from" in log.read_text()
    shutil.rmtree(tmp_path / "out" / "without_contrast-noise0.4-seed1")  # its fine-tuning needs it again
    results.write_text("".join(json.dumps(line) + "\n" for line in done if line["task"] == "pretraining"))
    reproduce(capsys, "--pretrainings", "without_contrast", "--tasks", "retrieval")
    again = [json.loads(line) for line in results.read_text().splitlines()]
    before = next(line for line in done if line["pretraining"] == "without_contrast" and line["task"] == "retrieval")
    assert len(again) == 3 and again[-1]["metrics"] == before["metrics"]
    (tmp_path / "out" / "recipe" / "pretraining.yaml").write_text("max_steps: 7")
    with pytest.raises(SystemExit):
        reproduce(capsys, *more)
    assert "another pretraining.yaml" in capsys.readouterr().err
    results.write_text("".join(json.dumps(line) + "\n" for line in done))
    what_matching_knows(tmp_path / "out" / "full-noise0.4-seed1", monkeypatch, capsys)
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(results)])
    report.main()
    said = capsys.readouterr().out
    assert "| Full + MoD downstream |" in said
    assert [line for line in said.splitlines() if line.startswith("#")] == [
        f"### 40% noise, {part}"
        for part in (
            "before fine-tuning",
            "after fine-tuning",
            "what reranking adds to contrast",
            "what the log-odds of a match add to its logit",
        )
    ], "of the one share that there is"
    assert results.with_suffix(".png").exists()
