"""Fetches transformers' common tests, at the installed version, from its source distribution on PyPI.

The distribution has the test classes that all models share, not the folders beside them. What they import of those is
stood in for by the least that lets them load: generation and export are tested in `tests/test_transformers.py`.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

STAND_INS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "utils/__init__.py": "",
    # Some of what every configuration accepts, other than by default.
    "utils/test_configuration_utils.py": """config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
    # What would look for a downloaded copy of a file on the Hub; no test of ours has one.
    "../fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def fetch(folder: Path) -> Path:
    """Put the package `transformers_tests` into a folder, of which there is one for each version, and return that."""
    folder = folder / transformers.__version__
    if (folder / "complete").exists():
        return folder
    package = folder / "transformers_tests"
    package.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as downloads:
        requirement = f"transformers=={transformers.__version__}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*pip, "--dest", downloads, requirement], check=True)
        with tarfile.open(next(Path(downloads).glob("*.tar.gz"))) as archive:
            for member in archive.getmembers():
                name = Path(member.name)
                if name.match("transformers-*/tests/*.py"):
                    (package / name.name).write_bytes(archive.extractfile(member).read())
    for name, text in STAND_INS.items():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(text, encoding="utf-8")
    (folder / "complete").touch()
    return folder


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
