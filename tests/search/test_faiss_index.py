"""Tests of nearest neighbors by faiss."""

import runpy
import sys

import numpy as np
import pytest
import torch
from search_fixtures import *  # noqa: F403
from search_fixtures import TEXTS, keys, noise

from albef_hf.search import faiss_index
from albef_hf.search.faiss_index import build_index, default_index_factory, read_index, search, write_index
from albef_hf.search.index import ImageIndex


@pytest.mark.parametrize("factory", ["IVF3,Flat", "HNSW8", "PCA8,IVF3,Flat", "IVF3,SQ8"])
def test_other_faiss_indexes_can_be_changed_and_loaded(model, processor, album, tmp_path, factory, index):
    built = ImageIndex.build(model, processor, album, tmp_path / "index", index_factory=factory)
    assert built.store.manifest.built == factory
    for text in TEXTS:
        # The lists that are searched at first hold fewer images.
        assert sorted(keys(built.search(text, top_k=12))) == sorted(built.keys)
        assert keys(built.search(text, top_k=12, rerank_k=0)) == keys(index.search(text, top_k=12, rerank_k=0))
    built.remove(["00.PNG"])
    noise(70).save(album / "new.png")
    assert built.add([album / "new.png"]) == 1
    loaded = ImageIndex.load(tmp_path / "index", model, processor)
    found = keys(loaded.search("red", top_k=20))
    assert len(found) == len(set(found)) == 12 and "00.PNG" not in found
    assert loaded.search(noise(70), top_k=1)[0].key == "new.png"


def test_too_few_images_for_an_index_are_refused(index, model, processor, album, tmp_path):
    with pytest.raises(ValueError, match="faiss cannot build 'IVF64,Flat' from 12 images: .*'Flat' needs no training"):
        ImageIndex.build(model, processor, album, tmp_path / "index", index_factory="IVF64,Flat")
    assert len(ImageIndex.load(tmp_path / "index", model, processor)) == 12  # the old index is kept
    with pytest.raises(ValueError, match="faiss cannot build 'IVF64,Flat'"):
        ImageIndex.build(model, processor, album, tmp_path / "new", index_factory="IVF64,Flat")
    assert len(ImageIndex.build(model, processor, album, tmp_path / "new", index_factory="Flat")) == 12


def test_large_indexes_use_lists(index, model, processor, album, tmp_path, monkeypatch):
    assert [default_index_factory(count) for count in (1, 10**6, 10**6 + 1, 10**7)] == [
        "Flat",
        "Flat",
        "IVF4096,Flat",
        "IVF16384,Flat",
    ]
    monkeypatch.setattr(faiss_index, "FLAT_UP_TO", 12)
    monkeypatch.setattr(faiss_index, "ivf_lists", lambda count: 4)
    noise(80).save(album / "new.png")
    index.add([album / "new.png"])
    assert index.store.manifest.built == "IVF4,Flat" and len(index.search("red", top_k=99)) == 13
    index.remove(["new.png"])
    assert index.store.manifest.built == "IVF4,Flat"  # removing an image does not change the kind of index


def test_more_lists_are_searched_if_these_hold_too_few_vectors():
    vectors = torch.nn.functional.normalize(torch.randn(500, 16, generator=torch.Generator().manual_seed(0))).numpy()
    ids = np.arange(500) * 3
    index = build_index("IVF16,Flat", [(ids[:200], vectors[:200]), (ids[200:], vectors[200:])], 16)
    assert faiss_index.faiss.try_extract_index_ivf(index).nprobe == 1
    exact = [ids[(vectors @ query).argsort()[::-1]] for query in vectors[:5]]
    for query, right in zip(vectors[:5], exact, strict=True):
        assert search(index, query, 1)[0] == right[0]
        assert search(index, query, 500).tolist() == right.tolist() == search(index, query, 9999).tolist()
        assert len(set(search(index, query, 300).tolist())) == 300
    assert faiss_index.faiss.try_extract_index_ivf(index).nprobe == 1


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "albef_hf\[search\]"'):
        runpy.run_path(faiss_index.__file__)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file sizes")
@pytest.mark.parametrize("missing", [1, 100, 5000, 20_000])
def test_a_vector_file_that_does_not_fit_is_an_error(tmp_path, missing):
    """faiss itself reports no error if only the end of the file does not fit on the disk."""
    import resource

    vectors = np.random.default_rng(0).random((300, 16), dtype=np.float32)
    index = build_index("Flat", [(np.arange(300), vectors)], 16)
    write_index(index, tmp_path / "whole.faiss")
    assert (
        search(read_index(tmp_path / "whole.faiss"), vectors[0], 5).tolist() == search(index, vectors[0], 5).tolist()
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "whole.faiss").stat().st_size - missing, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_index(index, tmp_path / "cut.faiss")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
