"""Versions of other libraries: setup.cfg, constraints.txt and model cards agree."""

import configparser

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from paths import REPOSITORY

import albef_hf
from albef_hf.compatibility_albef import TESTED_VERSIONS


def requirements() -> dict[str, Requirement]:
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    lines = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    found = [Requirement(line) for text in lines for line in text.split("\n") if line]
    return {
        canonicalize_name(requirement.name): requirement for requirement in found if requirement.name != "albef_hf"
    }


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("name", requirements())
def test_every_requirement_has_a_lower_bound_and_a_tested_version(name):
    specifier = requirements()[name].specifier
    assert ">=" in {bound.operator for bound in specifier}
    assert Version(pins()[name]) in specifier


def test_cards_state_the_versions_of_transformers_that_are_tested():
    oldest, newest = TESTED_VERSIONS
    bounds = {bound.operator: bound.version for bound in requirements()["transformers"].specifier}
    assert Version(oldest) == Version(bounds[">="]) and newest == pins()["transformers"]


def test_the_hooks_have_the_tested_versions():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    named = [Requirement(name) for hook in hooks for name in hook["additional_dependencies"]]
    assert {name.name for name in named} == {"ruff", "typos"}
    assert [name for name in named if name.specifier != f"=={pins()[name.name]}"] == []


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == albef_hf.__version__


def test_pins_are_of_no_machine():
    assert not [name for name, version in pins().items() if "+" in version or name.startswith("nvidia")]
