"""Tests of the files of an index: interruptions, damage, and full disks."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from search_fixtures import *  # noqa: F403
from search_fixtures import assert_same, contents, flip, keys, noise, truncate

from albef_hf import cli
from albef_hf.search import feature_store, writer
from albef_hf.search.encoder import FeatureEncoder
from albef_hf.search.feature_store import FeatureStore
from albef_hf.search.index import ImageIndex
from albef_hf.utils import files


def test_small_shards_are_joined(model, processor, album, images, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PART_SECONDS", -1)
    index = ImageIndex.build(model, processor, album, tmp_path / "index", batch_size=2)
    assert len(index.mapped.shards) == 1
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 5)
    noise(30).save(album / "a.png")
    index.add([album / "a.png"])
    noise(31).save(album / "b.png")
    index.add([album / "b.png"])
    assert [len(shard.keys) for shard in index.mapped.shards] == [12, 2]
    index.remove(index.keys[:9])
    assert [len(shard.keys) for shard in index.mapped.shards] == [5]
    assert sorted(path.suffix for path in (tmp_path / "index").iterdir()) == ["", ".faiss", ".json", ".safetensors"]
    assert index.search(noise(31), top_k=1)[0].key == "b.png"
    other = ImageIndex.build(model, processor, [album / key for key in index.keys], tmp_path / "other")
    assert keys(index.search("x")) == [str(Path(key).relative_to(album)) for key in keys(other.search("x"))]


SLOW_BUILD = """
import sys, time
from albef_hf.search import writer
from albef_hf.cli import main
from albef_hf.search.encoder import FeatureEncoder
from albef_hf.utils import progress
progress.SECONDS_BETWEEN_LINES = 0
encode = FeatureEncoder.encode
FeatureEncoder.encode = lambda *arguments: time.sleep(1.0) or encode(*arguments)
writer.PART_SECONDS = -1
main(sys.argv[1:])
"""


def kill_build(words: list[str]) -> None:
    """Build in another process, and kill it after 4 of the 13 images."""
    with subprocess.Popen([sys.executable, "-c", SLOW_BUILD, *words], stderr=subprocess.PIPE, text=True) as process:
        printed = ""
        while not re.search(r"\b4/13 ", printed) and process.poll() is None:
            printed += process.stderr.read(1)
        process.kill()
    assert process.returncode == -signal.SIGKILL, printed


def interrupt_build(words: list[str]) -> None:
    """Build, and interrupt the third batch from the keyboard."""
    encode, left = FeatureEncoder.encode, iter(range(2))

    def interrupted(self, pixels):
        if next(left, None) is None:
            signal.raise_signal(signal.SIGINT)
        return encode(self, pixels)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    try:
        with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit, match="repeat the command to resume"):
            patched.setattr(FeatureEncoder, "encode", interrupted)
            cli.main(words)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stop", [kill_build, interrupt_build])
def test_an_interrupted_build_resumes(model, processor, album, tmp_path, encoded_sizes, stop):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    words = ["index", "build", album, "--model", tmp_path / "model", "--index", tmp_path / "index", "--batch_size=2"]
    stop([str(word) for word in words])
    with pytest.raises(ValueError, match="not finished: build it again to resume"):
        ImageIndex.load(tmp_path / "index", model, processor)
    encoded_sizes.clear()
    index = ImageIndex.build(model, processor, album, tmp_path / "index", batch_size=2)
    assert 0 < sum(encoded_sizes) < 12
    assert_same(index, ImageIndex.build(model, processor, album, tmp_path / "clean", batch_size=2))


@pytest.mark.parametrize("rows", [False, True])
def test_an_interrupted_add_changes_nothing(model, processor, album, images, tmp_path, rows, monkeypatch):
    start, more = (images[:2], images[2:5]) if rows else (album, [tmp_path / f"{n}.png" for n in range(3)])
    for path in [] if rows else more:
        noise(int(path.stem) + 50).save(path)
    index = ImageIndex.build(model, processor, start, tmp_path / "index2")
    before, encode = index.keys, FeatureEncoder.encode
    calls = iter([True, False])

    def interrupted(self, pixels):
        if next(calls):
            return encode(self, pixels)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureEncoder, "encode", interrupted)
        index.add(more, batch_size=1)
    assert index.keys == before
    index.remove(before[:1])
    assert index.keys == before[1:]
    assert index.add(more, batch_size=1) == 3
    again = ImageIndex.load(tmp_path / "index2", model, processor)
    assert again.keys == index.keys and len(set(again.keys)) == len(before) + 2


def test_an_index_can_be_loaded_while_it_changes(index, model, processor, monkeypatch):
    map_index = ImageIndex._map

    def overtaken(self):
        monkeypatch.setattr(ImageIndex, "_map", map_index)
        index.remove([index.keys[0]])  # this removes the files that are about to be read
        return map_index(self)

    monkeypatch.setattr(ImageIndex, "_map", overtaken)
    assert ImageIndex.load(index.store.folder, model, processor).keys == index.keys


def test_other_files_are_not_removed(model, processor, album, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    names = ("features_important.npy", "vectors_2024.csv", ".draft.unfinished")
    for name in names:
        (folder / name).write_text("mine")
    with pytest.raises(ValueError, match="contains other files"):
        ImageIndex.build(model, processor, album, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_killed_change_leaves_the_old_index_or_the_new_one(index, model, processor, album, tmp_path, monkeypatch):
    """Add two images, and stop before each file that is written."""
    before = index.keys
    for seed in (60, 61):
        noise(seed).save(album / f"new{seed}.png")
    monkeypatch.setattr(writer, "PART_SECONDS", -1)
    survived = []

    class Killed(BaseException):
        pass

    for moment in range(20):
        left = iter(range(moment))

        @contextlib.contextmanager
        def written_or_dead(path, left=left):
            if next(left, None) is None:
                raise Killed
            with files.atomic_write(path) as aside:
                yield aside

        monkeypatch.setattr(feature_store, "atomic_write", written_or_dead)
        try:
            ImageIndex.build(model, processor, album, tmp_path / "index", batch_size=1)
        except Killed:
            loaded = ImageIndex.load(tmp_path / "index", model, processor)
            assert loaded.keys == before and len(loaded.search("red", top_k=99)) == 12
            survived.append(len(loaded.store.manifest.parts))
        else:
            break
    assert survived[0] == 0 and max(survived) == 2 and len(survived) >= 3
    loaded = ImageIndex.load(tmp_path / "index", model, processor)
    assert sorted(loaded.keys) == sorted([*before, "new60.png", "new61.png"])
    assert loaded.search(noise(61), top_k=1)[0].key == "new61.png"


def test_one_process_at_a_time_changes_an_index(index, model, processor, album):
    from filelock import FileLock

    with FileLock(index.store.folder / ".lock"):
        for change in (lambda: index.add([album / "00.PNG"]), lambda: index.remove(["00.PNG"])):
            with pytest.raises(ValueError, match="Another process is changing"):
                change()
        assert index.search("red")
    ImageIndex.load(index.store.folder, model, processor).remove(["00.PNG"])
    index.remove(["02.PNG"])  # it sees the change of the other object
    assert len(index) == 10 and "00.PNG" not in index.keys


@pytest.fixture
def full_disk(monkeypatch):
    """Return a function after which files of a kind are cut off when they are written, as by a full disk."""

    def fill(kind: str) -> None:
        @contextlib.contextmanager
        def write_on_full_disk(path):
            with files.atomic_write(path) as temporary_path:
                yield temporary_path
                if path.name.startswith(kind):
                    truncate(temporary_path)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(feature_store, "atomic_write", write_on_full_disk)

    return fill


@pytest.mark.parametrize("kind", ["features", "vectors", "manifest"])
@pytest.mark.parametrize("change", ["add", "remove", "build"])
def test_a_full_disk_leaves_the_old_index_and_is_reported(
    index, model, processor, album, monkeypatch, full_disk, change, kind
):
    noise(60).save(album / "new.png")
    folder, before, results = index.store.folder, index.keys, index.search("red", rerank_k=0)
    names = {path.name for path in folder.iterdir()}
    run = {
        "add": lambda: index.add([album / "new.png"]),
        "remove": lambda: index.remove(before[:2]),
        "build": lambda: ImageIndex.build(model, processor, album, folder),
    }[change]
    full_disk(kind)
    reason = f"{folder}/{kind}[^ ]* could not be written: .*No space left on device. Free disk space"
    with pytest.raises(OSError, match=reason):
        run()
    for one in (index, ImageIndex.load(folder, model, processor)):
        assert one.keys == before and one.search("red", rerank_k=0) == results
    saved = {*FeatureStore.open(folder).manifest.file_names, "manifest.json", ".lock"}
    assert {path.name for path in folder.iterdir()} == saved  # nothing of the failed change fills the disk
    assert saved == names or (change, kind) == ("build", "vectors")  # whose features are kept
    monkeypatch.setattr(feature_store, "atomic_write", files.atomic_write)
    run()
    assert len(ImageIndex.load(folder, model, processor)) == {"add": 13, "remove": 10, "build": 13}[change]


def test_a_full_disk_is_reported_by_the_command(command, album, full_disk):
    full_disk("manifest")
    with pytest.raises(SystemExit, match="error: images.index/manifest.json could not be written: .*No space left"):
        command("index", "build", album, "--model", "../model")


@pytest.mark.parametrize("kind", ["features", "vectors"])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flipped", "truncated", "missing"])
def test_a_damaged_index_is_refused_and_repaired(
    index, model, processor, album, tmp_path, search_warnings, kind, damage
):
    expected, (path,) = contents(index), list((tmp_path / "index").glob(f"{kind}_*"))
    damage(path)
    if (kind, damage) == ("features", flip):  # reading all features each time would take too long
        assert ImageIndex.load(tmp_path / "index", model, processor).store.check_sha256(path.name)
    else:
        with pytest.raises(ValueError, match=f"damaged: .*{path.name}.* Build the index again"):
            ImageIndex.load(tmp_path / "index", model, processor)
    repaired = ImageIndex.build(model, processor, album, tmp_path / "index", batch_size=4)
    assert path.name in search_warnings[0] and "computed again" in search_warnings[0]
    assert repaired.keys == expected[0] and torch.equal(contents(repaired)[3], expected[3])
    ImageIndex.load(tmp_path / "index", model, processor).search("red")


def test_a_damaged_manifest_is_refused(index, model, processor, tmp_path):
    for content in ("", "[]", "{}", '{"format": 2}', '{"format": 1, "unheard": 3}', "\x00\x01", "[" * 100_000):
        (tmp_path / "index" / "manifest.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"manifest.json cannot be read .* Remove .*index and build the index again"
        ):
            ImageIndex.load(tmp_path / "index", model, processor)
