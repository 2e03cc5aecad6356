"""Tests of building and changing an index."""

import os

import datasets
import numpy as np
import pytest
import torch
from search_fixtures import *  # noqa: F403
from search_fixtures import TEXTS, keys, noise

from albef_hf import AlbefForPreTraining
from albef_hf.search import commands, image_sources
from albef_hf.search.index import ImageIndex


def test_subfolders_are_indexed(index):
    assert index.keys == sorted(f"{'2019/' if number % 2 else ''}{number:02}.PNG" for number in range(12))
    assert index.broken == {"broken.jpg": "image_broken"} and index.broken_counts() == {"image_broken": 1}
    assert index.broken_summary() == "image_broken 1 (first broken.jpg)"


def test_photographs_that_pillow_cannot_read_are_counted(images, tmp_path, monkeypatch):
    images[0].save(tmp_path / "a.png")
    for name in ("b.HEIC", "c.heic", "d.dng", "e.txt"):
        (tmp_path / name).write_bytes(b"")
    lines = []
    monkeypatch.setattr(image_sources.logger, "warning_once", lines.append)
    assert image_sources.ImageFiles(tmp_path).keys(tmp_path) == ["a.png"]
    assert len(lines) == 1 and "cannot read, which are skipped: 1 .dng, 2 .heic." in lines[0]


def test_duplicate_paths_are_indexed_once(model, processor, album, tmp_path, monkeypatch):
    monkeypatch.chdir(album)
    paths = ["00.PNG", album / "00.PNG", "2019/../02.PNG", album / "missing.png"]
    index = ImageIndex.build(model, processor, paths, tmp_path / "index")
    assert index.keys == [str(album / "00.PNG"), str(album / "02.PNG")]
    assert index.broken == {str(album / "missing.png"): "image_missing"}
    monkeypatch.chdir(tmp_path)
    assert index.search(index.image(index.keys[1]), top_k=1)[0].key == index.keys[1]


def test_iterators_are_accepted(model, processor, album, images, tmp_path):
    index = ImageIndex.build(model, processor, sorted(album.glob("*.PNG")), tmp_path / "index")
    again = ImageIndex.build(model, processor, (path for path in album.glob("*.PNG")), tmp_path / "again")
    assert {*again.keys} == {*index.keys} and again.add(album.glob("2019/*.PNG"), batch_size=np.int64(2)) == 6
    rows = ImageIndex.build(model, processor, iter(images), tmp_path / "rows")
    assert ImageIndex.load(tmp_path / "rows", model, processor, iter(images)).search("red") == rows.search("red")
    with pytest.raises(ValueError, match="images is of type int"):
        ImageIndex.load(tmp_path / "rows", model, processor, 3)
    with pytest.raises(ValueError, match="images is of type NoneType"):
        rows.add(None)


def test_datasets_are_searched_by_row(model, processor, album, images, tmp_path):
    paths = [str(album / "00.PNG"), str(album / "broken.jpg"), str(album / "02.PNG")]
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "photo": paths}).cast_column("photo", datasets.Image())
    index = ImageIndex.build(model, processor, rows, tmp_path / "index")
    assert index.keys == [0, 2] and index.broken == {1: "image_broken"}
    assert index.image(2).tobytes() == images[2].tobytes()
    assert index.add(images[4:6]) == 2 and index.keys == [0, 2, 3, 4]
    expected = index.search("red")

    bare = ImageIndex.load(tmp_path / "index", model, processor)
    assert sorted(keys(bare.search("red", rerank_k=0))) == [0, 2, 3, 4]
    with pytest.raises(ValueError, match="images=.*rerank_k=0"):
        bare.search("red")
    with pytest.raises(ValueError, match="images="):
        bare.image(2)
    assert bare.add([images[7]]) == 1 and bare.keys == [0, 2, 3, 4, 5]
    bare.remove([5])
    with pytest.raises(ValueError, match="Row . is missing or not the image that was indexed"):
        ImageIndex.load(tmp_path / "index", model, processor, images[:5]).search("red")
    whole = [rows[0]["photo"], "", images[2], *images[4:6]]
    again = ImageIndex.load(tmp_path / "index", model, processor, [{"image": row} for row in whole])
    with pytest.raises(
        ValueError, match="Row [02] is missing or not"
    ):  # a decoded image has another hash than its file
        again.search("red")
    assert len(expected) == 4


def test_any_file_name_is_accepted(model, processor, images, tmp_path):
    (tmp_path / "album").mkdir()
    names = ["é 漢字.png", "<b>&.png", "a\nb.png", os.fsdecode(b"\xff.png")]
    for name, image in zip(names, images, strict=False):
        image.save(tmp_path / "album" / name)
    ImageIndex.build(model, processor, tmp_path / "album", tmp_path / "index")
    index = ImageIndex.load(tmp_path / "index", model, processor)
    assert sorted(keys(index.search("red"))) == sorted(names)
    assert "&lt;b&gt;&amp;.png" in commands.results_page(index, "<i>red</i>", index.search("red"), 0.0)


def test_add_and_remove(index, model, processor, album, tmp_path):
    noise(20).save(tmp_path / "elsewhere.png")
    assert index.add([album / "00.PNG", tmp_path / "elsewhere.png"]) == 1  # one is there already
    assert index.keys[-1] == str(tmp_path / "elsewhere.png")
    index.remove(["00.PNG", "2019/03.PNG"])
    expected = [key for key in index.keys if key not in ("00.PNG", "2019/03.PNG")]
    loaded = ImageIndex.load(tmp_path / "index", model, processor)
    for one in (index, loaded):
        assert one.keys == expected and sorted(keys(one.search("red", top_k=99))) == sorted(expected)
        assert one.search(noise(20), top_k=1)[0].key == str(tmp_path / "elsewhere.png")
        assert not one.changes()
    with pytest.raises(ValueError, match="'00.PNG' is not in the index. Example of its keys: '02.PNG'"):
        index.remove(["00.PNG"])
    # What was removed is not brought back, and what was added stays.
    built = ImageIndex.build(model, processor, album, tmp_path / "index")
    assert built.keys == expected
    assert loaded.add([album / "00.PNG"]) == 1 and len(loaded) == 12
    assert loaded.search(noise(0), top_k=1)[0].similarity == pytest.approx(1, abs=1e-5)


def test_external_images_are_kept_while_unchanged(index, model, processor, album, tmp_path, encoded_sizes):
    places = [tmp_path / f"elsewhere{number}.png" for number in range(3)]
    for number, place in enumerate(places):
        noise(20 + number).save(place)
    index.add(places)
    noise(30, (50, 50)).save(places[0])
    content, time_of_change = places[1].read_bytes(), places[1].stat().st_mtime_ns
    places[1].unlink()
    changes = index.changes()
    assert (changes.changed, changes.missing) == ([str(places[0])], [str(places[1])])
    encoded_sizes.clear()
    built = ImageIndex.build(model, processor, album, index.store.folder)
    assert encoded_sizes == [] and len(built) == 13 and not built.changes()
    assert built.broken_counts() == {"image_broken": 1, "image_outside_root": 1, "image_missing": 1}
    assert f"image_missing 1 (first {places[1]})" in commands._summary(built)
    assert built.add(places[:1]) == 1 and encoded_sizes == [1]
    assert built.search(noise(30, (50, 50)), top_k=1)[0].similarity == pytest.approx(1, abs=1e-5)
    places[1].write_bytes(content)  # it comes back as it was, but the index no longer records it
    os.utime(places[1], ns=(0, time_of_change))
    for _ in range(2):
        built = ImageIndex.build(model, processor, album, index.store.folder)
        assert len(built) == 14 and built.broken_counts() == {"image_broken": 1, "image_outside_root": 1}
    assert built.add(places[1:2]) == 1 and built.broken_counts() == {"image_broken": 1}

    built.remove([str(places[1])])
    next(built.store.folder.glob("features_*")).unlink()
    repaired = ImageIndex.build(model, processor, album, index.store.folder)
    repaired.add([places[0], places[2]])  # their fingerprints were in that file
    assert sorted(repaired.keys) == sorted(built.keys) and {str(places[0]), str(places[2])} < {*repaired.keys}


def test_index_images_and_model_can_be_moved_together(command, album, tmp_path, encoded_sizes):
    (tmp_path / "home").mkdir()
    command("index", "build", album, "--model", "../model", "--index", "../home/index")
    for path in (tmp_path / "home" / "index").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    for name in ("home", "album", "model"):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "new" / name)
    table = command("search", "red", "--index", tmp_path / "new" / "home" / "index")
    assert len(table.splitlines()) == 11 and "not up to date" not in command.errors
    printed = command("index", "info", "--index", tmp_path / "new" / "home" / "index")
    assert f"source: {tmp_path / 'new' / 'album'}" in printed and f"model: {tmp_path / 'new' / 'model'}," in printed

    (tmp_path / "new" / "album").rename(tmp_path / "new" / "photographs")
    command("search", "red", "--index", tmp_path / "new" / "home" / "index")
    assert "the folder has moved: give its new place with --folder, or build" in command.errors
    (tmp_path / "new" / "other").mkdir()
    noise(1).save(tmp_path / "new" / "other" / "00.PNG")
    where = ("--model", tmp_path / "new" / "model", "--index", tmp_path / "new" / "home" / "index")
    with pytest.raises(SystemExit, match="contains an index of .*album, not of .*other"):
        command("index", "build", tmp_path / "new" / "other", *where)
    encoded_sizes.clear()
    (tmp_path / "new" / "model").rename(tmp_path / "new" / "another")
    where = ("--index", tmp_path / "new" / "home" / "index")
    folder, model = tmp_path / "new" / "photographs", tmp_path / "new" / "another"
    assert "12 images" in command("index", "build", folder, "--model", model, *where) and not encoded_sizes
    assert "not up to date" not in (command("search", "red", *where) and command.errors)


def test_a_folder_without_the_indexed_images_is_another_one(index, model, processor, album, tmp_path):
    (tmp_path / "other").mkdir()
    noise(60).save(tmp_path / "other" / "60.png")
    index.add([tmp_path / "other" / "60.png"])
    album.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="contains an index of .*album, not of .*other"):
        ImageIndex.build(model, processor, tmp_path / "other", index.store.folder)
    built = ImageIndex.build(model, processor, tmp_path / "moved", index.store.folder)
    assert built.keys == index.keys and not built.changes()


def test_changes_are_reported_and_a_build_updates_the_index(
    index, model, processor, album, search_warnings, encoded_sizes
):
    folder = index.store.folder
    index.search(TEXTS[0])
    (album / "00.PNG").unlink()
    noise(50, (50, 50)).save(album / "02.PNG")
    noise(51).save(album / "new.png")
    changes = index.changes()
    assert (changes.new, changes.changed, changes.missing) == (["new.png"], ["02.PNG"], ["00.PNG"])
    assert str(changes) == "1 new (first new.png), 1 changed (first 02.PNG), 1 missing (first 00.PNG)"
    for rerank in (128, 0):
        search_warnings.clear()
        assert "00.PNG" not in keys(index.search(TEXTS[0], top_k=20, rerank_k=rerank))
        assert "1 of the 12 best candidates are missing and are skipped (first 00.PNG)" in search_warnings[0]
        assert "changed since they were indexed (first 02.PNG)" in search_warnings[1]
    with pytest.raises(ValueError, match="'00.PNG' cannot be read any more.*Build the index again"):
        index.image("00.PNG")
    encoded_sizes.clear()
    built = ImageIndex.build(model, processor, album, folder)
    assert encoded_sizes == [2] and not built.changes() and len(built) == 12
    assert built.search(noise(50, (50, 50)), top_k=1)[0].similarity == pytest.approx(1, abs=1e-5)
    assert sorted(built.keys) == sorted({*index.keys, "new.png"} - {"00.PNG"})
    noise(0).save(album / "broken.jpg")  # repaired
    built = ImageIndex.build(model, processor, album, folder)
    assert not built.broken and "broken.jpg" in built.keys
    (album / "broken.jpg").write_bytes(b"broken again")
    built = ImageIndex.build(model, processor, album, folder)
    assert built.broken_counts() == {"image_broken": 1} and "broken.jpg" not in built.keys


def test_other_weights_are_refused(index, model, processor, album, config, tmp_path):
    other = AlbefForPreTraining(config).eval()
    other.load_state_dict(model.state_dict())
    assert len(ImageIndex.load(tmp_path / "index", other, processor)) == 12  # the same weights
    with torch.no_grad():
        other.albef.text_model.layers[1].mlp.fc1.bias[0] += 1e-3
    for use in (
        lambda: ImageIndex.load(tmp_path / "index", other, processor),
        lambda: ImageIndex.build(other, processor, album, tmp_path / "index"),
    ):
        with pytest.raises(ValueError, match="built with other weights .* load that one .* or build an index in an"):
            use()


def test_invalid_images_are_refused(index, model, processor, album, images, tmp_path):
    def build(what, folder="other", **settings):
        return ImageIndex.build(model, processor, what, tmp_path / folder, **settings)

    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"")
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    for what, reason in (
        (tmp_path / "empty", "There is no image in .*empty or its subfolders"),
        (tmp_path / "texts", "There is no image in .*texts or its subfolders"),
        (tmp_path / "nowhere", "nowhere is not a folder"),
        (album / "00.PNG", "is not a folder: give a folder, or a list"),
        (tmp_path / "broken", r"None of the 1 images can be read: image_broken 1 \(first a.jpg\)"),
        ([], "list or dataset is empty"),
        ([images[0], "a.png"], "Some of the images are paths"),
        (None, "images is of type NoneType: give a folder, a datasets.Dataset, or a list"),
        (3, "images is of type int: give a folder"),
        (images[0], "images is of type Image: give a folder"),
        ({"a.png", "b.png"}, "images is of type set: give a folder"),
        (b"a.png", "images is of type bytes: give a folder"),
        (datasets.DatasetDict(train=rows, test=rows), "images is a DatasetDict: give one of its 'train', 'test'"),
        (iter(()), "list or dataset is empty"),
        (rows, "no column of images, only text"),
    ):
        with pytest.raises(ValueError, match=reason):
            build(what, "b" if what == tmp_path / "broken" else "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="contains other files, such as"):
        build(album, "album")
    with pytest.raises(ValueError, match="contains an index of .*album, not of .*empty2"):
        (tmp_path / "empty2").mkdir()
        noise(1).save(tmp_path / "empty2" / "a.png")
        build(tmp_path / "empty2", "index")
    with pytest.raises(ValueError, match="either files or rows"):
        index.add(images)
    for use in (index.add, lambda nothing: ImageIndex.load(tmp_path / "index", model, processor, nothing)):
        with pytest.raises(ValueError, match="list or dataset is empty"):
            use([])
    with pytest.raises(ValueError, match="keys are '00.PNG': give a list"):
        index.remove("00.PNG")
    with pytest.raises(ValueError, match="contains no index. Build one: albef index"):
        ImageIndex.load(tmp_path / "texts", model, processor)
    with pytest.raises(ValueError, match="AlbefModel cannot search: load the model as AlbefForRetrieval"):
        ImageIndex.load(tmp_path / "index", model.albef, processor)
    for factory in ("Magic", "LSH", "IMI2x4,Flat", "BFlat"):
        with pytest.raises(ValueError, match=f"faiss cannot create the index '{factory}' .*Examples: Flat"):
            build(album, index_factory=factory)
    for factory in ("Flat,IDMap", "IVF2,Flat,RFlat"):
        with pytest.raises(ValueError, match=f"faiss cannot build '{factory}' from 12 images: .*add_with_ids.*'Flat'"):
            build(album, "index", index_factory=factory)
    assert len(ImageIndex.load(tmp_path / "index", model, processor)) == 12
