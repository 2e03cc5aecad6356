"""Fixtures and helpers of the tests of image search."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from albef_hf import AlbefForPreTraining

pytest.importorskip("faiss", reason='image search needs pip install "albef_hf[search]"')

from albef_hf.search import index as index_module
from albef_hf.search import reference_texts, reranker, writer
from albef_hf.search.encoder import FeatureEncoder
from albef_hf.search.index import ImageIndex

__all__ = ["album", "command", "encoded_sizes", "images", "index", "model", "search_warnings"]  # the fixtures

TEXTS = ["a red one", "two dogs in the snow", "green", "the sky above a house"]


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def model(config) -> AlbefForPreTraining:
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.2
    torch.manual_seed(0)
    return AlbefForPreTraining(config).eval()


@pytest.fixture
def images() -> list[Image.Image]:
    return [noise(seed) for seed in range(12)]


@pytest.fixture
def album(tmp_path, images) -> Path:
    """Return a folder of a dozen images in two folders, with a thumbnail, a broken image and a text file."""
    folder = tmp_path / "album"
    (folder / "2019" / ".thumbnails").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / ("2019" if number % 2 else "") / f"{number:02}.PNG")
    noise(99).save(folder / "2019" / ".thumbnails" / "small.png")
    (folder / "notes.txt").write_text("not an image")
    (folder / "broken.jpg").write_bytes(b"not an image either")
    return folder


@pytest.fixture
def index(model, processor, album, tmp_path) -> ImageIndex:
    return ImageIndex.build(model, processor, album, tmp_path / "index", batch_size=4)


@pytest.fixture
def encoded_sizes(monkeypatch) -> list[int]:
    """Record the size of each batch that is encoded."""
    sizes: list[int] = []
    encode = FeatureEncoder.encode
    monkeypatch.setattr(
        FeatureEncoder, "encode", lambda self, pixels: sizes.append(len(pixels)) or encode(self, pixels)
    )
    return sizes


@pytest.fixture
def search_warnings(monkeypatch) -> list[str]:
    """Record the warnings of search."""
    lines: list[str] = []
    for module in (index_module, reference_texts, reranker, writer):
        monkeypatch.setattr(module.logger, "warning", lines.append)
    type(index_module.logger).warning_once.cache_clear()
    return lines


@pytest.fixture
def command(model, processor, tmp_path, monkeypatch, capsys, run):
    """Return a function that runs `albef index` or `albef search` in an empty folder and returns what it printed."""
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("ALBEF_TRACEBACK")  # errors are one line

    def start(*arguments: object) -> str:
        capsys.readouterr()
        run(*arguments)
        printed = capsys.readouterr()
        start.errors = printed.err
        return printed.out

    return start


def keys(hits) -> list:
    return [hit.key for hit in hits]


def contents(index: ImageIndex) -> tuple:
    features = torch.cat([shard.features for shard in index.mapped.shards])
    return (
        index.keys,
        index.mapped.ids.tolist(),
        list(index.mapped.fingerprints.values()),
        features,
        index.store.manifest.broken,
    )


def assert_same(index: ImageIndex, other: ImageIndex) -> None:
    for mine, theirs in zip(contents(index), contents(other), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
    for text in TEXTS:
        assert index.search(text) == other.search(text)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])
