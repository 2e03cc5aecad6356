"""Renewing replaces the code of models that were pushed by older releases, and nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from paths import FIXTURES, REPOSITORY
from test_hub import AUTO_MAP, CODE, files_of

from albef_hf import AlbefForQuestionAnswering, AlbefForRetrieval, AlbefModel
from albef_hf.compatibility_albef import CACHE_NAME, TESTED_VERSIONS, VERSIONS
from albef_hf.conversion.code_renewal import SHIPPED_CODE, renew_code

FIRST_CODE = FIXTURES / "first_hub_code.tar.xz"
# Without the package: prints the number of generated answers, or fails.
ANSWER = """
import sys
sys.modules["albef_hf"] = None
import torch
from transformers import AutoModelForVisualQuestionAnswering
model = AutoModelForVisualQuestionAnswering.from_pretrained("owner/old", trust_remote_code=True)
inputs = {"input_ids": torch.tensor([[101, 2054]]), "pixel_values": torch.zeros(1, 3, 32, 32)}
print(model.generate(**inputs, max_new_tokens=3).shape[0])
"""
RENEW = """
from albef_hf.cli import main
for name in ("owner/old", "owner/old", "owner/absent", "off"):
    if name == "off":
        import huggingface_hub
        huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
    try:
        main(["renew", name])
        print("---")
    except SystemExit as error:
        print(str(error).splitlines()[0])
"""
CARD = """---
library_name: transformers
---
# mine
The owner wrote this.

## Use

```python
model = AutoModelForVisualQuestionAnswering.from_pretrained("owner/old", trust_remote_code=True, old=True)
```

## My results

42 %
"""


@pytest.fixture
def old(config, processor, tmp_path) -> Path:
    """A model saved with the first code that was pushed to the Hub, and a card by its owner."""
    folder = tmp_path / "old"
    AlbefForQuestionAnswering(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.glob("*.py"):
        path.unlink()
    shutil.unpack_archive(FIRST_CODE, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {name: AUTO_MAP[name] for name in ("AutoConfig", "AutoModelForVisualQuestionAnswering")}
    del settings["custom_pipelines"]
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text(CARD)
    return folder


def test_a_repository_with_the_first_code_is_renewed(old, tmp_path):
    with HubServer() as hub:

        def run(home: str, *arguments: str) -> subprocess.CompletedProcess:
            environment = hub.environment(tmp_path / home, "hf_owner", PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
            return subprocess.run(
                [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300
            )

        upload = f"api.create_repo('owner/old'); api.upload_folder(repo_id='owner/old', folder_path={str(old)!r})"
        assert run("owner", "-c", f"import huggingface_hub; api = huggingface_hub.HfApi(); {upload}").returncode == 0
        before = run("first", "-c", ANSWER)
        if CACHE_NAME == "cache":  # transformers 5.24 broke that code
            assert before.returncode and "multiple values for argument 'cache'" in before.stderr
        renewed = run("owner", "-c", RENEW)
        assert renewed.returncode == 0, renewed.stderr[-3000:]
        first, again, errors = renewed.stdout.split("---\n")
        absent, unreachable = errors.splitlines()
        assert "updated  modeling_albef.py" in first and "added    pipeline_albef.py" in first
        assert "nothing was changed" in again and not renewed.stderr
        assert absent.startswith("error: owner/absent cannot be renewed")
        assert unreachable.startswith("error: off cannot be renewed on the Hub")
        (tag,) = hub.repositories["models", "owner/old"].tags
        assert f"The previous files are in {tag}." in first
        assert hub.files("owner/old", tag) == files_of(old)
        after = run("second", "-c", ANSWER)
        assert after.stdout == "1\n", after.stderr[-3000:]
        files = hub.files("owner/old")

    kept = files_of(old)
    assert {name for name in files if name.endswith(".py")} == CODE.keys()
    assert all(files[name] == content for name, content in CODE.items())
    assert all(files[name] == kept[name] for name in kept.keys() - {*CODE, "config.json", "README.md"})
    settings, former = json.loads(files["config.json"]), json.loads(kept["config.json"])
    assert settings.pop("auto_map") == AUTO_MAP and former.pop("auto_map")
    assert settings.pop("custom_pipelines").keys() == {"visual-question-answering"}
    assert settings == former
    assert CODE.keys() <= SHIPPED_CODE
    card = files["README.md"].decode()
    assert "The owner wrote this." in card and "## My results\n\n42 %" in card and "old=True" not in card
    assert f"tested with transformers {TESTED_VERSIONS[0]} to {TESTED_VERSIONS[1]}." in card


def test_the_previous_files_of_a_folder_are_kept_beside_it(old, monkeypatch):
    before = files_of(old)
    (old / "gone").mkdir()
    monkeypatch.setattr("albef_hf.conversion.code_renewal.SHIPPED_CODE", {*SHIPPED_CODE, "former_albef.py"})
    (old / "former_albef.py").write_text("of another release")
    (old / "own_albef.py").write_text("of the owner")
    renewal = renew_code(old)
    assert renewal.files["former_albef.py"] == "removed" and renewal.files["README.md"] == "updated"
    assert renewal.backup == str(old.with_name("old.before_renewal"))
    backup = files_of(Path(renewal.backup))
    assert backup.pop("former_albef.py") == b"of another release"
    assert backup == {name: before[name] for name in renewal.files.keys() & before.keys()}
    assert not (old / "former_albef.py").exists() and (old / "own_albef.py").read_text() == "of the owner"
    assert renew_code(old).files == {}
    (old / "modeling_albef.py").write_text("edited")
    assert renew_code(old).backup == str(old.with_name("old.before_renewal_2"))


def test_what_the_owner_wrote_is_kept(old):
    settings = json.loads((old / "config.json").read_text())
    settings["auto_map"]["AutoModelForSeq2SeqLM"] = "my_code.Mine"
    (old / "config.json").write_text(json.dumps(settings))
    card = "intro\n\n## Results\n1\n\n```bash\n## Use\n```\n## Results\n    2\n## Versions\nold\n## Last\n3"
    (old / "README.md").write_bytes(card.replace("\n", "\r\n").encode())
    facts = json.dumps({"notes": "mine", "evaluation": {"metrics": {"accuracy": 1.0}, "of_another_release": 2}})
    (old / "card.json").write_text(facts)
    renew_code(old)
    assert json.loads((old / "config.json").read_text())["auto_map"] == AUTO_MAP | {
        "AutoModelForSeq2SeqLM": "my_code.Mine"
    }
    renewed = card.replace("## Versions\nold\n", f"## Versions\n\n{VERSIONS}\n\n")
    assert (old / "README.md").read_bytes().decode() == renewed.replace("\n", "\r\n")
    assert (old / "card.json").read_text() == facts
    (old / "README.md").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="README.md of old is not encoded in UTF-8"):
        renew_code(old)


@pytest.mark.parametrize("part", ["AlbefForRetrieval", "AlbefModel", "vision_model"])
def test_a_model_that_was_just_saved_is_up_to_date(config, tmp_path, part):
    model = AlbefForRetrieval(config) if part == "AlbefForRetrieval" else AlbefModel(config)
    (model.vision_model if part == "vision_model" else model).save_pretrained(tmp_path)
    assert renew_code(tmp_path).files == ({"README.md": "added"} if part == "AlbefForRetrieval" else {})
    assert renew_code(tmp_path).files == {}


def test_a_folder_without_a_model_of_this_package_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        renew_code(tmp_path)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"contains no model of this package \(config.json says None\)"):
        renew_code(tmp_path)
