"""The distributions hold everything that the commands need, wherever they are started, and what PyPI shows."""

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from paths import REPOSITORY

BUILT_FROM = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Build the source distribution and unpack it."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "copy"  # in which the build may leave its files
    for name in ("albef_hf", "tests"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILT_FROM:
        shutil.copy(REPOSITORY / name, copy)
    command = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('..')"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Path:
    """Build the wheel from the source distribution and unpack it, as an installation does."""
    folder = tmp_path_factory.mktemp("wheel")
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


def test_the_source_distribution_is_the_package_and_what_builds_it(source):
    names = {path.name for path in source.iterdir()} - {"build"}  # of the wheel
    assert names == {"albef_hf", "albef_hf.egg-info", "PKG-INFO", *BUILT_FROM}


def test_links_on_pypi_are_those_of_the_readme(installed):
    (path,) = installed.glob("*.dist-info/METADATA")
    metadata = email.message_from_string(path.read_text(encoding="utf-8"))
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    repository = settings["metadata"]["url"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"Documentation", "Changelog", "Issues"} <= {line.split(",")[0] for line in metadata.get_all("Project-URL")}
    link = re.compile(r"(!?)\[[^\[\]]*\]\(([^)]*)\)")
    links = link.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert {("!", "docs/figures/architecture.svg"), ("", "docs/guides/search.md"), ("", "CONTRIBUTING.md")} <= {*links}
    for (is_image, target), (_, shown) in zip(links, link.findall(metadata.get_payload()), strict=True):
        is_absolute = target.startswith(("https://", "#"))  # PyPI has the anchors of the page
        kind = "raw" if is_image else "blob"
        assert shown == (target if is_absolute else f"{repository}/{kind}/HEAD/{target}")


@pytest.mark.parametrize(
    "arguments",
    [[], ["pretrain"], ["finetune", "vqa"], ["evaluate", "zero_shot"], ["search"], ["export"]],
    ids=lambda value: "_".join(value),
)
def test_help_works_from_any_folder(installed, arguments, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "albef_hf", *arguments, "--help"]
    shown = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert shown.startswith(" ".join(["usage: albef", *arguments]))
    if arguments and arguments[0] in ("pretrain", "finetune"):
        assert "scenes" in shown.split("--config", 2)[2][:400]  # a recipe, found by name


def test_the_image_and_the_job_install_what_there_is():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    header = re.search(r"# /// script\n(.*?)# ///", (REPOSITORY / "examples/pretrain_job.py").read_text(), re.DOTALL)[
        1
    ]
    job = tomllib.loads(header.replace("# ", ""))
    assert job["requires-python"] == settings["options"]["python_requires"]
    for command in (*job["dependencies"], *re.findall(r"^RUN (.*)", dockerfile, re.MULTILINE)):
        (extras,) = re.findall(r"(?:albef_hf|\.)\[([\w,-]+)\]", command)
        assert {*extras.split(",")} <= {*settings["options.extras_require"]}
    development = {"mteb", "test", "style", "demo-test", "docs", "common"}
    assert {*extras.split(",")} == {
        *settings["options.extras_require"]
    } - development  # of the image, which comes last
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE) for name in line.split()}
    not_ignored = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().split() if line.startswith("!")}
    assert copied == not_ignored and all((REPOSITORY / name).exists() for name in copied)
