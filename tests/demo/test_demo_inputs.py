"""What visitors may send, and how the demo refuses everything else."""

import pytest
from demo_fixtures import *  # noqa: F403
from demo_fixtures import LONG_TEXT
from PIL import Image

from albef_hf.demo.inputs import read_lines, read_uploaded_image, truncated_end


def test_the_end_that_the_model_does_not_read_is_known(processor):
    assert truncated_end(processor, "a red ball") == ""
    end = truncated_end(processor, LONG_TEXT)
    assert end.startswith("dog a red ball")
    assert len(LONG_TEXT.split()) == 29 + len(end.split())  # the model reads 30 tokens, the first one [CLS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There is no caption yet"),
        (" \n\t", "There is no caption yet"),
        ("?!", "There is no caption yet"),
        ("x" * 10_000, "at most 1,000 characters; this one has 10,000"),
        ("a\n" + "x" * 1_001, "this one has 1,001"),
        ("\n".join(map(str, range(101))), "at most 100 captions, one per line; these are 101"),
        (None, "must be a text with one caption per line, not a NoneType"),
    ],
)
def test_unusable_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_lines(text, "caption")


def test_each_line_is_read_once():
    assert read_lines(" a dog\n\n a cat \na dog\r\n", "caption") == ["a dog", "a cat"]
    assert read_lines("a \ud800 dog", "caption") == ["a ? dog"]  # JSON allows it, but the page could not show it


def test_unusable_images_are_refused(tmp_path, image):
    with pytest.raises(ValueError, match="There is no image yet"):
        read_uploaded_image(None)
    image.save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for content in (b"", b"not an image", whole[: len(whole) // 2]):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as an image"):
            read_uploaded_image(str(tmp_path / "broken.png"))
    Image.new("1", (5200, 5000)).save(tmp_path / "large.png")  # 26 megapixels in 16 kB
    with pytest.raises(ValueError, match="too large: it has 26,000,000 pixels; at most 25,000,000 are read"):
        read_uploaded_image(str(tmp_path / "large.png"))
    image.save(tmp_path / "other.ico")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_uploaded_image(str(tmp_path / "other.ico"))
    assert read_uploaded_image(str(tmp_path / "whole.png")).size == (90, 60)


def test_images_are_turned_upright(tmp_path, image):
    exif = image.getexif()
    exif[274] = 6  # orientation of a camera held upright
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_uploaded_image(str(tmp_path / "turned.jpg")).size == (60, 90)
