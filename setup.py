"""Build the package, whose settings are in `setup.cfg`; make the links of its README absolute, which PyPI needs."""

import configparser
import re
from pathlib import Path

from setuptools import setup

FOLDER = Path(__file__).parent


def with_absolute_links(text: str, repository: str) -> str:
    """Return Markdown whose links to files, and images, are those of a repository on GitHub."""
    text = re.sub(r"(!\[[^\]]*\]\()(?!https:)", rf"\g<1>{repository}/raw/HEAD/", text)
    return re.sub(r"((?<!!)\[[^\[\]]*\]\()(?!https:|#)", rf"\g<1>{repository}/blob/HEAD/", text)


if __name__ == "__main__":
    settings = configparser.ConfigParser()
    settings.read(FOLDER / "setup.cfg")
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    setup(long_description=with_absolute_links(readme, settings["metadata"]["url"]))
