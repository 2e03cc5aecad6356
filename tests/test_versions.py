"""Versions of other libraries: setup.cfg, constraints.txt and model cards agree."""

import configparser

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from paths import REPOSITORY

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


def test_pins_are_of_no_machine():
    assert not [name for name, version in pins().items() if "+" in version or name.startswith("nvidia")]
