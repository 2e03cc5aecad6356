"""`albef demo`: its options are explained, and errors say what to do."""

import subprocess
import sys

import pytest
from paths import REPOSITORY
from sharp_models import make

from albef_hf import AlbefForRetrieval
from albef_hf.demo import app
from albef_hf.demo.arguments import read_arguments
from albef_hf.demo.examples import draw_scenes, find_images

VARIABLES = (
    "ALBEF_MODEL",
    "ALBEF_QUESTION_MODEL",
    "ALBEF_CAPTION_MODEL",
    "ALBEF_INDEX",
    "ALBEF_IMAGES",
    "ALBEF_EXAMPLES",
)


@pytest.fixture(autouse=True)
def without_variables(monkeypatch, tmp_path):
    for name in (*VARIABLES, "ALBEF_PICTURES", "ALBEF_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.chdir(tmp_path)


def run_python(program: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {program}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_options_are_explained(capsys):
    with pytest.raises(SystemExit, match="0"):
        app.main(["--help"])
    shown = capsys.readouterr().out
    assert "albef demo" in shown and "by default runs/scenes" in shown and "albef index build" in shown
    assert all(name in shown for name in VARIABLES)


def test_environment_variables_replace_options(monkeypatch):
    assert read_arguments([]).model == "runs/scenes" and read_arguments([]).index is None
    monkeypatch.setenv("ALBEF_INDEX", "images.index")
    monkeypatch.setenv("ALBEF_IMAGES", "")
    assert read_arguments([]).index == "images.index" and read_arguments([]).images is None
    options = read_arguments(["--index", "other.index", "--images=images", "--port", "80"])
    assert (options.index, options.images, options.port) == ("other.index", "images", 80)


@pytest.mark.parametrize("arguments", [["--pictures", "images"], ["--pictures=images"], []])
def test_renamed_options_are_refused_with_the_new_name(monkeypatch, capsys, arguments):
    if not arguments:
        monkeypatch.setenv("ALBEF_PICTURES", "images")
    with pytest.raises(SystemExit, match="2"):
        read_arguments(arguments)
    former, current = ("--pictures", "--images") if arguments else ("variable ALBEF_PICTURES", "ALBEF_IMAGES")
    assert f"{former} was renamed to {current}" in capsys.readouterr().err


def test_a_missing_model_is_explained(tmp_path):
    pytest.importorskip("gradio")
    with pytest.raises(ValueError, match="runs/scenes does not exist. Write it with `albef pretrain --config scenes`"):
        app.main([])
    with pytest.raises((ValueError, OSError), match="nothing_here"):
        app.main(["--model", str(tmp_path / "nothing_here")])


def test_an_error_of_the_examples_ends_the_command(config, processor, tmp_path, capsys):
    pytest.importorskip("gradio")
    make(AlbefForRetrieval, config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--examples .*empty contains no image"):
        app.main(["--model", str(tmp_path / "model"), "--examples", str(tmp_path / "empty")])
    assert "no tab Question" in capsys.readouterr().out


def test_without_gradio_one_line_says_what_to_install():
    ended = run_python("sys.modules['gradio'] = None; from albef_hf.cli import main; main(['demo'])")
    assert ended.returncode == 1
    assert ended.stderr == 'error: gradio is not installed: pip install "albef_hf[demo]"\n'


def test_scenes_and_images_of_a_folder_are_examples(tmp_path):
    scenes = draw_scenes(str(tmp_path))
    assert len(scenes) == 6 and all(len(set(scene.captions.split("\n"))) == 3 for scene in scenes)
    assert all(scene.captions.split("\n")[0] == scene.text for scene in scenes)
    (tmp_path / "folder").mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / "folder" / name).touch()
    (tmp_path / "folder" / "a.txt").write_text("a dog\na cat\n")
    found = find_images(str(tmp_path / "folder"))
    assert [example.path for example in found] == [str(tmp_path / "folder" / name) for name in ("a.jpg", "b.PNG")]
    assert [(example.captions, example.text) for example in found] == [("a dog\na cat", "a dog"), ("", "")]


def test_captions_beside_images_are_read(tmp_path):
    for name, content in {
        "a": "\ufeffa dog\r\n\n!?\na cat".encode(),
        "b": "\n".join(f"caption {index}" for index in range(101)).encode(),
        "c": b" \n...\n",
    }.items():
        (tmp_path / f"{name}.jpg").touch()
        (tmp_path / f"{name}.txt").write_bytes(content)
    (tmp_path / "d.jpg").touch()
    (tmp_path / "d.txt").mkdir()
    first, second, *others = find_images(str(tmp_path))
    assert (first.captions, first.text) == ("a dog\na cat", "a dog")
    assert second.captions.split("\n") == [f"caption {index}" for index in range(100)]
    assert [(example.captions, example.text) for example in others] == [("", ""), ("", "")]
    (tmp_path / "c.txt").write_bytes("très".encode("latin-1"))
    with pytest.raises(ValueError, match="c.txt is not UTF-8"):
        find_images(str(tmp_path))


def test_missing_tabs_are_reported(capsys):
    app._report_missing(read_arguments(["--index", "images.index"]))
    question, describe = capsys.readouterr().out.splitlines()
    assert question == "no tab Question: it needs --question_model, which `albef finetune vqa` writes"
    assert "--caption_model" in describe and "albef finetune captioning" in describe
