"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["configuration_albef", "modeling_albef", "processing_albef", "data.scenes"])
def test_examples_of(name):
    failed, tried = doctest.testmod(importlib.import_module(f"albef_hf.{name}"))
    assert tried and not failed
