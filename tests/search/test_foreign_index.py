"""Tests of indexes from somebody else, which may have been made to disclose private images."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from search_fixtures import *  # noqa: F403
from search_fixtures import keys, noise

from albef_hf.search.index import ImageIndex
from albef_hf.utils import files


def rewrite(folder: Path, change: Callable[[dict], None], columns: dict | None = None, keys: object = None) -> None:
    """Change the manifest of an index and the content of its first shard, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (name,) = manifest["shards"]
    with safe_open(folder / name, "pt") as file:
        tensors = {column: file.get_tensor(column) for column in ("ids", "stamps", "features")}
        old_keys = json.loads(file.metadata()["keys"])
    save_file(tensors | (columns or {}), folder / name, {"keys": json.dumps(old_keys if keys is None else keys)})
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("named", [False, True], ids=["by its root", "by the caller"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_foreign_index_discloses_no_private_image(index, model, processor, album, tmp_path, named, elsewhere):
    noise(5).save(tmp_path / "private.png")
    noise(6).save(album / "other.png")  # not in the index
    private = [str(tmp_path / "private.png"), "../private.png", f"2019/../../{tmp_path.name}/private.png"]
    private += ["/etc/passwd", "nul\0", *([] if named else ["other.png"])]
    keys_of_attacker = [*private, *index.keys[len(private) :]]
    rewrite(index.store.folder, lambda it: it.update(elsewhere=private[:1] * elsewhere), keys=keys_of_attacker)
    loaded = ImageIndex.load(index.store.folder, model, processor, album if named else None)
    for key in private:
        with pytest.raises(ValueError, match="cannot be read any more: image_(missing|outside_root)"):
            loaded.image(key)
    assert {hit.key for hit in loaded.search("red", top_k=99)} == {*keys_of_attacker} - {*private}
    assert not {hit.key for hit in loaded.search("red", top_k=99, rerank_k=0)} & {*private} - {"other.png"}


@pytest.mark.parametrize("broken", [False, True])
def test_building_a_foreign_index_reads_no_private_image(index, model, processor, album, tmp_path, broken):
    private, root = str(tmp_path / "private.png"), index.store.folder
    noise(5).save(private)
    entries = {"elsewhere": [private], "broken": [[private, "image_missing", None]] * broken}
    rewrite(root, lambda it: it.update(entries), keys=None if broken else [private, *index.keys[1:]])
    loaded = ImageIndex.load(root, model, processor, album)
    if not broken:
        with pytest.raises(ValueError, match="image_outside_root: .*: add it to index it.$"):
            loaded.image(private)
    built = ImageIndex.build(model, processor, album, root)
    assert private not in built.keys and built.broken[private] == "image_outside_root"
    assert built.add([private]) == 1 and built.image(private)


def test_links_out_of_the_folder_are_read_only_as_indexed(model, processor, album, tmp_path):
    private, link = tmp_path / "private.png", album / "link.png"
    noise(5).save(private)
    link.symlink_to(private)
    (album / "inside.png").symlink_to(album / "00.PNG")
    (tmp_path / "linked").symlink_to(album)
    owner = ImageIndex.build(model, processor, tmp_path / "linked", tmp_path / "index")
    assert owner.image("link.png") and ImageIndex.load(tmp_path / "index", model, processor).image("link.png")
    loaded = ImageIndex.load(tmp_path / "index", model, processor, tmp_path / "linked")
    assert loaded.image("link.png") and loaded.image("00.PNG") and loaded.image("inside.png")
    noise(6, (50, 50)).save(private)  # as if the index named somebody else's link
    with pytest.raises(ValueError, match="link.png is not the file that was indexed: add it to index it.$"):
        loaded.image("link.png")
    assert "link.png" not in keys(loaded.search("red", top_k=99))
    assert owner.image("link.png").size == (50, 50)


def test_a_foreign_index_lists_no_folder(index, model, processor, album, tmp_path):
    (tmp_path / "private").mkdir()
    noise(5).save(tmp_path / "private" / "private.png")
    for root in ("../private", "..", "/", str(tmp_path / "private")):
        rewrite(index.store.folder, lambda it, root=root: it.update(root=root))
        changes = ImageIndex.load(index.store.folder, model, processor).changes()
        assert not changes.new and len(changes.missing) == 12
    assert ImageIndex.load(index.store.folder, model, processor, tmp_path / "private").changes().new == ["private.png"]


def test_changed_files_are_read_only_if_named(model, processor, album, tmp_path):
    noise(20).save(tmp_path / "elsewhere.png")
    index = ImageIndex.build(model, processor, album, tmp_path / "index")
    index.add([tmp_path / "elsewhere.png"])
    for path in (album / "00.PNG", tmp_path / "elsewhere.png"):  # as copies and archives round it
        os.utime(path, ns=(0, path.stat().st_mtime_ns // 10**9 * 10**9))
    loaded = ImageIndex.load(tmp_path / "index", model, processor)
    assert len(loaded.search("red", top_k=99)) == 13 and loaded.image(str(tmp_path / "elsewhere.png"))
    noise(30, (50, 50)).save(album / "00.PNG")
    with pytest.raises(ValueError, match="00.PNG is not the file that was indexed: name its folder"):
        loaded.image("00.PNG")
    assert "00.PNG" not in keys(loaded.search("red", top_k=99)) and "00.PNG" in loaded.changes().changed
    assert ImageIndex.load(tmp_path / "index", model, processor, album).image("00.PNG").size == (50, 50)
    paths = [album / key for key in ("00.PNG", "02.PNG")]
    listed = ImageIndex.build(model, processor, paths, tmp_path / "listed")
    noise(31, (60, 50)).save(paths[0])
    with pytest.raises(ValueError, match="cannot be read any more"):
        ImageIndex.load(tmp_path / "listed", model, processor).image(str(paths[0]))
    assert ImageIndex.load(tmp_path / "listed", model, processor, paths).image(listed.keys[0]).size == (60, 50)


def test_a_tampered_index_is_refused(index, model, processor, tmp_path):
    def load(change: Callable[[dict], None], columns: dict | None = None, keys: object = None) -> ImageIndex:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        rewrite(shutil.copytree(index.store.folder, tmp_path / "copy"), change, columns, keys)
        return ImageIndex.load(tmp_path / "copy", model, processor)

    for name, value in (
        ("vectors", "../vectors_000000.faiss"),
        ("vectors", 5),
        ("shards", ["/etc/passwd"]),
        ("shards", "abc"),
        ("parts", None),
        ("model", []),
        ("model", {"name": 3, "revision": None, "weights": ""}),
        ("root", 5),
        ("files", []),
        ("files", {"vectors_000000.faiss": {"bytes": 3}}),
        ("broken", [["a", "b"]]),
        ("removed", 5),
        ("elsewhere", [{}]),
        ("elsewhere", ["../a.png"]),
        ("next_id", "x"),
        ("next_id", 10**30),
        ("files", {"vectors_000000.faiss": {"bytes": True, "sha256": ""}}),
        ("broken", [["a", "b", None], ["a", "b", None]]),
        ("removed", ["a", 5]),
    ):
        with pytest.raises(ValueError, match=f"manifest.json cannot be read .invalid value of .*{name}"):
            load(lambda manifest, name=name, value=value: manifest.update({name: value}))
    for columns in (
        {"features": torch.zeros(12, 3)},
        {"features": torch.full((12, 16), torch.nan)},
        {"features": torch.zeros(12, 16, dtype=torch.int64)},
        {"ids": torch.zeros(12)},
        {"ids": torch.zeros(12, dtype=torch.int64)},
        {"ids": torch.arange(100, 112)},
        {"stamps": torch.zeros(12, 1, dtype=torch.int64)},
    ):
        with pytest.raises(ValueError, match="The index is damaged: .* Build the index again"):
            load(lambda manifest: None, columns).search("red")
    for wrong in (5, index.keys[1]):  # of another type, and a duplicate
        with pytest.raises(ValueError, match="The index is damaged: .* Build the index again"):
            load(lambda manifest: None, None, [wrong, *index.keys[1:]])
    assert load(lambda manifest: None, {}).search("red") == index.search("red")
