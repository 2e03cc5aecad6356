"""The Space: the folder `demo` with the package beside it, pushed to a local Hub by the commands of its README."""

import configparser
import subprocess
import sys
from pathlib import Path

from demo_fixtures import *  # noqa: F403
from demo_fixtures import DEMO
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from paths import REPOSITORY


def test_the_space_installs_what_the_package_and_the_demo_need():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    (gradio,) = [line for line in settings["options.extras_require"]["demo"].split() if line.startswith("gradio")]
    card = SpaceCard((DEMO / "README.md").read_text(encoding="utf-8"))
    assert Requirement(gradio).specifier.contains(card.data.sdk_version)  # the Space installs this version itself
    needed = settings["options"]["install_requires"] + settings["options.extras_require"]["search"]
    assert (DEMO / "requirements.txt").read_text(encoding="utf-8").split() == needed.split()


def test_the_space_arrives_whole(space):
    program = "import albef_hf.demo.assistant; print(albef_hf.__file__); albef_hf.data.embedded_tokenizer()"
    ended = subprocess.run([sys.executable, "-c", program], cwd=space, capture_output=True, text=True, timeout=300)
    assert Path(ended.stdout.strip()) == space / "albef_hf" / "__init__.py", ended.stderr[-3000:]
    card = SpaceCard((space / "README.md").read_text(encoding="utf-8"))
    assert card.data.sdk == "gradio" and (space / card.data.app_file).exists()
    assert len(card.data.short_description) <= 60  # the limit of the Hub


def test_the_space_starts_the_demo_of_the_package(space):
    command = [sys.executable, "app.py", "--help"]
    ended = subprocess.run(command, cwd=space, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and "usage: albef demo" in ended.stdout, ended.stderr[-3000:]
