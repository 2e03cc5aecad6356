"""Search of one's own pictures: what is found, what survives, and what is refused."""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import assert_colleagues_can_read
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from albef_hf import AlbefForPreTraining
from albef_hf.retrieval_albef import encode_texts, match, match_pictures, score_all

pytest.importorskip("faiss", reason='searching needs pip install -e ".[search]"')

from albef_hf.search import faiss_index, feature_store
from albef_hf.search import index as index_module
from albef_hf.search.faiss_index import default_factory, find, make_vectors
from albef_hf.search.html_report import results_page, word_maps
from albef_hf.search.index import PictureIndex, main
from albef_hf.utils import files

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
def pictures() -> list[Image.Image]:
    return [noise(seed) for seed in range(12)]


@pytest.fixture
def album(tmp_path, pictures) -> Path:
    """A dozen pictures in folders, and what is none."""
    folder = tmp_path / "album"
    (folder / "2019" / ".thumbnails").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / ("2019" if number % 2 else "") / f"{number:02}.PNG")
    noise(99).save(folder / "2019" / ".thumbnails" / "small.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.jpg").write_bytes(b"no picture either")
    return folder


@pytest.fixture
def index(model, processor, album, tmp_path) -> PictureIndex:
    return PictureIndex.build(model, processor, album, tmp_path / "index", batch_size=4)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many pictures are encoded each time."""
    sizes: list[int] = []
    encode = PictureIndex._encode
    monkeypatch.setattr(
        PictureIndex, "_encode", lambda self, pixels: sizes.append(len(pixels)) or encode(self, pixels)
    )
    return sizes


def keys(hits) -> list:
    return [hit.key for hit in hits]


def contents(index: PictureIndex) -> tuple:
    features = torch.cat([shard.features for shard in index.shards])
    return index.keys, index.ids.tolist(), index.stamps.tolist(), features, index.store.manifest.broken


def assert_same(index: PictureIndex, other: PictureIndex) -> None:
    for mine, theirs in zip(contents(index), contents(other), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
    for text in TEXTS:
        assert index.search(text) == other.search(text)


# ---------------------------------------------------------------------------------------------------------------------
# What is found
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_it_finds_what_the_evaluation_finds(model, processor, pictures, tmp_path, weight):
    scores = score_all(model, processor, pictures, [[text] for text in TEXTS] + [["x"]] * 8, k=5).text_to_image
    index = PictureIndex.build(model, processor, pictures, tmp_path / "index")
    for number, text in enumerate(TEXTS):
        found = index.search(text, rerank=0)
        assert keys(found) == scores.numbers[number].tolist()
        assert torch.allclose(torch.tensor([hit.similarity for hit in found]), scores.similarities[number], atol=1e-6)
        assert all(hit.match is None and hit.score == hit.similarity for hit in found)
        found = index.search(text, k=5, rerank=5, itc_weight=weight)
        assert keys(found) == scores.reranked(weight)[number].tolist()
        expected = scores.scores(weight)[number].sort(descending=True).values
        assert torch.allclose(torch.tensor([hit.score for hit in found]), expected, atol=1e-5)
    assert len({hit.key for text in TEXTS for hit in index.search(text, k=1)}) > 1
    assert_colleagues_can_read(tmp_path / "index")


def test_the_probability_is_that_of_the_model(model, processor, index):
    hit = index.search(TEXTS[1], k=1)[0]
    inputs = processor(images=index.picture(hit.key), text=TEXTS[1], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).itm_logits
    assert hit.match == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
    assert hit.score == pytest.approx((logits[0, 1] - logits[0, 0]).item(), abs=1e-5)


def test_hits_that_are_not_matched_follow(index):
    found, by_cosine = index.search(TEXTS[0], k=12, rerank=3), index.search(TEXTS[0], k=12, rerank=0)
    assert [hit.match is None for hit in found] == [False] * 3 + [True] * 9
    assert set(keys(found)[:3]) == set(keys(by_cosine)[:3]) and keys(found)[3:] == keys(by_cosine)[3:]


def test_a_picture_finds_itself_and_its_likes(index, pictures):
    found = index.search(pictures[3].convert("RGBA"), k=3)
    assert found[0].key == "2019/03.PNG" and found[0].similarity == pytest.approx(1, abs=1e-5)
    assert found[0].match is None and found[0].similarity > found[1].similarity > found[2].similarity


def test_there_are_never_more_than_there_are(index):
    assert len(index) == 12 == len(index.search("red", k=500)) == len(index.search("red", k=500, rerank=0))
    index.remove(index.keys[1:])
    assert len(index.search("red", k=5)) == 1
    index.remove(index.keys)
    assert index.search("red") == [] == index.search("red", rerank=0) and len(index) == 0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_text_and_many_pictures_are_matched_as_one_picture_and_many_texts(config, processor, pictures, layers):
    config.text_config.num_multimodal_layers = layers
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.2
    model = AlbefForPreTraining(config).eval().double()
    with torch.no_grad():
        for part in model.parameters():  # biases too, which are born zero
            part.add_(0.1 * torch.randn_like(part))
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].double()
        states = model.get_image_features(pixels).last_hidden_state
    caption = "two dogs and an extraordinary cat"
    text = encode_texts(model, processor, [caption])
    one_by_one = torch.cat([match(model, one, text, torch.tensor([0])) for one in states.split(1)])
    assert torch.allclose(match_pictures(model, states, text), one_by_one, atol=1e-12)
    assert one_by_one.std(0).min() > 1e-3

    class Adapted(torch.nn.Linear):  # its weight is not all that it does
        def forward(self, states):
            return super().forward(states).tanh()

    multimodal = model.albef.multimodal_model
    for attention in (multimodal.layers[0].cross_attn, multimodal.layers[-1].self_attn):
        attention.k_proj.__class__ = Adapted
        text = encode_texts(model, processor, [caption])
        expected = model(
            **processor(text=[caption] * len(states), return_tensors="pt"), pixel_values=pixels
        ).itm_logits
        adapted = torch.cat([match(model, one, text, torch.tensor([0])) for one in states.split(1)])
        assert torch.allclose(adapted, expected, atol=1e-12)
        assert torch.allclose(match_pictures(model, states, text), expected, atol=1e-12)
        assert not torch.allclose(adapted, one_by_one)


def test_candidates_are_encoded_once_as_far_as_memory_allows(index, encoded, monkeypatch):
    encoded.clear()
    plenty = index.search(TEXTS[0])
    assert sum(encoded) == 12 and index.search(TEXTS[0]) == plenty and sum(encoded) == 12
    index.encoded.clear()
    monkeypatch.setattr(index_module, "KEPT_VALUES", 5 * (2 * 2 + 1) * 32)  # five pictures of four patches
    scarce = index.search(TEXTS[0])
    assert len(index.encoded) == 5
    again = index.search(TEXTS[0])
    assert sum(encoded) == 12 + 12 + 7 and len(index.encoded) == 5
    assert keys(plenty) == keys(scarce) == keys(again)
    assert [hit.score for hit in again] == pytest.approx([hit.score for hit in plenty], abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Where pictures come from
# ---------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_through(index):
    assert index.keys == sorted(f"{'2019/' if number % 2 else ''}{number:02}.PNG" for number in range(12))
    assert index.broken == {"broken.jpg": "image_broken"} and index.broken_counts() == {"image_broken": 1}
    assert index.broken_told() == "image_broken 1 (first broken.jpg)"


def test_lists_of_paths_have_every_file_once(model, processor, album, tmp_path, monkeypatch):
    monkeypatch.chdir(album)
    paths = ["00.PNG", album / "00.PNG", "2019/../02.PNG", album / "missing.png"]
    index = PictureIndex.build(model, processor, paths, tmp_path / "index")
    assert index.keys == [str(album / "00.PNG"), str(album / "02.PNG")]
    assert index.broken == {str(album / "missing.png"): "image_missing"}
    monkeypatch.chdir(tmp_path)
    assert index.search(index.picture(index.keys[1]), k=1)[0].key == index.keys[1]


def test_what_yields_pictures_will_do(model, processor, album, pictures, tmp_path):
    index = PictureIndex.build(model, processor, sorted(album.glob("*.PNG")), tmp_path / "index")
    again = PictureIndex.build(model, processor, (path for path in album.glob("*.PNG")), tmp_path / "again")
    assert {*again.keys} == {*index.keys} and again.add(album.glob("2019/*.PNG"), batch_size=np.int64(2)) == 6
    rows = PictureIndex.build(model, processor, iter(pictures), tmp_path / "rows")
    assert PictureIndex.load(tmp_path / "rows", model, processor, iter(pictures)).search("red") == rows.search("red")
    with pytest.raises(ValueError, match="The pictures are a int"):
        PictureIndex.load(tmp_path / "rows", model, processor, 3)
    with pytest.raises(ValueError, match="The pictures are a NoneType"):
        rows.add(None)


def test_alike_pictures_are_all_found(model, processor, pictures, tmp_path):
    index = PictureIndex.build(model.train(), processor, [pictures[0], pictures[1], pictures[0]], tmp_path / "index")
    assert model.training  # and yet the same picture has the same features, without dropout
    found = index.search("red", k=3)
    assert sorted(keys(found)) == [0, 1, 2]
    scores = {hit.key: hit.score for hit in found}
    assert scores[0] == pytest.approx(scores[2], abs=1e-5) and abs(scores[0] - scores[1]) > 1e-3


def test_datasets_are_searched_by_row(model, processor, album, pictures, tmp_path):
    paths = [str(album / "00.PNG"), str(album / "broken.jpg"), str(album / "02.PNG")]
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "photo": paths}).cast_column("photo", datasets.Image())
    index = PictureIndex.build(model, processor, rows, tmp_path / "index")
    assert index.keys == [0, 2] and index.broken == {1: "image_broken"}
    assert index.picture(2).tobytes() == pictures[2].tobytes()
    assert index.add(pictures[4:6]) == 2 and index.keys == [0, 2, 3, 4]
    expected = index.search("red")

    bare = PictureIndex.load(tmp_path / "index", model, processor)
    assert sorted(keys(bare.search("red", rerank=0))) == [0, 2, 3, 4]
    with pytest.raises(ValueError, match="pictures=.*rerank=0"):
        bare.search("red")
    with pytest.raises(ValueError, match="pictures="):
        bare.picture(2)
    assert bare.add([pictures[7]]) == 1 and bare.keys == [0, 2, 3, 4, 5]
    bare.remove([5])
    with pytest.raises(ValueError, match="Row . is not the picture that was indexed"):
        PictureIndex.load(tmp_path / "index", model, processor, pictures[:5]).search("red")
    whole = [rows[0]["photo"], "", pictures[2], *pictures[4:6]]
    again = PictureIndex.load(tmp_path / "index", model, processor, [{"image": row} for row in whole])
    with pytest.raises(ValueError, match="Row [02] is not"):  # decoded, they are no longer what was in the rows
        again.search("red")
    assert len(expected) == 4


def test_photographs_are_upright(model, processor, tmp_path):
    picture, exif = noise(1, (40, 60)), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    (tmp_path / "album").mkdir()
    picture.save(tmp_path / "album" / "turned.png", exif=exif)
    index = PictureIndex.build(model, processor, tmp_path / "album", tmp_path / "index")
    assert index.picture("turned.png").size == (60, 40)
    assert index.search(picture.transpose(Image.Transpose.ROTATE_270), k=1)[0].similarity == pytest.approx(1, abs=1e-5)


def test_names_may_be_anything(model, processor, pictures, tmp_path):
    (tmp_path / "album").mkdir()
    names = ["é 漢字.png", "<b>&.png", "a\nb.png", os.fsdecode(b"\xff.png")]
    for name, picture in zip(names, pictures, strict=False):
        picture.save(tmp_path / "album" / name)
    PictureIndex.build(model, processor, tmp_path / "album", tmp_path / "index")
    index = PictureIndex.load(tmp_path / "index", model, processor)
    assert sorted(keys(index.search("red"))) == sorted(names)
    assert "&lt;b&gt;&amp;.png" in index_module._page(index, "<i>red</i>", index.search("red"), 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# What changes
# ---------------------------------------------------------------------------------------------------------------------


def test_pictures_come_and_go(index, model, processor, album, tmp_path):
    noise(20).save(tmp_path / "elsewhere.png")
    assert index.add([album / "00.PNG", tmp_path / "elsewhere.png"]) == 1  # one is there already
    assert index.keys[-1] == str(tmp_path / "elsewhere.png")
    index.remove(["00.PNG", "2019/03.PNG"])
    expected = [key for key in index.keys if key not in ("00.PNG", "2019/03.PNG")]
    loaded = PictureIndex.load(tmp_path / "index", model, processor)
    for one in (index, loaded):
        assert one.keys == expected and sorted(keys(one.search("red", k=99))) == sorted(expected)
        assert one.search(noise(20), k=1)[0].key == str(tmp_path / "elsewhere.png")
        assert not one.changes()
    with pytest.raises(ValueError, match="'00.PNG' is not in the index; .* such as '02.PNG'"):
        index.remove(["00.PNG"])
    # What was removed is not brought back, and what was added stays.
    built = PictureIndex.build(model, processor, album, tmp_path / "index")
    assert built.keys == expected
    assert loaded.add([album / "00.PNG"]) == 1 and len(loaded) == 12
    assert loaded.search(noise(0), k=1)[0].similarity == pytest.approx(1, abs=1e-5)


def test_pictures_from_elsewhere_are_brought_up_to_date(index, model, processor, album, tmp_path, encoded):
    places = [tmp_path / f"elsewhere{number}.png" for number in range(3)]
    for number, place in enumerate(places):
        noise(20 + number).save(place)
    index.add(places)
    noise(30, (50, 50)).save(places[0])
    content, time_of_change = places[1].read_bytes(), places[1].stat().st_mtime_ns
    places[1].unlink()
    changes = index.changes()
    assert (changes.changed, changes.missing) == ([str(places[0])], [str(places[1])])
    encoded.clear()
    built = PictureIndex.build(model, processor, album, index.store.folder)
    assert encoded == [] and len(built) == 13 and not built.changes()
    assert built.broken_counts() == {"image_broken": 1, "image_outside_root": 1, "image_missing": 1}
    assert f"image_missing 1 (first {places[1]})" in index_module._told(built)
    assert built.add(places[:1]) == 1 and encoded == [1]  # which names it
    assert built.search(noise(30, (50, 50)), k=1)[0].similarity == pytest.approx(1, abs=1e-5)
    places[1].write_bytes(content)  # as a disk that was not there
    os.utime(places[1], ns=(0, time_of_change))
    built = PictureIndex.build(model, processor, album, index.store.folder)
    assert len(built) == 15 and built.broken_counts() == {"image_broken": 1}

    built.remove([str(places[1])])
    next(built.store.folder.glob("features_*")).unlink()  # whose keys nobody can read any more
    mended = PictureIndex.build(model, processor, album, index.store.folder)
    mended.add([places[0], places[2]])  # their stamps were in that file
    assert sorted(mended.keys) == sorted(built.keys) and {str(places[0]), str(places[2])} < {*mended.keys}


def test_an_index_and_its_pictures_can_be_moved_and_tell_nothing_of_where_they_were(command, album, tmp_path, encoded):
    (tmp_path / "home").mkdir()
    command("build", album, "--model", "../model", "--index", "../home/index")
    for path in (tmp_path / "home" / "index").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    for name in ("home", "album", "model"):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "new" / name)
    table = command("search", "red", "--index", tmp_path / "new" / "home" / "index")
    assert len(table.splitlines()) == 11 and "not up to date" not in command.errors
    told = command("info", "--index", tmp_path / "new" / "home" / "index")
    assert f"of: {tmp_path / 'new' / 'album'}" in told and f"built with: {tmp_path / 'new' / 'model'}," in told

    (tmp_path / "new" / "album").rename(tmp_path / "new" / "photographs")
    command("search", "red", "--index", tmp_path / "new" / "home" / "index")
    assert "the folder has moved: say where it is with --folder, or build" in command.errors
    (tmp_path / "new" / "other").mkdir()
    noise(1).save(tmp_path / "new" / "other" / "00.PNG")
    where = ("--model", tmp_path / "new" / "model", "--index", tmp_path / "new" / "home" / "index")
    with pytest.raises(SystemExit, match="holds an index of .*album, not of .*other"):
        command("build", tmp_path / "new" / "other", *where)
    encoded.clear()
    (tmp_path / "new" / "model").rename(tmp_path / "new" / "another")
    where = ("--index", tmp_path / "new" / "home" / "index")
    folder, model = tmp_path / "new" / "photographs", tmp_path / "new" / "another"
    assert "12 pictures" in command("build", folder, "--model", model, *where) and not encoded
    assert "not up to date" not in (command("search", "red", *where) and command.errors)


def test_a_folder_that_shares_no_picture_is_not_the_one_that_was_there(index, model, processor, album, tmp_path):
    (tmp_path / "other").mkdir()
    noise(60).save(tmp_path / "other" / "60.png")
    index.add([tmp_path / "other" / "60.png"])  # which is where it was, wherever the folder of the index is
    album.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="holds an index of .*album, not of .*other"):
        PictureIndex.build(model, processor, tmp_path / "other", index.store.folder)
    built = PictureIndex.build(model, processor, tmp_path / "moved", index.store.folder)
    assert built.keys == index.keys and not built.changes()


def test_a_changed_folder_is_noticed_and_brought_up_to_date(index, model, processor, album, said, encoded):
    folder = index.store.folder
    index.search(TEXTS[0])
    (album / "00.PNG").unlink()
    noise(50, (50, 50)).save(album / "02.PNG")
    noise(51).save(album / "new.png")
    changes = index.changes()
    assert (changes.new, changes.changed, changes.missing) == (["new.png"], ["02.PNG"], ["00.PNG"])
    assert str(changes) == "1 new (first new.png), 1 changed (first 02.PNG), 1 missing (first 00.PNG)"
    for rerank in (128, 0):
        said.clear()
        assert "00.PNG" not in keys(index.search(TEXTS[0], k=20, rerank=rerank))
        assert "1 of the 12 best candidates are missing, and left out (first 00.PNG)" in said[0]
        assert "not what they were when indexed (first 02.PNG)" in said[1]
    with pytest.raises(ValueError, match="'00.PNG' cannot be read any more.*Build the index again"):
        index.picture("00.PNG")
    encoded.clear()
    built = PictureIndex.build(model, processor, album, folder)
    assert encoded == [2] and not built.changes() and len(built) == 12
    assert built.search(noise(50, (50, 50)), k=1)[0].similarity == pytest.approx(1, abs=1e-5)
    assert sorted(built.keys) == sorted({*index.keys, "new.png"} - {"00.PNG"})
    noise(0).save(album / "broken.jpg")  # repaired
    built = PictureIndex.build(model, processor, album, folder)
    assert not built.broken and "broken.jpg" in built.keys
    (album / "broken.jpg").write_bytes(b"broken again")
    built = PictureIndex.build(model, processor, album, folder)
    assert built.broken_counts() == {"image_broken": 1} and "broken.jpg" not in built.keys


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What it warns of."""
    lines: list[str] = []
    monkeypatch.setattr(index_module.logger, "warning", lines.append)
    type(index_module.logger).warning_once.cache_clear()  # of what other tests were warned of
    return lines


def test_small_files_are_joined(model, processor, album, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "PART_SECONDS", -1)
    index = PictureIndex.build(model, processor, album, tmp_path / "index", batch_size=2)
    assert len(index.shards) == 1
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 5)
    noise(30).save(album / "a.png")
    index.add([album / "a.png"])
    noise(31).save(album / "b.png")
    index.add([album / "b.png"])
    assert [len(shard.keys) for shard in index.shards] == [12, 2]
    index.remove(index.keys[:9])
    assert [len(shard.keys) for shard in index.shards] == [5]
    assert sorted(path.suffix for path in (tmp_path / "index").iterdir()) == ["", ".faiss", ".json", ".safetensors"]
    assert index.search(noise(31), k=1)[0].key == "b.png"
    other = PictureIndex.build(model, processor, [album / key for key in index.keys], tmp_path / "other")
    assert keys(index.search("x")) == [str(Path(key).relative_to(album)) for key in keys(other.search("x"))]


# ---------------------------------------------------------------------------------------------------------------------
# What interrupts
# ---------------------------------------------------------------------------------------------------------------------

SLOW_BUILD = """
import sys, time
from albef_hf.search import index as index_module
from albef_hf.utils import progress
from albef_hf.search.index import PictureIndex, main
progress.SECONDS_BETWEEN_LINES = 0
encode = PictureIndex._encode
PictureIndex._encode = lambda *arguments: time.sleep(0.2) or encode(*arguments)
index_module.PART_SECONDS = -1
main(sys.argv[1:])
"""


def kill_build(words: list[str]) -> None:
    """Build in another process, and kill it without a warning when 4 of the 13 pictures are done."""
    with subprocess.Popen([sys.executable, "-c", SLOW_BUILD, *words], stderr=subprocess.PIPE, text=True) as process:
        told = ""
        while not re.search(r"\b4/13 ", told) and process.poll() is None:
            told += process.stderr.read(1)
        process.kill()
    assert process.returncode == -signal.SIGKILL, told


def interrupt_build(words: list[str]) -> None:
    """Build, and be interrupted from the keyboard in the third batch."""
    encode, left = PictureIndex._encode, iter(range(2))

    def interrupted(self, pixels):
        if next(left, None) is None:
            signal.raise_signal(signal.SIGINT)
        return encode(self, pixels)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which who started the tests may have ignored
    try:
        with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit, match="the same command goes on"):
            patched.setattr(PictureIndex, "_encode", interrupted)
            main(words)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stop", [kill_build, interrupt_build])
def test_a_build_that_is_stopped_goes_on(model, processor, album, tmp_path, encoded, stop):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    words = ["build", album, "--model", tmp_path / "model", "--index", tmp_path / "index", "--batch-size", "2"]
    stop([str(word) for word in words])
    with pytest.raises(ValueError, match="not finished: build it again, which goes on"):
        PictureIndex.load(tmp_path / "index", model, processor)
    encoded.clear()
    index = PictureIndex.build(model, processor, album, tmp_path / "index", batch_size=2)
    assert 0 < sum(encoded) < 12
    assert_same(index, PictureIndex.build(model, processor, album, tmp_path / "clean", batch_size=2))


@pytest.mark.parametrize("rows", [False, True])
def test_an_interrupted_addition_has_not_happened(model, processor, album, pictures, tmp_path, rows, monkeypatch):
    start, more = (pictures[:2], pictures[2:5]) if rows else (album, [tmp_path / f"{n}.png" for n in range(3)])
    for path in [] if rows else more:
        noise(int(path.stem) + 50).save(path)
    index = PictureIndex.build(model, processor, start, tmp_path / "index2")
    before, encode = index.keys, PictureIndex._encode
    calls = iter([True, False])

    def interrupted(self, pixels):
        if next(calls):
            return encode(self, pixels)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PictureIndex, "_encode", interrupted)
        index.add(more, batch_size=1)
    assert index.keys == before
    index.remove(before[:1])
    assert index.keys == before[1:]
    assert index.add(more, batch_size=1) == 3
    again = PictureIndex.load(tmp_path / "index2", model, processor)
    assert again.keys == index.keys and len(set(again.keys)) == len(before) + 2


def test_an_index_can_be_loaded_while_it_changes(index, model, processor, monkeypatch):
    use = PictureIndex._use

    def overtaken(self):
        monkeypatch.setattr(PictureIndex, "_use", use)
        index.remove([index.keys[0]])  # which removes the files that this one is about to read
        return use(self)

    monkeypatch.setattr(PictureIndex, "_use", overtaken)
    assert PictureIndex.load(index.store.folder, model, processor).keys == index.keys


def test_copies_without_their_times_are_encoded_once(index, model, processor, album, tmp_path, encoded):
    copies = tmp_path / "copies"
    for path in album.rglob("*"):
        if path.is_file():
            (copies / path.relative_to(album)).parent.mkdir(parents=True, exist_ok=True)
            (copies / path.relative_to(album)).write_bytes(path.read_bytes())
    moved = PictureIndex.load(index.store.folder, model, processor, copies)
    first = moved.search("red")
    encoded.clear()
    assert moved.search("red") == first and not encoded


def test_files_of_others_are_left_alone(model, processor, album, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    names = ("features_important.npy", "vectors_2024.csv", ".draft.unfinished")
    for name in names:
        (folder / name).write_text("mine")
    with pytest.raises(ValueError, match="holds other things"):
        PictureIndex.build(model, processor, album, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_killed_change_leaves_the_old_index_or_the_new_one(index, model, processor, album, tmp_path, monkeypatch):
    """Killed at each of the moments at which a file is to be written, while two pictures come."""
    before = index.keys
    for seed in (60, 61):
        noise(seed).save(album / f"new{seed}.png")
    monkeypatch.setattr(index_module, "PART_SECONDS", -1)
    survived = []

    class Killed(BaseException):
        pass

    for moment in range(20):
        left = iter(range(moment))

        @contextlib.contextmanager
        def written_or_dead(path, left=left):
            if next(left, None) is None:
                raise Killed
            with files.written_aside(path) as aside:
                yield aside

        monkeypatch.setattr(feature_store, "written_aside", written_or_dead)
        try:
            PictureIndex.build(model, processor, album, tmp_path / "index", batch_size=1)
        except Killed:
            loaded = PictureIndex.load(tmp_path / "index", model, processor)
            assert loaded.keys == before and len(loaded.search("red", k=99)) == 12
            survived.append(len(loaded.store.manifest.parts))
        else:
            break
    assert survived[0] == 0 and max(survived) == 2 and len(survived) >= 3
    loaded = PictureIndex.load(tmp_path / "index", model, processor)
    assert sorted(loaded.keys) == sorted([*before, "new60.png", "new61.png"])
    assert loaded.search(noise(61), k=1)[0].key == "new61.png"


def test_one_process_at_a_time_changes_it(index, model, processor, album):
    from filelock import FileLock

    with FileLock(index.store.folder / ".lock"):
        for change in (lambda: index.add([album / "00.PNG"]), lambda: index.remove(["00.PNG"])):
            with pytest.raises(ValueError, match="Another process is changing"):
                change()
        assert index.search("red")
    PictureIndex.load(index.store.folder, model, processor).remove(["00.PNG"])
    index.remove(["02.PNG"])  # which sees what another one has done
    assert len(index) == 10 and "00.PNG" not in index.keys


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("kind", ["features", "vectors"])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flipped", "truncated", "missing"])
def test_a_damaged_index_is_refused_and_mended(index, model, processor, album, tmp_path, said, kind, damage):
    expected, (path,) = contents(index), list((tmp_path / "index").glob(f"{kind}_*"))
    damage(path)
    if (kind, damage) == ("features", flip):  # of a million pictures not every byte is read each time
        assert PictureIndex.load(tmp_path / "index", model, processor).store.deep_fault(path.name)
    else:
        with pytest.raises(ValueError, match=f"damaged: .*{path.name}.* Build the index again"):
            PictureIndex.load(tmp_path / "index", model, processor)
    mended = PictureIndex.build(model, processor, album, tmp_path / "index", batch_size=4)
    assert path.name in said[0] and "made anew" in said[0]
    assert mended.keys == expected[0] and torch.equal(contents(mended)[3], expected[3])
    PictureIndex.load(tmp_path / "index", model, processor).search("red")


def test_a_damaged_manifest_is_refused(index, model, processor, tmp_path):
    for content in ("", "[]", "{}", '{"format": 2}', '{"format": 1, "unheard": 3}', "\x00\x01", "[" * 100_000):
        (tmp_path / "index" / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"manifest.json cannot be read .* Remove .*index, and build the index"):
            PictureIndex.load(tmp_path / "index", model, processor)


def rewrite(folder: Path, change: Callable[[dict], None], columns: dict | None = None, keys: object = None) -> None:
    """Change the manifest of an index and the content of its first shard, as somebody would who knows how."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (name,) = manifest["shards"]
    with safe_open(folder / name, "pt") as file:
        tensors = {column: file.get_tensor(column) for column in ("ids", "stamps", "features")}
        old_keys = json.loads(file.metadata()["keys"])
    save_file(tensors | (columns or {}), folder / name, {"keys": json.dumps(old_keys if keys is None else keys)})
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": files.digest(folder / name)}
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("named", [False, True], ids=["by its root", "by the caller"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_index_of_somebody_else_shows_no_private_image(index, model, processor, album, tmp_path, named, elsewhere):
    noise(5).save(tmp_path / "private.png")
    noise(6).save(album / "other.png")  # which its owner has not indexed
    private = [str(tmp_path / "private.png"), "../private.png", f"2019/../../{tmp_path.name}/private.png"]
    private += ["/etc/passwd", "nul\0", *([] if named else ["other.png"])]
    keys_of_attacker = [*private, *index.keys[len(private) :]]
    rewrite(index.store.folder, lambda it: it.update(elsewhere=private[:1] * elsewhere), keys=keys_of_attacker)
    loaded = PictureIndex.load(index.store.folder, model, processor, album if named else None)
    for key in private:
        with pytest.raises(ValueError, match="cannot be read any more: image_(missing|outside_root)"):
            loaded.picture(key)
    assert {hit.key for hit in loaded.search("red", k=99)} == {*keys_of_attacker} - {*private}
    assert not {hit.key for hit in loaded.search("red", k=99, rerank=0)} & {*private} - {"other.png"}


@pytest.mark.parametrize("broken", [False, True])
def test_building_an_index_of_somebody_else_reads_no_private_image(index, model, processor, album, tmp_path, broken):
    private, root = str(tmp_path / "private.png"), index.store.folder
    noise(5).save(private)
    entries = {"elsewhere": [private], "broken": [[private, "image_missing", None]] * broken}
    rewrite(root, lambda it: it.update(entries), keys=None if broken else [private, *index.keys[1:]])
    loaded = PictureIndex.load(root, model, processor, album)
    if not broken:
        with pytest.raises(ValueError, match="image_outside_root: .*: add it, if you want it indexed.$"):
            loaded.picture(private)
    built = PictureIndex.build(model, processor, album, root)
    assert private not in built.keys and built.broken[private] == "image_outside_root"
    assert built.add([private]) == 1 and built.picture(private)


def test_links_are_read_where_they_lead_out_of_the_folder_only_by_whoever_indexed_them(
    model, processor, album, tmp_path
):
    private, link = tmp_path / "private.png", album / "link.png"
    noise(5).save(private)
    link.symlink_to(private)
    (album / "inside.png").symlink_to(album / "00.PNG")
    (tmp_path / "linked").symlink_to(album)
    owner = PictureIndex.build(model, processor, tmp_path / "linked", tmp_path / "index")
    assert owner.picture("link.png") and PictureIndex.load(tmp_path / "index", model, processor).picture("link.png")
    loaded = PictureIndex.load(tmp_path / "index", model, processor, tmp_path / "linked")
    assert loaded.picture("link.png") and loaded.picture("00.PNG") and loaded.picture("inside.png")
    noise(6, (50, 50)).save(private)  # no longer what was indexed, as where another one's index names a link
    with pytest.raises(
        ValueError, match="link.png is not the file that was indexed: add it, if you want it indexed.$"
    ):
        loaded.picture("link.png")
    assert "link.png" not in keys(loaded.search("red", k=99))
    assert owner.picture("link.png").size == (50, 50)


def test_an_index_of_somebody_else_lists_no_folder(index, model, processor, album, tmp_path):
    (tmp_path / "private").mkdir()
    noise(5).save(tmp_path / "private" / "private.png")
    for root in ("../private", "..", "/", str(tmp_path / "private")):
        rewrite(index.store.folder, lambda it, root=root: it.update(root=root))
        changes = PictureIndex.load(index.store.folder, model, processor).changes()
        assert not changes.new and len(changes.missing) == 12
    assert PictureIndex.load(index.store.folder, model, processor, tmp_path / "private").changes().new == [
        "private.png"
    ]


def test_what_was_indexed_is_read_and_what_has_changed_since_if_it_is_named(model, processor, album, tmp_path):
    noise(20).save(tmp_path / "elsewhere.png")
    index = PictureIndex.build(model, processor, album, tmp_path / "index")
    index.add([tmp_path / "elsewhere.png"])
    for path in (album / "00.PNG", tmp_path / "elsewhere.png"):  # as a copy or an archive rounds it
        os.utime(path, ns=(0, path.stat().st_mtime_ns // 10**9 * 10**9))
    loaded = PictureIndex.load(tmp_path / "index", model, processor)
    assert len(loaded.search("red", k=99)) == 13 and loaded.picture(str(tmp_path / "elsewhere.png"))
    noise(30, (50, 50)).save(album / "00.PNG")
    with pytest.raises(ValueError, match="00.PNG is not the file that was indexed: name its folder"):
        loaded.picture("00.PNG")
    assert "00.PNG" not in keys(loaded.search("red", k=99)) and "00.PNG" in loaded.changes().changed
    assert PictureIndex.load(tmp_path / "index", model, processor, album).picture("00.PNG").size == (50, 50)
    paths = [album / key for key in ("00.PNG", "02.PNG")]
    listed = PictureIndex.build(model, processor, paths, tmp_path / "listed")
    noise(31, (60, 50)).save(paths[0])
    with pytest.raises(ValueError, match="cannot be read any more"):
        PictureIndex.load(tmp_path / "listed", model, processor).picture(str(paths[0]))
    assert PictureIndex.load(tmp_path / "listed", model, processor, paths).picture(listed.keys[0]).size == (60, 50)


def test_an_index_that_was_tampered_with_is_refused(index, model, processor, tmp_path):
    def load(change: Callable[[dict], None], columns: dict | None = None, keys: object = None) -> PictureIndex:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        rewrite(shutil.copytree(index.store.folder, tmp_path / "copy"), change, columns, keys)
        return PictureIndex.load(tmp_path / "copy", model, processor)

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
        with pytest.raises(ValueError, match=f"manifest.json cannot be read .its .*{name}.* cannot be right"):
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
    for wrong in (5, index.keys[1]):  # of another type, and twice
        with pytest.raises(ValueError, match="The index is damaged: .* Build the index again"):
            load(lambda manifest: None, None, [wrong, *index.keys[1:]])
    assert load(lambda manifest: None, {}).search("red") == index.search("red")


def test_other_weights_are_refused(index, model, processor, album, config, tmp_path):
    other = AlbefForPreTraining(config).eval()
    other.load_state_dict(model.state_dict())
    assert len(PictureIndex.load(tmp_path / "index", other, processor)) == 12  # the same weights
    with torch.no_grad():
        other.albef.text_model.layers[1].mlp.fc1.bias[0] += 1e-3
    for use in (
        lambda: PictureIndex.load(tmp_path / "index", other, processor),
        lambda: PictureIndex.build(other, processor, album, tmp_path / "index"),
    ):
        with pytest.raises(ValueError, match="built with other weights .* load that one .* or build an index in an"):
            use()


def test_what_cannot_be_indexed_is_refused(index, model, processor, album, pictures, tmp_path):
    def build(what, folder="other", **settings):
        return PictureIndex.build(model, processor, what, tmp_path / folder, **settings)

    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"")
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    for what, reason in (
        (tmp_path / "empty", "There is no picture in .*empty or below"),
        (tmp_path / "texts", "There is no picture in .*texts or below"),
        (tmp_path / "nowhere", "nowhere is not a folder"),
        (album / "00.PNG", "is not a folder; give one, or a list"),
        (tmp_path / "broken", r"None of the 1 pictures can be read: image_broken 1 \(first a.jpg\)"),
        ([], "list or dataset is empty"),
        ([pictures[0], "a.png"], "Some of the pictures are paths"),
        (None, "The pictures are a NoneType: give a folder, a datasets.Dataset, or a list"),
        (3, "The pictures are a int: give a folder"),
        (pictures[0], "The pictures are a Image: give a folder"),
        ({"a.png", "b.png"}, "The pictures are a set: give a folder"),
        (b"a.png", "The pictures are a bytes: give a folder"),
        (datasets.DatasetDict(train=rows, test=rows), "a DatasetDict: give one of its 'train', 'test'"),
        (iter(()), "list or dataset is empty"),
        (rows, "no column of pictures, only text"),
    ):
        with pytest.raises(ValueError, match=reason):
            build(what, "b" if what == tmp_path / "broken" else "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="holds other things, such as"):
        build(album, "album")
    with pytest.raises(ValueError, match="holds an index of .*album, not of .*empty2"):
        (tmp_path / "empty2").mkdir()
        noise(1).save(tmp_path / "empty2" / "a.png")
        build(tmp_path / "empty2", "index")
    with pytest.raises(ValueError, match="either files or rows"):
        index.add(pictures)
    for use in (index.add, lambda nothing: PictureIndex.load(tmp_path / "index", model, processor, nothing)):
        with pytest.raises(ValueError, match="list or dataset is empty"):
            use([])
    with pytest.raises(ValueError, match="keys are '00.PNG'; give a list"):
        index.remove("00.PNG")
    with pytest.raises(ValueError, match="holds no index. Make one: python -m"):
        PictureIndex.load(tmp_path / "texts", model, processor)
    with pytest.raises(ValueError, match="A AlbefModel cannot search: load the model as AlbefForRetrieval"):
        PictureIndex.load(tmp_path / "index", model.albef, processor)
    for factory in ("Magic", "LSH", "IMI2x4,Flat", "BFlat"):
        with pytest.raises(ValueError, match=f"faiss cannot make the factory '{factory}' .*Examples: Flat"):
            build(album, factory=factory)
    for factory in ("Flat,IDMap", "IVF2,Flat,RFlat"):
        with pytest.raises(ValueError, match=f"faiss cannot make '{factory}' of 12 pictures: .*add_with_ids.*'Flat'"):
            build(album, "index", factory=factory)
    assert len(PictureIndex.load(tmp_path / "index", model, processor)) == 12


def test_queries_are_checked(index, said):
    for query in ("", "   ", "?!.", "\n"):
        with pytest.raises(ValueError, match="has no word in it"):
            index.search(query)
    for query in (None, 3, ["red"], b"red"):
        with pytest.raises(ValueError, match="give a text or a PIL picture"):
            index.search(query)
    for settings in ({"k": 0}, {"k": 2.5}, {"rerank": -1}, {"rerank": None}, {"k": np.int64(0)}, {"k": "3"}):
        with pytest.raises(ValueError, match="it has to be a whole number from"):
            index.search("red", **settings)
    for weight in (float("nan"), float("inf"), "1", None, torch.ones(2)):
        with pytest.raises(ValueError, match="itc_weight is .*it has to be a finite number, such as 0 or 1"):
            index.search("red", itc_weight=weight)
    counted = index.search("red", k=np.int64(3), rerank=torch.tensor(5), itc_weight=np.float32(0.5))
    assert counted == index.search("red", k=3, rerank=5, itc_weight=0.5)
    index.search("red")  # now all images are encoded, and go in the same batches from here on
    assert not said
    long = "two dogs in the snow " * 500  # more than 10,000 characters
    assert index.search(long) == index.search(" ".join(long.split()[:29]))  # and [CLS]
    assert said == ["Of the 2501 tokens of the query the first 30 are read."]
    assert len(index.search("x" * 10_000)) == 10


# ---------------------------------------------------------------------------------------------------------------------
# faiss
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["IVF3,Flat", "HNSW8", "PCA8,IVF3,Flat", "IVF3,SQ8"])
def test_other_indexes_find_change_and_load(model, processor, album, tmp_path, factory, index):
    built = PictureIndex.build(model, processor, album, tmp_path / "index", factory=factory)  # of the same features
    assert built.store.manifest.built == factory
    for text in TEXTS:
        # More than the lists hold that are searched at first.
        assert sorted(keys(built.search(text, k=12))) == sorted(built.keys)
        assert keys(built.search(text, k=12, rerank=0)) == keys(index.search(text, k=12, rerank=0))
    built.remove(["00.PNG"])
    noise(70).save(album / "new.png")
    assert built.add([album / "new.png"]) == 1
    loaded = PictureIndex.load(tmp_path / "index", model, processor)
    found = keys(loaded.search("red", k=20))
    assert len(found) == len(set(found)) == 12 and "00.PNG" not in found
    assert loaded.search(noise(70), k=1)[0].key == "new.png"


def test_too_few_pictures_for_an_index_are_told(index, model, processor, album, tmp_path):
    with pytest.raises(ValueError, match="faiss cannot make 'IVF64,Flat' of 12 pictures: .*'Flat' needs no training"):
        PictureIndex.build(model, processor, album, tmp_path / "index", factory="IVF64,Flat")
    assert len(PictureIndex.load(tmp_path / "index", model, processor)) == 12  # what was there is still there
    with pytest.raises(ValueError, match="faiss cannot make 'IVF64,Flat'"):
        PictureIndex.build(model, processor, album, tmp_path / "new", factory="IVF64,Flat")
    assert len(PictureIndex.build(model, processor, album, tmp_path / "new", factory="Flat")) == 12


def test_beyond_a_million_it_is_lists(index, model, processor, album, tmp_path, monkeypatch):
    assert [default_factory(count) for count in (1, 10**6, 10**6 + 1, 10**7)] == [
        "Flat",
        "Flat",
        "IVF4096,Flat",
        "IVF16384,Flat",
    ]
    monkeypatch.setattr(faiss_index, "FLAT_UP_TO", 12)
    monkeypatch.setattr(faiss_index, "ivf_lists", lambda count: 4)
    noise(80).save(album / "new.png")
    index.add([album / "new.png"])
    assert index.store.manifest.built == "IVF4,Flat" and len(index.search("red", k=99)) == 13
    index.remove(["new.png"])
    assert index.store.manifest.built == "IVF4,Flat"  # it is not made anew each time that one comes or goes


def test_more_lists_are_searched_where_these_hold_too_few():
    vectors = torch.nn.functional.normalize(torch.randn(500, 16, generator=torch.Generator().manual_seed(0))).numpy()
    ids = np.arange(500) * 3
    index = make_vectors("IVF16,Flat", [(ids[:200], vectors[:200]), (ids[200:], vectors[200:])], 16)
    assert faiss_index.faiss.try_extract_index_ivf(index).nprobe == 1
    exact = [ids[(vectors @ query).argsort()[::-1]] for query in vectors[:5]]
    for query, right in zip(vectors[:5], exact, strict=True):
        assert find(index, query, 1)[0] == right[0]
        assert find(index, query, 500).tolist() == right.tolist() == find(index, query, 9999).tolist()
        assert len(set(find(index, query, 300).tolist())) == 300
    assert faiss_index.faiss.try_extract_index_ivf(index).nprobe == 1


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(model, processor, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder, and returns what it has printed."""
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: object) -> str:
        capsys.readouterr()
        main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        run.errors = said.err
        return said.out

    return run


def test_the_command(command, album, tmp_path, monkeypatch):
    assert "12 pictures are in pictures.index; not readable: image_broken 1" in command(
        "build", album, "--model", "../model"
    )
    table = command("search", "two dogs in the snow", "-k", 3, "--html", "page.html").splitlines()
    assert table[0].split() == ["score", "match", "cosine", "picture"] and table[-1] == "page.html shows them."
    assert len(table) == 5 and all(
        re.fullmatch(r" *[+-]\d+\.\d{3} +0\.\d{4} [+-]\d\.\d{4}  \S+", row) for row in table[1:4]
    )
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("<li>") == 3 and page.count("data:image/jpeg;base64,") == 3 * (1 + 5)  # a heat map of each word
    assert "<h1>two dogs in the snow</h1>" in page and "http" not in page
    score, match, cosine = table[1].split()[:3]
    scores = {"score": score, "match (ITM)": f"{float(match):.1%}", "cosine (ITC)": f"{float(cosine):+.3f}"}
    shown = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page.split("<li>")[1]))
    assert shown.keys() == scores.keys() and shown["score"] == score
    assert all(abs(float(shown[name].rstrip("%")) - float(scores[name].rstrip("%"))) < 0.11 for name in scores)
    assert "of 12 pictures, by model. Score: log-odds of a match (ITM)</p>" in page
    command("search", "red", "--itc-weight", 0.5, "--html", "page.html")
    assert "Score: log-odds of a match (ITM) + 0.5 × cosine (ITC)</p>" in Path("page.html").read_text(encoding="utf-8")
    command("search", "red", "--rerank", 0, "--html", "page.html")
    assert "Score: cosine (ITC)</p>" in Path("page.html").read_text(encoding="utf-8")

    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    table = command("search", "--picture", album / "00.PNG", "--open").splitlines()
    assert table[1].split() == ["+1.000", "-", "+1.0000", "00.PNG"] and opened[0].startswith("file:///")

    noise(90).save(album / "new.png")
    assert "not up to date: 1 new (first new.png)" in (command("search", "red") and command.errors)
    assert command("add", album / "new.png").startswith("1 added. 13 pictures are in")
    assert "not up to date" not in (command("search", "red") and command.errors)
    assert command("remove", "new.png", "00.PNG").startswith("11 pictures are in")
    told = command("info")
    assert "changes since: none" in told and "damage: none" in told and f"of: {album}" in told
    flip(next(Path("pictures.index").glob("features_*")))
    assert "SHA-256" in command("info")


def test_the_command_says_what_is_wrong(command):
    for words, reason in (
        (["search", "red"], "holds no index. Make one"),
        (["search"], "Give a text to search for, or a picture"),
        (["search", "red", "--picture", "a.png"], "Give a text to search for, or a picture"),
        (["build", "nowhere", "--model", "../model"], "is not a folder"),
        (["build", ".", "--model", "../model"], "There is no picture in"),
        (["build", ".", "--model", "../nowhere"], "nowhere"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{reason}"):
            command(*words)


def test_the_command_explains_itself(capsys):
    shown = {}
    for words in ([], ["build"], ["search"], ["add"], ["remove"], ["info"]):
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--help"])
        shown[" ".join(words)] = " ".join(capsys.readouterr().out.split())
    assert "python -m albef_hf.search.index build FOLDER --model you/albef" in shown[""]
    assert "Find pictures by a text or by a picture." in shown["search"] and "none (128)" in shown["search"]
    assert not [name for name, text in shown.items() if "None" in text]


def test_what_is_wrong_is_told_before_the_model_is_loaded(command, album, monkeypatch):
    command("build", album, "--model", "../model")
    monkeypatch.setattr(index_module, "load_model", lambda *arguments: pytest.fail("the model is loaded"))
    for words, reason in (
        (["search", "red", "-k", 0], "k is 0; it has to be a whole number from 1"),
        (["search", "red", "--rerank", -1], "rerank is -1; it has to be a whole number from 0"),
        (["search", "red", "--itc-weight", "nan"], "itc_weight is nan; it has to be a finite number"),
        (["search", "?!"], "has no word in it"),
        (["search", "--picture", "nowhere.png"], "image_missing: nowhere.png"),
        (["search", "red", "--html", "pages/page.html"], "there is no folder pages. Give --html a file"),
        (["search", "red", "--html", album], "is a folder. Give --html a file"),
        (["build", album, "--model", "../model", "--batch-size", 0], "batch_size is 0"),
        (["build", "nowhere", "--model", "../model"], "nowhere is not a folder"),
        (["add", album, "--batch-size", 0], "batch_size is 0"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{reason}"):
            command(*words)


def test_the_page_has_a_place_for_images_of_any_shape_and_maps_without_heat(model, processor, monkeypatch):
    images = [noise(1), Image.new("RGB", (3000, 2), "red"), Image.new("RGB", (1, 3000)), Image.new("L", (1, 1))]
    results = [(str(number), {}, image) for number, image in enumerate(images)]
    page = results_page("a red ball", results, "", model, processor)
    assert page.count("<li>") == 4 and page.count("<img") == 4 * (1 + 3)
    assert results_page(images[1], results, "", model, processor).count("<img") == 1 + 4
    heat = torch.zeros(1, 5, 2, 2).index_fill(1, torch.tensor([0]), 1.0)  # [CLS] alone, of whatever image
    monkeypatch.setattr(
        "albef_hf.search.html_report.matching_heatmaps", lambda model, input_ids, **others: heat[:, :4]
    )
    words, maps = word_maps(model, processor, "a red ball", images[0])
    assert words == ["a", "red", "ball"] and not maps.any()
    assert results_page("a red ball", results, "", model, processor).count("<img") == 4 * (1 + 3)


def test_a_picture_that_cannot_be_read_any_more_has_its_place_on_the_page(command, album):
    command("build", album, "--model", "../model")
    (album / "00.PNG").write_bytes(b"broken since")
    for words in (["red"], ["--picture", album / "02.PNG"]):
        command("search", *words, "--rerank", 0, "-k", 12, "--html", "page.html")
        page = Path("page.html").read_text(encoding="utf-8")
        (place,) = [part for part in page.split("<li>") if "This picture cannot be read any more." in part]
        assert page.count("<li>") == 12 and "<figcaption>00.PNG</figcaption>" in place and "<img" not in place
        assert "<dt>cosine (ITC)</dt>" in place and str(album) not in page


@pytest.mark.parametrize(("words", "goes_on"), [(["build", ".", "--model", "a"], True), (["search", "red"], False)])
def test_an_interruption_promises_nothing_that_is_untrue(monkeypatch, words, goes_on):
    def interrupted(options):
        raise KeyboardInterrupt

    for name in ("_build", "_search"):
        monkeypatch.setattr(index_module, name, interrupted)
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == ("interrupted; the same command goes on" if goes_on else "interrupted")


def test_without_faiss_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[search\]"'):
        runpy.run_path(faiss_index.__file__)
