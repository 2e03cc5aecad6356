"""Renew the code of a model on the Hub or in a folder: its weights stay, its code becomes that of this package.

A saved model carries a copy of the modeling code, which runs without this package but only on the releases of
transformers that it was written for. When a later release breaks it, its owner runs

    python -m albef_hf.code_renewal you/albef
"""

import argparse
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from .compatibility_albef import VERSIONS
from .files import written_aside
from .model_card import MOMENTUM_FILE, TAGS, model_card
from .modeling_albef import AUTO_MODELS, AlbefMultimodalModel, AlbefTextModel, AlbefVisionModel
from .processing_albef import AlbefProcessor

BACKUP = "before_renewal"
# Code of this and earlier releases beside the files that end in _albef.py.
OTHER_CODE = ("explain.py", "ranking.py")
RENEWED_SECTIONS = ("Use", "Versions")  # of a model card; the others are the owner's

ENCODERS = (AlbefVisionModel, AlbefTextModel, AlbefMultimodalModel)
MODELS = {model.__name__: model for models in (*AUTO_MODELS.values(), ENCODERS) for model in models}


@dataclass
class Renewal:
    """What `renew_code` did.

    Args:
        files: What became of each file that changed: "added", "updated" or "removed".
        backup: The tag of a repository, or the folder, that has the former files; None if nothing changed.
    """

    files: dict[str, str]
    backup: str | None = None

    def __str__(self) -> str:
        if not self.files:
            return "The code was up to date; nothing changed."
        lines = [f"{change:8s} {name}" for name, change in sorted(self.files.items())]
        return "\n".join([*lines, f"Weights are untouched. The former files are in {self.backup}."])


def renew_code(name: str | Path, token: str | None = None) -> Renewal:
    """Replace the code files, the `auto_map`, and the usage and versions in the card of a saved model.

    Nothing else is changed. What was there before remains: a repository gets a tag at its former commit, a folder a
    subfolder `before_renewal`.

    Args:
        name: A folder that `save_pretrained` wrote, or a Hub repository.
        token: For the Hub; by default the one that was saved at login.

    Raises:
        ValueError: If it holds no model of this package, or the Hub refuses it.
    """
    if Path(name).is_dir():
        return _renew_folder(Path(name))
    try:
        return _renew_repository(str(name), HfApi(token=token))
    except HfHubHTTPError as error:
        raise ValueError(
            f"{name} cannot be renewed on the Hub ({str(error).splitlines()[0]}). Check the name, and log in with "
            "`hf auth login` as somebody who may write there."
        ) from error


def _renew_folder(folder: Path) -> Renewal:
    changes = _changes(folder)
    if not changes:
        return Renewal({})
    backup = _new_folder(folder)
    renewal = Renewal(_describe(folder, changes), str(backup))
    for name, content in changes.items():
        path = folder / name
        if path.exists():
            (backup / name).write_bytes(path.read_bytes())
        if content is None:
            path.unlink()
        else:
            with written_aside(path) as aside:
                aside.write_bytes(content)
    return renewal


def _new_folder(folder: Path) -> Path:
    """Create the folder for the former files; an earlier one stays."""
    taken = sum(path.name.startswith(BACKUP) for path in folder.iterdir())
    backup = folder / (f"{BACKUP}_{taken + 1}" if taken else BACKUP)
    backup.mkdir()
    return backup


def _renew_repository(repo_id: str, api: HfApi) -> Renewal:
    info = api.model_info(repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        snapshot_download(
            repo_id,
            revision=info.sha,
            local_dir=folder,
            token=api.token,
            allow_patterns=["*.py", "*.json", "README.md"],
        )
        if any(file.rfilename == MOMENTUM_FILE for file in info.siblings):
            (folder / MOMENTUM_FILE).touch()  # the card mentions it
        changes = _changes(folder, repo_id)
        if not changes:
            return Renewal({})
        renewal = Renewal(_describe(folder, changes), f"before-renewal-{info.sha[:7]}")
    api.create_tag(repo_id, tag=renewal.backup, revision=info.sha, exist_ok=True)
    api.create_commit(
        repo_id,
        [
            CommitOperationDelete(name) if content is None else CommitOperationAdd(name, content)
            for name, content in changes.items()
        ],
        commit_message="Renew the code; weights are untouched",
        parent_commit=info.sha,  # refused if somebody else has pushed in between
    )
    return renewal


def _changes(folder: Path, repo_id: str | None = None) -> dict[str, bytes | None]:
    """Return the new content of every file that has to change, None for one that has to go."""
    model = _model_without_weights(folder)
    new = _code_files(model)
    new["config.json"] = _with_entries(folder / "config.json", _entries(model))
    if (folder / "processor_config.json").exists():
        entries = {"auto_map": {"AutoProcessor": f"processing_albef.{AlbefProcessor.__name__}"}}
        new["processor_config.json"] = _with_entries(folder / "processor_config.json", entries)
    new |= _card(folder, type(model).__name__, repo_id)
    ours = {path.name for path in folder.glob("*.py") if path.name.endswith("_albef.py") or path.name in OTHER_CODE}
    changed = {name: content for name, content in new.items() if _content(folder / name) != content}
    return changed | dict.fromkeys(sorted(ours - new.keys()))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _describe(folder: Path, changes: dict[str, bytes | None]) -> dict[str, str]:
    return {
        name: "removed" if content is None else "updated" if (folder / name).exists() else "added"
        for name, content in changes.items()
    }


def _model_without_weights(folder: Path) -> PreTrainedModel:
    """Build the model that a folder describes on the meta device; its class decides about code and entries."""
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder.name} has no config.json: name a folder or repository with a saved model.")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    head = (config.architectures or ["nothing"])[0]
    if head not in MODELS:
        raise ValueError(f"{folder.name} holds {head}, which is no model of this package; its code cannot be renewed.")
    with torch.device("meta"):
        return MODELS[head](config)


def _code_files(model: PreTrainedModel) -> dict[str, bytes]:
    """Return the code that `save_pretrained` would write, and enter the model's classes in its `auto_map`."""
    model.config.auto_map = model._auto_map()
    with tempfile.TemporaryDirectory() as folder:
        for part in (model.config, model):
            custom_object_save(part, folder, config=model.config)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _entries(model: PreTrainedModel) -> dict[str, Any]:
    """Return the entries of config.json that name code."""
    settings = model.config.to_dict()
    return {name: settings[name] for name in ("auto_map", "custom_pipelines") if name in settings}


def _with_entries(path: Path, entries: dict[str, Any]) -> bytes:
    """Return a JSON file with other values of some entries; all others stay as they are."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if all(settings.get(name) == value for name, value in entries.items()):
        return path.read_bytes()
    return (json.dumps(settings | entries, indent=2, sort_keys=True) + "\n").encode()


def _card(folder: Path, head: str, repo_id: str | None) -> dict[str, bytes]:
    """Return the card with renewed usage and versions, or a whole one where there is none."""
    path = folder / "README.md"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    named = re.search(r'from_pretrained\("([^"]+)"', old)
    fresh = {"Versions": VERSIONS}
    if head in TAGS:
        card = str(model_card(folder, repo_id or (named[1] if named else folder.name)))
        if not old:
            return {"README.md": card.encode()}
        fresh = {title: text for title, text in _sections(card).items() if title in RENEWED_SECTIONS}
    if not old:
        return {}
    sections = _sections(old)
    fresh = {title: text for title, text in fresh.items() if title in sections or title == "Versions"}
    if all(sections.get(title, "").strip() == text.strip() for title, text in fresh.items()):
        return {}
    sections |= fresh
    text = "\n".join(f"## {title}\n\n{text.strip()}\n" if title else text for title, text in sections.items())
    return {"README.md": text.encode()}


def _sections(card: str) -> dict[str, str]:
    """Split a card at its second-level titles; what comes before the first has none."""
    head, *parts = re.split(r"^## (.*)\n", card, flags=re.MULTILINE)
    return {"": head} | dict(zip(parts[::2], parts[1::2], strict=True))


def main(arguments: list[str] | None = None) -> None:
    """Renew the code of a saved model and say what changed."""
    parser = argparse.ArgumentParser(prog="python -m albef_hf.code_renewal", description=main.__doc__)
    parser.add_argument("name", help="folder that save_pretrained wrote, or Hub repository such as you/albef")
    options = parser.parse_args(arguments)
    try:
        print(renew_code(options.name))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
