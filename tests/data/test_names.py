"""Public names of `albef_hf.data`: all of them load, and old ones warn."""

import pytest
from PIL import Image

import albef_hf.data as data


def test_public_names_load():
    for name in data.__all__:
        assert getattr(data, name).__module__.startswith("albef_hf.data.")
    with pytest.raises(AttributeError, match="no attribute 'Absent'"):
        data.Absent  # noqa: B018


@pytest.mark.parametrize(("old", "new"), data._RENAMED.items())
def test_old_names_warn(old, new):
    with pytest.warns(FutureWarning, match=f"albef_hf.data.{old} is now called {new}"):
        assert getattr(data, old) is getattr(data, new)


def test_replaced_functions_warn():
    with pytest.warns(FutureWarning, match="use not is_blank"):
        assert data.says_something("a dog")
    with pytest.warns(FutureWarning, match=r"use load_image\(..., exif_transpose=True\)"):
        assert data.load_upright(Image.new("RGB", (4, 3))).size == (4, 3)
