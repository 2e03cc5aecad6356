"""Tests of the command line of image search."""

import os
import re
from pathlib import Path

import pytest
from search_fixtures import *  # noqa: F403
from search_fixtures import flip, noise

from albef_hf.search import commands
from albef_hf.search.cli import build_search_parser
from albef_hf.search.index import ImageIndex


def test_the_commands(command, album, tmp_path, monkeypatch):
    assert "12 images in images.index; unreadable: image_broken 1" in command(
        "index", "build", album, "--model", "../model"
    )
    table = command("search", "two dogs in the snow", "--top_k", 3, "--html", "page.html").splitlines()
    assert table[0].split() == ["score", "match", "cosine", "image"] and table[-1] == "The results are in page.html."
    assert len(table) == 5 and all(
        re.fullmatch(r" *[+-]\d+\.\d{3} +0\.\d{4} [+-]\d\.\d{4}  \S+", row) for row in table[1:4]
    )
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("<li>") == 3 and page.count("data:image/jpeg;base64,") == 3 * (1 + 3)  # "two dogs snow"
    assert "<h1>two dogs in the snow</h1>" in page and "http" not in page
    score, match, cosine = table[1].split()[:3]
    scores = {"score": score, "match": f"{float(match):.1%}", "cosine (ITC)": f"{float(cosine):+.3f}"}
    shown = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page.split("<li>")[1]))
    assert shown.keys() == scores.keys() and shown["score"] == score
    assert all(abs(float(shown[name].rstrip("%")) - float(scores[name].rstrip("%"))) < 0.11 for name in scores)
    told = "Match: the probability, not calibrated</p>"
    assert f"of 12 images, found with model. Score: log-odds of a match (ITM). {told}" in page
    command("search", "two dogs in the snow", "--top_k", 3, "--html", "page.html", "--all_words")
    assert Path("page.html").read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 3 * (1 + 5)
    command("search", "red", "--itc-weight", 0.5, "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert f"Score: log-odds of a match (ITM) + 0.5 × cosine (ITC). {told}" in page
    command("search", "red", "--rerank_k", 0, "--html", "page.html")
    assert "Score: cosine (ITC)</p>" in Path("page.html").read_text(encoding="utf-8")

    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    table = command("search", "--image", album / "00.PNG", "--open").splitlines()
    assert table[1].split() == ["+1.000", "-", "+1.0000", "00.PNG"] and opened[0].startswith("file:///")

    noise(90).save(album / "new.png")
    assert "not up to date: 1 new (first new.png)" in (command("search", "red") and command.errors)
    assert command("index", "add", album / "new.png").startswith("1 added. 13 images in")
    assert "not up to date" not in (command("search", "red") and command.errors)
    assert command("index", "remove", "new.png", "00.PNG").startswith("11 images in")
    printed = command("index", "info")
    assert "changes: none" in printed and "damage: none" in printed and f"source: {album}" in printed
    flip(next(Path("images.index").glob("features_*")))
    assert "SHA-256" in command("index", "info")


def test_features_and_queries_may_have_other_precisions(command, album, model, processor, search_warnings):
    command("index", "build", album, "--model", "../model")
    assert "dtype: float32" in command("index", "info")
    tables = [command("search", "two dogs in the snow", *options) for options in ([], ["--dtype", "bfloat16"])]
    rows, expected = ([line.split() for line in table.splitlines()[1:]] for table in reversed(tables))
    assert [row[3] for row in rows][:3] == [row[3] for row in expected][:3]
    assert "computed in float32 and those of queries in bfloat16" in search_warnings[-1]
    with pytest.raises(SystemExit, match="computed in float32, but the model is in bfloat16: load it in float32"):
        command("index", "build", album, "--model", "../model", "--dtype", "bfloat16")

    command("index", "build", album, "--model", "../model", "--index", "half", "--dtype", "bfloat16")
    assert "dtype: bfloat16" in command("index", "info", "--index", "half")
    noise(90).save(album / "new.png")
    assert "1 added" in command("index", "add", album / "new.png", "--index", "half")
    assert "13 images" in command("index", "build", album, "--model", "../model", "--index", "half")
    said = len(search_warnings)
    command("search", "red", "--index", "half")
    assert len(search_warnings) == said
    index = ImageIndex.load("half", model, processor)  # float32 weights contain the bfloat16 ones
    assert "computed in bfloat16 and those of queries in float32" in search_warnings[-1]
    with pytest.raises(ValueError, match="computed in bfloat16, but the model is in float32"):
        index.remove(["new.png"])


def test_errors_are_printed(command):
    for words, reason in (
        (["search", "red"], "contains no index. Build one"),
        (["search"], "Give a text to search for, or an image"),
        (["search", "red", "--image", "a.png"], "Give a text to search for, or an image"),
        (["search", "red", "--all_words"], "--all_words is for the page of a text"),
        (
            ["search", "--image", "a.png", "--html", "page.html", "--all_words"],
            "--all_words is for the page of a text",
        ),
        (["index", "build", "nowhere", "--model", "../model"], "is not a folder"),
        (["index", "build", ".", "--model", "../model"], "There is no image in"),
        (["index", "build", ".", "--model", "../nowhere"], "nowhere"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{reason}"):
            command(*words)


def test_help(run, capsys):
    shown = {}
    for words in (["index"], *(["index", name] for name in ("build", "add", "remove", "info")), ["search"]):
        with pytest.raises(SystemExit, match="0"):
            run(*words, "--help")
        shown[" ".join(words)] = " ".join(capsys.readouterr().out.split())
    assert "albef index build FOLDER --model you/albef" in shown["index"]
    assert "Find indexed images by a text or by an image." in shown["search"] and "cosine (128)" in shown["search"]
    assert not [name for name, text in shown.items() if "None" in text]


def test_arguments_are_checked_before_the_model_is_loaded(command, album, monkeypatch):
    command("index", "build", album, "--model", "../model")
    monkeypatch.setattr(commands, "load_model", lambda *arguments: pytest.fail("the model is loaded"))
    for words, reason in (
        (["search", "red", "--top_k", 0], "top_k is 0: it must be an integer of at least 1"),
        (["search", "red", "--rerank_k", -1], "rerank_k is -1: it must be an integer of at least 0"),
        (["search", "red", "--itc-weight", "nan"], "itc_weight is nan: give a finite number"),
        (["search", "?!"], "has no word"),
        (["search", "--image", "nowhere.png"], "image_missing: nowhere.png"),
        (["search", "red", "--html", "pages/page.html"], "There is no folder pages. Give --html a file"),
        (["search", "red", "--html", album], "is a folder. Give --html a file"),
        (["index", "build", album, "--model", "../model", "--batch-size", 0], "batch_size is 0"),
        (["index", "build", "nowhere", "--model", "../model"], "nowhere is not a folder"),
        (["index", "add", album, "--batch-size", 0], "batch_size is 0"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{reason}"):
            command(*words)


@pytest.mark.parametrize(
    ("words", "resumes"), [(["index", "build", ".", "--model", "a"], True), (["search", "red"], False)]
)
def test_only_an_interrupted_build_can_be_resumed(run, monkeypatch, words, resumes):
    def interrupted(options):
        raise KeyboardInterrupt

    for name in ("build", "search"):
        monkeypatch.setattr(commands, name, interrupted)
    with pytest.raises(SystemExit) as raised:
        run(*words)
    assert raised.value.code == ("interrupted; repeat the command to resume" if resumes else "interrupted")


@pytest.mark.parametrize(
    ("words", "renamed"),
    [
        (["search", "red", "--rerank", "5"], "--rerank has been renamed: use --rerank_k"),
        (["search", "red", "-k", "5"], "-k has been renamed: use --top_k"),
        (["search", "--picture", "a.png"], "--picture has been renamed: use --image"),
        (
            ["index", "build", ".", "--model", "a", "--factory", "Flat"],
            "--factory has been renamed: use --index_factory",
        ),
        (["search", "red", "--rera", "5"], "unrecognized arguments: --rera 5"),
    ],
)
def test_renamed_options_are_refused(run, capsys, words, renamed):
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    assert renamed in capsys.readouterr().err


def test_hyphens_are_accepted():
    options = build_search_parser().parse_args(["red", "--rerank-k", "5", "--itc-weight", "1", "--top-k", "3"])
    assert (options.rerank_k, options.itc_weight, options.top_k) == (5, 1.0, 3)


def test_an_index_at_the_former_default_place_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build_search_parser().parse_args(["red"]).index == Path("images.index")
    Path("pictures.index").mkdir()
    assert build_search_parser().parse_args(["red"]).index == Path("pictures.index")
    Path("images.index").mkdir()
    assert build_search_parser().parse_args(["red"]).index == Path("images.index")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_reported_for_the_page(command, album):
    command("index", "build", album, "--model", "../model")
    Path("page.html").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="error: page.html could not be written: .*No space left on device"):
        command("search", "red", "--html", "page.html")
