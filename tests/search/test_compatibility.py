"""Tests of indexes and names of earlier versions."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from search_fixtures import *  # noqa: F403
from search_fixtures import keys, noise

from albef_hf.search import index as index_module
from albef_hf.search.feature_store import contrast_parts, weights_sha256
from albef_hf.search.index import ImageIndex
from albef_hf.search.manifest import Manifest
from albef_hf.utils.files import sha256

OLD_MANIFEST = {  # as it was written before fields were renamed
    "format": 1,
    "model": {"name": "../model", "revision": None, "weights": "..."},
    "root": "../album",
    "factory": "Flat",
    "built": "Flat",
    "vectors": "vectors_000001.faiss",
    "shards": ["features_000000.safetensors"],
    "parts": [],
    "files": {},
    "broken": [["broken.jpg", "image_broken", [15, 1700000000000000000]]],
    "removed": ["00.PNG"],
    "elsewhere": [],
    "next_id": 12,
    "next_file": 2,
}


def test_an_old_index_opens(index, model, processor, album, tmp_path):
    """Its manifest and shards are written by hand, with the faiss file of today."""
    noise(20).save(tmp_path / "outside.png")
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "vectors_000001.faiss").write_bytes(next(index.store.folder.glob("vectors_*")).read_bytes())
    stamps = [[path.stat().st_size, path.stat().st_mtime_ns] for path in (album / key for key in index.keys)]
    columns = {"ids": torch.arange(12), "stamps": torch.tensor(stamps), "features": index.mapped.shards[0].features}
    save_file(columns, folder / "features_000000.safetensors", {"keys": json.dumps(index.keys)})
    names = ("features_000000.safetensors", "vectors_000001.faiss")
    manifest = OLD_MANIFEST | {
        "model": OLD_MANIFEST["model"] | {"weights": weights_sha256(contrast_parts(model))},
        "files": {name: {"bytes": os.path.getsize(folder / name), "sha256": sha256(folder / name)} for name in names},
        "elsewhere": [str(tmp_path / "outside.png")],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    loaded = ImageIndex.load(folder, model, processor)
    assert loaded.search("red") == index.search("red") and not loaded.changes()
    assert loaded.store.manifest.index_factory == "Flat" and loaded.broken == {"broken.jpg": "image_broken"}
    assert loaded.store.manifest.external_keys == [str(tmp_path / "outside.png")]


def test_the_format_has_not_changed(index, album):
    """Earlier versions can open what this one writes."""
    index.remove(["00.PNG"])
    written = json.loads((index.store.folder / "manifest.json").read_text())
    assert written.keys() == OLD_MANIFEST.keys() and written["format"] == 1
    assert Manifest.from_json(OLD_MANIFEST).to_json() == OLD_MANIFEST
    (name,) = written["shards"]
    with safe_open(index.store.folder / name, "pt") as file:
        assert {*file.keys()} == {"ids", "stamps", "features"} and json.loads(file.metadata()["keys"]) == index.keys


def test_old_names_warn(model, processor, images, tmp_path):
    with pytest.warns(FutureWarning, match="PictureIndex is now called ImageIndex"):
        assert index_module.PictureIndex is ImageIndex
    with pytest.warns(FutureWarning, match="pictures of ImageIndex.build is now called images"):
        index = ImageIndex.build(model, processor, pictures=images, folder=tmp_path / "index")
    with pytest.warns(FutureWarning, match="(k|rerank) of ImageIndex.search is now called (top_k|rerank_k)"):
        assert index.search("red", k=3, rerank=2) == index.search("red", top_k=3, rerank_k=2)
    with pytest.warns(FutureWarning, match="ImageIndex.picture is now called image"):
        assert index.picture(0).tobytes() == images[0].tobytes()
    with pytest.raises(AttributeError, match="has no attribute 'AlbumIndex'"):
        _ = index_module.AlbumIndex
    assert keys(index.search("red", 3)) == keys(index.search("red", top_k=3))
