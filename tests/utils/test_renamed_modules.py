"""Modules under the names of the last release."""

import importlib
import subprocess
import sys
import warnings

import pytest

import albef_hf
from albef_hf.utils.renamed_modules import RENAMED_COMMANDS, RENAMED_MODULES

NAMES = {
    "albef_hf.code_renewal": "renew_code",
    "albef_hf.convert": "revert_checkpoint",
    "albef_hf.distributed": "gather_with_gradient",
    "albef_hf.explain": "matching_heatmaps",
    "albef_hf.ranking": "score_all",
    "albef_hf.retrieval": "ImageIndex",
}


@pytest.mark.parametrize("name", RENAMED_MODULES)
def test_a_former_module_warns_and_has_what_it_had(name):
    sys.modules.pop(name, None)
    with pytest.warns(FutureWarning, match=f"{name} is now {RENAMED_MODULES[name][0]}"):
        module = importlib.import_module(name)
    present = [vars(importlib.import_module(new)).get(NAMES[name]) for new in RENAMED_MODULES[name]]
    assert getattr(module, NAMES[name]) in present
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_other_modules_are_not_found():
    assert albef_hf.__version__
    with warnings.catch_warnings(), pytest.raises(ModuleNotFoundError):
        warnings.simplefilter("error")
        importlib.import_module("albef_hf.nothing")


@pytest.mark.parametrize("name", RENAMED_COMMANDS)
def test_a_former_command_names_the_present_one(name):
    ended = subprocess.run([sys.executable, "-m", name, "--help"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: python -m {name} is now {RENAMED_COMMANDS[name]}")
