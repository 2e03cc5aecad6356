"""The wheel holds everything that the commands need, wherever they are started."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from paths import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel and unpack it, as an installation does."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, in which the build may leave its files
    shutil.copytree(REPOSITORY / "albef_hf", source / "albef_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_everything_but_tests_is_in_the_wheel(installed):
    names = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    kept = [path for path in (REPOSITORY / "albef_hf").rglob("*") if path.suffix in {".py", ".yaml", ".txt", ".typed"}]
    needed = {str(path.relative_to(REPOSITORY)) for path in kept if "__pycache__" not in path.parts}
    assert needed | {"albef_hf/model_card_template.md"} <= names
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "albef = albef_hf.cli:main" in entry_points.read_text()
    assert not {name.split("/")[0] for name in names} - {"albef_hf", entry_points.parent.name}


@pytest.mark.parametrize(
    "arguments", [[], ["pretrain"], ["finetune", "vqa"], ["search"]], ids=lambda value: "_".join(value)
)
def test_help_works_from_any_folder(installed, arguments, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "albef_hf", *arguments, "--help"]
    shown = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert shown.startswith(" ".join(["usage: albef", *arguments]))
    if arguments and arguments[0] in ("pretrain", "finetune"):
        assert "scenes" in shown.split("--config", 2)[2][:400]  # a recipe, found by name
