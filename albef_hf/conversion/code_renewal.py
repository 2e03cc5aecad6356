"""Renew the code of a model on the Hub or in a folder: replace it by the code of this package, keep the weights.

A saved model comes with a copy of the modeling code. The copy runs without this package, but only on the releases of
transformers that it was written for. When a later release breaks it, the owner of the model runs

    albef renew you/albef
"""

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model_card import MOMENTUM_FILE, TAGS, loaded_name, model_card, read_card, sections

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from transformers import PreTrainedModel

    from ..modeling_albef import AlbefPreTrainedModel

# What imports torch or transformers is imported in the functions that need it, so that --help is fast.

# Every code file that this and earlier releases saved with a model.
SHIPPED_CODE = {
    "answers_albef.py",
    "calibration_albef.py",
    "captioning_albef.py",
    "classification_albef.py",
    "compatibility_albef.py",
    "configuration_albef.py",
    "encoders_albef.py",
    "explain.py",
    "head_layers_albef.py",
    "heatmaps_albef.py",
    "image_encoder_albef.py",
    "images_albef.py",
    "initialization_albef.py",
    "losses_albef.py",
    "masks_albef.py",
    "matching_albef.py",
    "modeling_albef.py",
    "outputs_albef.py",
    "pipeline_albef.py",
    "processing_albef.py",
    "ranking.py",
    "retrieval_albef.py",
    "sentence_albef.py",
    "shared_inputs_albef.py",
    "unimodal_albef.py",
    "zero_shot_albef.py",
}
RENEWED_SECTIONS = ("Use", "Versions")  # of a model card; the other sections belong to the owner


@dataclass
class Renewal:
    """The result of `renew_code`.

    Args:
        files: Names of the changed files, each with "added", "updated" or "removed".
        backup: The tag of the repository, or the folder, with the previous files; None if nothing changed.
    """

    files: dict[str, str]
    backup: str | None = None

    def __str__(self) -> str:
        """List the changed files, one per line."""
        if not self.files:
            return "The code is up to date; nothing was changed."
        lines = [f"{change:8s} {name}" for name, change in sorted(self.files.items())]
        return "\n".join([*lines, f"The weights were not changed. The previous files are in {self.backup}."])


def renew_code(name: str | Path, token: str | None = None) -> Renewal:
    """Replace the code files, the `auto_map`, and the sections on use and versions in the card of a saved model.

    A model that scores pairs also gets the files by which both `SentenceTransformer` and `CrossEncoder` load it.
    Nothing else is changed, and the previous files are kept: the previous commit of a repository gets a tag; the
    files of a folder are copied to a new folder beside it, `NAME.before_renewal`.

    Args:
        name: A folder written by `save_pretrained`, or a Hub repository.
        token: Token for the Hub; by default the one that was saved at login.

    Raises:
        ValueError: If there is no model of this package, or the Hub refuses the change or cannot be reached.
        OSError: If the folder cannot be written, as on a full disk. Nothing is changed in this case.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if Path(name).is_dir():
        return _renew_folder(Path(name).resolve())
    network_error: Any = HfHubHTTPError.__mro__[1]  # HTTPError of httpx or httpx2, whichever the client uses
    try:
        return _renew_repository(str(name), HfApi(token=token))
    except (network_error, OSError) as error:
        raise ValueError(
            f"{name} cannot be renewed on the Hub ({str(error).splitlines()[0]}). Check the name and the connection, "
            "and log in with `hf auth login` as a user with write access."
        ) from error


def _renew_folder(folder: Path) -> Renewal:
    from ..utils.files import atomic_write_folder, write_errors_named

    changes = _find_changes(folder)
    if not changes:
        return Renewal({})
    described = _describe(folder, changes)
    with write_errors_named(folder):
        with atomic_write_folder(folder) as new:
            for name, content in changes.items():
                if content is not None:
                    (new / name).write_bytes(content)
            backup = _back_up(folder, changes)  # before any file is replaced
        for name, content in changes.items():
            if content is None:
                (folder / name).unlink()
    return Renewal(described, str(backup))


def _back_up(folder: Path, names: Iterable[str]) -> Path:
    """Copy files to a new folder beside theirs and return it; earlier copies stay."""
    backup = folder.with_name(f"{folder.name}.before_renewal")
    for index in itertools.count(2):
        if not backup.exists():
            break
        backup = folder.with_name(f"{folder.name}.before_renewal_{index}")
    backup.mkdir()
    try:
        for name in names:
            if (folder / name).exists():
                shutil.copy2(folder / name, backup / name)
    except OSError:
        shutil.rmtree(backup, ignore_errors=True)
        raise
    return backup


def _renew_repository(repo_id: str, api: "HfApi") -> Renewal:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, snapshot_download

    info = api.model_info(repo_id)
    commit = str(info.sha)
    backup = f"before-renewal-{commit[:7]}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        snapshot_download(
            repo_id,
            revision=commit,
            local_dir=folder,
            token=api.token,
            allow_patterns=["*.py", "*.json", "README.md"],
        )
        if any(file.rfilename == MOMENTUM_FILE for file in info.siblings or ()):
            (folder / MOMENTUM_FILE).touch()  # the card mentions the file if it exists; its content is not needed
        changes = _find_changes(folder, repo_id)
        if not changes:
            return Renewal({})
        renewal = Renewal(_describe(folder, changes), backup)
    api.create_tag(repo_id, tag=backup, revision=commit, exist_ok=True)
    api.create_commit(
        repo_id,
        [
            CommitOperationDelete(name) if content is None else CommitOperationAdd(name, content)
            for name, content in changes.items()
        ],
        commit_message="Renew the code; keep the weights",
        parent_commit=commit,  # the Hub refuses this commit if there was another in between
    )
    return renewal


def _find_changes(folder: Path, repo_id: str | None = None) -> dict[str, bytes | None]:
    """Return the new content of each file that has to change; None for a file that has to be removed."""
    model = _model_without_weights(folder)
    model.config.auto_map = model._auto_map()
    new = _code_files(model)  # completes the auto_map
    new["config.json"] = _with_entries(folder / "config.json", model.config.to_dict())
    if (folder / "processor_config.json").exists():
        auto_map = {"AutoProcessor": "processing_albef.AlbefProcessor"}
        new["processor_config.json"] = _with_entries(folder / "processor_config.json", {"auto_map": auto_map})
    new |= _sentence_transformers_files(folder, type(model).__name__)
    new |= _card(folder, type(model).__name__, repo_id)
    changes: dict[str, bytes | None] = {}
    for name, content in new.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != content:
            changes[name] = content
    for name in sorted(SHIPPED_CODE - new.keys()):
        if (folder / name).exists():
            changes[name] = None
    return changes


def _describe(folder: Path, changes: dict[str, bytes | None]) -> dict[str, str]:
    descriptions = {}
    for name, content in changes.items():
        if not (folder / name).exists():
            descriptions[name] = "added"
        else:
            descriptions[name] = "removed" if content is None else "updated"
    return descriptions


def _model_without_weights(folder: Path) -> "AlbefPreTrainedModel":
    """Build the saved model on the meta device; its class determines the code files and the `auto_map`."""
    import torch
    from transformers import AutoConfig

    from ..encoders_albef import AlbefMultimodalModel, AlbefTextModel, AlbefTwoImageEncoder, AlbefVisionModel
    from ..modeling_albef import MODEL_CLASSES

    if not (folder / "config.json").exists():
        raise ValueError(f"{folder.name} has no config.json. Choose a folder or repository with a saved model.")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    architecture = (config.architectures or [None])[0]
    encoders = (AlbefVisionModel, AlbefTextModel, AlbefMultimodalModel, AlbefTwoImageEncoder)
    classes = {encoder.__name__: encoder for encoder in encoders} | MODEL_CLASSES
    if architecture not in classes:
        raise ValueError(f"{folder.name} contains no model of this package (config.json says {architecture}).")
    with torch.device("meta"):
        return classes[architecture](config)


def _code_files(model: "PreTrainedModel") -> dict[str, bytes]:
    """Return the code that `save_pretrained` writes; as there, transformers adds the classes to the `auto_map`."""
    from transformers.dynamic_module_utils import custom_object_save

    from ..utils.files import write_errors_named

    config: Any = model.config  # custom_object_save is annotated with a dictionary, but takes a configuration
    with write_errors_named(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        for part in (model.config, model):
            custom_object_save(part, folder, config=config)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _sentence_transformers_files(folder: Path, head: str) -> dict[str, bytes]:
    """Return the files by which sentence-transformers loads a head that matches, unless the folder has them."""
    from ..configuration_albef import MATCHING_HEADS, SENTENCE_TRANSFORMERS_FILES, sentence_transformers_files

    modules = folder / "modules.json"
    is_there = modules.exists() and json.loads(modules.read_text()) == SENTENCE_TRANSFORMERS_FILES["modules.json"]
    if head not in MATCHING_HEADS or is_there:
        return {}
    return {name: content.encode() for name, content in sentence_transformers_files().items()}


def _with_entries(path: Path, settings: dict[str, Any]) -> bytes:
    """Return a JSON file with the new entries that refer to code; entries for the owner's own code stay."""
    old = json.loads(path.read_text(encoding="utf-8"))
    new = dict(old)
    for name in ("auto_map", "custom_pipelines"):
        others = {key: value for key, value in old.get(name, {}).items() if not _is_ours(value)}
        if entries := others | settings.get(name, {}):
            new[name] = entries
    if new == old:
        return path.read_bytes()
    return (json.dumps(new, indent=2, sort_keys=True) + "\n").encode()


def _is_ours(entry: Any) -> bool:
    """Return True for an entry that refers to a shipped code file, such as "modeling_albef.AlbefModel"."""
    name = entry.get("impl") if isinstance(entry, dict) else entry
    return isinstance(name, str) and f"{name.split('.')[0]}.py" in SHIPPED_CODE


def _card(folder: Path, head: str, repo_id: str | None) -> dict[str, bytes]:
    """Return the card with renewed sections on use and versions, or a whole card if there is none."""
    from ..compatibility_albef import VERSIONS

    old = read_card(folder)
    if old is None:
        return {"README.md": str(model_card(folder, repo_id or folder.name)).encode()} if head in TAGS else {}
    fresh = {"Versions": f"## Versions\n\n{VERSIONS}\n\n"}
    if head in TAGS:
        card = str(model_card(folder, repo_id or loaded_name(old) or folder.name))
        fresh = {title: text for title, text in sections(card) if title in RENEWED_SECTIONS}
    return {"README.md": _replace_sections(old, fresh).encode()}


def _replace_sections(card: str, fresh: dict[str, str]) -> str:
    """Replace outdated sections of a card, and append the one on versions; the rest stays byte for byte."""
    line_end = "\r\n" if "\r\n" in card else "\n"
    parts = []
    for title, text in sections(card):
        outdated = title in fresh and "".join(text.split()) != "".join(fresh[title].split())
        parts.append(fresh[title].replace("\n", line_end) if outdated else text)
    if "Versions" not in [title for title, _ in sections(card)]:
        parts.append((f"\n\n{fresh['Versions'].rstrip()}\n").replace("\n", line_end))
    return "".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Renew the code of a saved model, keep its weights, and print the changed files."""
    parser = argparse.ArgumentParser(prog="albef renew", description=main.__doc__)
    parser.add_argument("name", help="folder written by save_pretrained, or Hub repository such as you/albef")
    options = parser.parse_args(arguments)
    from ..utils.progress import log_library_progress

    log_library_progress()
    print(renew_code(options.name))
