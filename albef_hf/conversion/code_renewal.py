"""Renew the code of a model on the Hub or in a folder: its weights stay, its code becomes that of this package.

A saved model carries a copy of the modeling code, which runs without this package but only on the releases of
transformers that it was written for. When a later release breaks it, its owner runs

    python -m albef_hf.conversion.code_renewal you/albef
"""

import argparse
import itertools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from ..compatibility_albef import VERSIONS
from ..model_card import MOMENTUM_FILE, TAGS, model_card
from ..modeling_albef import AUTO_MODELS, AlbefMultimodalModel, AlbefTextModel, AlbefVisionModel
from ..processing_albef import AlbefProcessor
from ..utils.files import folder_written_aside
from ..utils.progress import log_library_progress

# Every code file that this and earlier releases saved with a model.
SHIPPED_CODE = {
    "compatibility_albef.py",
    "configuration_albef.py",
    "explain.py",
    "heatmaps_albef.py",
    "images_albef.py",
    "modeling_albef.py",
    "pipeline_albef.py",
    "processing_albef.py",
    "ranking.py",
    "retrieval_albef.py",
}
RENEWED_SECTIONS = ("Use", "Versions")  # of a model card; the others are the owner's
NETWORK_ERROR = HfHubHTTPError.__mro__[1]  # HTTPError of httpx or httpx2, whichever the installed client uses

ENCODERS = (AlbefVisionModel, AlbefTextModel, AlbefMultimodalModel)
MODELS = {model.__name__: model for models in (*AUTO_MODELS.values(), ENCODERS) for model in models}


@dataclass
class Renewal:
    """The result of `renew_code`.

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

    Nothing else is changed. The former files remain: a repository gets a tag at its former commit; those of a folder
    are copied to a folder beside it, `NAME.before_renewal`.

    Args:
        name: A folder that `save_pretrained` wrote, or a Hub repository.
        token: For the Hub; by default the one that was saved at login.

    Raises:
        ValueError: If it holds no model of this package, or the Hub refuses it or cannot be reached.
    """
    if Path(name).is_dir():
        return _renew_folder(Path(name).resolve())
    try:
        return _renew_repository(str(name), HfApi(token=token))
    except (NETWORK_ERROR, OSError) as error:
        raise ValueError(
            f"{name} cannot be renewed on the Hub ({str(error).splitlines()[0]}). Check the name, and log in with "
            "`hf auth login` as somebody who may write there."
        ) from error


def _renew_folder(folder: Path) -> Renewal:
    changes = _changes(folder)
    if not changes:
        return Renewal({})
    backup = _backup(folder, changes)
    renewal = Renewal(_describe(folder, changes), str(backup))
    with folder_written_aside(folder) as aside:
        for name, content in changes.items():
            if content is not None:
                (aside / name).write_bytes(content)
    for name in [name for name, content in changes.items() if content is None]:
        (folder / name).unlink()
    return renewal


def _backup(folder: Path, names: Iterable[str]) -> Path:
    """Copy files to a new folder beside theirs; earlier copies stay."""
    backup = folder.with_name(f"{folder.name}.before_renewal")
    for number in itertools.count(2):
        if not backup.exists():
            break
        backup = folder.with_name(f"{folder.name}.before_renewal_{number}")
    backup.mkdir()
    for name in names:
        if (folder / name).exists():
            shutil.copy2(folder / name, backup / name)
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
    model.config.auto_map = model._auto_map()
    new = _code_files(model)  # completes the auto_map
    new["config.json"] = _with_entries(folder / "config.json", model.config.to_dict())
    if (folder / "processor_config.json").exists():
        auto_map = {"AutoProcessor": f"processing_albef.{AlbefProcessor.__name__}"}
        new["processor_config.json"] = _with_entries(folder / "processor_config.json", {"auto_map": auto_map})
    new |= _card(folder, type(model).__name__, repo_id)
    changed = {name: content for name, content in new.items() if _content(folder / name) != content}
    gone = [name for name in sorted(SHIPPED_CODE - new.keys()) if (folder / name).exists()]
    return changed | dict.fromkeys(gone)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _describe(folder: Path, changes: dict[str, bytes | None]) -> dict[str, str]:
    words = {}
    for name, content in changes.items():
        present = "removed" if content is None else "updated"
        words[name] = present if (folder / name).exists() else "added"
    return words


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
    """Return the code that `save_pretrained` writes; as there, transformers enters the classes in the `auto_map`."""
    with tempfile.TemporaryDirectory() as folder:
        for part in (model.config, model):
            custom_object_save(part, folder, config=model.config)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _with_entries(path: Path, settings: dict[str, Any]) -> bytes:
    """Return a JSON file with the entries of `settings` that name code; entries of the owner's own code stay."""
    old = json.loads(path.read_text(encoding="utf-8"))
    new = dict(old)
    for name in ("auto_map", "custom_pipelines"):
        own = {key: value for key, value in old.get(name, {}).items() if not _is_ours(value)}
        if entries := own | settings.get(name, {}):
            new[name] = entries
    if new == old:
        return path.read_bytes()
    return (json.dumps(new, indent=2, sort_keys=True) + "\n").encode()


def _is_ours(entry: Any) -> bool:
    """Return True for an entry that names a class in a code file of ours, such as "modeling_albef.AlbefModel"."""
    name = entry.get("impl") if isinstance(entry, dict) else entry
    return isinstance(name, str) and f"{name.split('.')[0]}.py" in SHIPPED_CODE


def _card(folder: Path, head: str, repo_id: str | None) -> dict[str, bytes]:
    """Return the card with other sections on use and versions, or a whole one where there is none."""
    path = folder / "README.md"
    if not path.exists():
        return {"README.md": str(model_card(folder, repo_id or folder.name)).encode()} if head in TAGS else {}
    try:
        old = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"README.md of {folder.name} is not UTF-8 ({error}): save it as such.") from error
    fresh = {"Versions": f"## Versions\n\n{VERSIONS}\n\n"}
    if head in TAGS:
        named = re.search(r'from_pretrained\("([^"]+)", trust_remote_code', old)
        card = str(model_card(folder, repo_id or (named[1] if named else folder.name)))
        fresh = {title: text for title, text in _sections(card) if title in RENEWED_SECTIONS}
    return {"README.md": _replace_sections(old, fresh).encode()}


def _replace_sections(card: str, fresh: dict[str, str]) -> str:
    """Replace the sections of a card that are outdated, and append that on versions; all else stays, byte for byte."""
    line_end = "\r\n" if "\r\n" in card else "\n"
    parts = []
    for title, text in _sections(card):
        outdated = title in fresh and "".join(text.split()) != "".join(fresh[title].split())
        parts.append(fresh[title].replace("\n", line_end) if outdated else text)
    if "Versions" not in [title for title, _ in _sections(card)]:
        parts.append((f"\n\n{fresh['Versions'].rstrip()}\n").replace("\n", line_end))
    return "".join(parts)


def _sections(card: str) -> list[tuple[str, str]]:
    """Split a card at its second-level titles, which stay in the texts; what comes before the first has none."""
    sections = [("", "")]
    in_code = False
    for line in card.splitlines(keepends=True):
        in_code ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not in_code:
            sections.append((line[3:].strip(), ""))
        title, text = sections[-1]
        sections[-1] = (title, text + line)
    return sections


def main(arguments: list[str] | None = None) -> None:
    """Renew the code of a saved model and say what changed."""
    parser = argparse.ArgumentParser(prog="python -m albef_hf.conversion.code_renewal", description=main.__doc__)
    parser.add_argument("name", help="folder that save_pretrained wrote, or Hub repository such as you/albef")
    options = parser.parse_args(arguments)
    log_library_progress()
    try:
        print(renew_code(options.name))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
