"""Writing, ordering and reading shards; each pair comes once per epoch, and damage affects only the pairs it hits."""

import contextlib
import gzip
import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import tarfile
import time
import zlib
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
from encoded_images import encoded
from PIL import Image

from albef_hf.data import (
    Augmentation,
    EvaluationImages,
    ImageTextPairs,
    InvalidSampleError,
    PairReader,
    Shards,
    SkipReason,
    load_image,
    shard_preparation,
    valid_captions,
)
from albef_hf.data.shard_arguments import ShardArguments
from albef_hf.data.shard_index import check_folder, index_folder
from albef_hf.data.shard_order import ShardOrder
from albef_hf.data.shard_writer import JpegEncoder
from albef_hf.data.shards import PLACE
from albef_hf.tasks.pretraining import hold_out
from albef_hf.utils.files import sha256

ROWS = 20


@pytest.fixture
def reader() -> PairReader:
    return PairReader(Augmentation(32, (0.5,) * 3, (0.25,) * 3))


@pytest.fixture
def prepare(run):
    return lambda *arguments: run("shards", *arguments)


@pytest.fixture
def source(tmp_path) -> list:
    """Write twenty images, three of them unusable, and return the arguments that name them."""
    folder = tmp_path / "source"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for row in range(ROWS):
        patches = Image.fromarray(noise.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60), Image.BICUBIC)
        patches.save(folder / f"{row}.{'jpg' if row % 2 else 'png'}", quality=75)
    rows = [{"image": f"{row}.{'jpg' if row % 2 else 'png'}", "caption": [f"number {row}"]} for row in range(ROWS)]
    rows[2]["caption"] = ["the second", "", "number two"]
    rows[4]["image"] = "absent.png"
    rows[9]["caption"] = [" "]
    (folder / "7.jpg").write_bytes((folder / "7.jpg").read_bytes()[:-500])
    (folder / "rows.json").write_text(json.dumps(rows))
    return ["--train_files", folder / "rows.json", "--image_root", folder, "--rows_per_shard", 8]


@pytest.fixture
def shards(prepare, source, tmp_path) -> Path:
    """Write three shards with six, seven and four pairs of small images."""
    prepare("--output_dir", tmp_path / "shards", *source, "--short_side", 48, "--num_workers", 0)
    return tmp_path / "shards"


def captions_of(rows) -> list[str]:
    return [row["caption"][0] for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def test_shards_contain_the_source_and_list_dropped_rows(shards, source):
    rows = Shards([shards])
    kept = [row for row in range(ROWS) if row not in (4, 7, 9)]
    assert captions_of(rows) == ["the second" if row == 2 else f"number {row}" for row in kept]
    assert rows[2]["caption"] == ["the second", "number two"]
    for row, made in zip(kept, rows, strict=True):
        image = Image.open(io.BytesIO(made["image"]))
        assert (image.format, image.size) == ("JPEG", (64, 48))
        original = load_image(source[3] / f"{row}.{'jpg' if row % 2 else 'png'}").resize((64, 48), Image.LANCZOS)
        difference = np.asarray(image).astype(int) - np.asarray(original)
        assert np.abs(difference).mean() < 6
    dropped = [json.loads(line) for line in (shards / "dropped.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in dropped] == [
        (4, "image_missing"),
        (7, "image_broken"),
        (9, "caption_empty"),
    ]
    index = json.loads((shards / "index.json").read_text())
    assert index["rows"] == 17 and [shard["rows"] for shard in index["shards"]] == [6, 7, 4]
    assert index["dropped"] == {"image_missing": 1, "image_broken": 1, "caption_empty": 1} and not index["left_out"]
    assert not check_folder(shards) and not rows.faults()


def test_images_are_never_enlarged_and_small_jpegs_are_copied(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    jpeg = encoded(noise, "JPEG")
    png = encoded(noise)
    cmyk = encoded(noise.convert("CMYK"), "JPEG")
    encode = JpegEncoder(short_side=60)
    assert encode(jpeg) == (jpeg, (80, 60), (80, 60))
    for content in (png, cmyk, noise):
        made, size, original = encode(content)
        assert made != content and size == original == (80, 60)
        assert Image.open(io.BytesIO(made)).mode == "RGB"
    assert JpegEncoder(short_side=30)(jpeg)[1:] == ((40, 30), (80, 60))
    assert JpegEncoder(short_side=30)(Image.new("RGB", (3000, 3)))[1:] == ((3000, 3), (3000, 3))
    assert len(JpegEncoder(short_side=30, quality=30)(jpeg)[0]) < len(JpegEncoder(short_side=30)(jpeg)[0])


def test_exif_orientation_is_followed_on_request():
    image = Image.new("RGB", (40, 30), "red")
    image.paste("blue", (0, 0, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert JpegEncoder()(buffer.getvalue())[0] == buffer.getvalue()
    content, size, _ = JpegEncoder(exif_transpose=True)(buffer.getvalue())
    turned = Image.open(io.BytesIO(content))
    assert size == turned.size == (30, 40) and not turned.getexif()
    assert turned.getpixel((15, 5))[2] > 200 and turned.getpixel((15, 35))[0] > 200


def test_an_interrupted_preparation_resumes(prepare, source, shards, monkeypatch, tmp_path):
    before = (shards / "index.json").read_text()
    (shards / "00001.tar").unlink()
    (shards / ".00001.tar.unfinished").write_bytes(b"half of it")
    (shards / "index.json").unlink()
    written: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, path: (written.append(path.name), replace(self, path)))
    arguments = ["--output_dir", shards, *source, "--short_side", 48, "--num_workers", 0]
    prepare(*arguments)
    expected = ["preparation.json", "00001.dropped.jsonl", "00001.tar", "dropped.jsonl", "index.npy", "index.json"]
    assert written == expected and (shards / "index.json").read_text() == before
    assert not list(shards.glob("*.unfinished")) + list(shards.glob(".*.unfinished"))
    with pytest.raises(ValueError, match=r"contains shards of other settings \(short_side\): set another output_dir"):
        prepare(*arguments, "--short_side", 50)


def test_lost_or_duplicate_pairs_are_detected(prepare, source, shards):
    arguments = ["--output_dir", shards, *source, "--short_side", 48, "--num_workers", 0]
    whole = (shards / "00001.tar").read_bytes()
    foreign(shards / "00001.tar", [("000000008.jpg", b"1"), ("000000008.txt", b"one of seven")])
    with pytest.raises(ValueError, match="00001.tar has 1 pairs instead of 7. Remove these files"):
        prepare(*arguments)
    (shards / "00001.tar").write_bytes(whole)
    (shards / "00009.tar").write_bytes(whole)
    with pytest.raises(ValueError, match="00009.tar has 7 pairs instead of none"):
        prepare(*arguments)
    (shards / "00009.tar").unlink()
    prepare(*arguments)
    assert len(Shards([shards])) == 17


def test_invalid_files_of_a_preparation_are_named(prepare, source, shards):
    arguments = ["--output_dir", shards, *source, "--short_side", 48, "--num_workers", 0]
    (shards / "dropped.jsonl").write_text('{"row": 1}\n')
    with pytest.raises(ValueError, match="Line 1 of .*dropped.jsonl cannot be read"):
        prepare("--output_dir", shards, "--num_workers", 0)
    for content in ("[]", "{", "[" * 100_000):
        (shards / "preparation.json").write_text(content)
        with pytest.raises(ValueError, match="preparation.json cannot be read"):
            prepare(*arguments)


def start(prepare, *arguments: object) -> int:
    """Start a silent preparation in another process, and return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stderr(nowhere),
            contextlib.redirect_stdout(nowhere),
        ):
            prepare(*arguments)
        code = 0
    finally:
        os._exit(code)


def test_a_preparation_that_is_killed_repeatedly_loses_no_pair(prepare, source, shards, tmp_path, monkeypatch):
    encode = JpegEncoder.__call__
    monkeypatch.setattr(JpegEncoder, "__call__", lambda self, value: time.sleep(0.02) or encode(self, value))
    arguments = ["--output_dir", tmp_path / "out", *source, "--short_side", 48]
    for seconds in (0.2, 0.25, 0.3):
        process = start(prepare, *arguments, "--num_workers", 2)
        time.sleep(seconds)
        children = psutil.Process(process).children()
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    process = start(prepare, *arguments, "--num_workers", 2)  # while workers of the previous one may still write
    assert os.waitpid(process, 0)[1] == 0
    assert not psutil.wait_procs(children, timeout=5)[1], "workers outlive their preparation"
    names = [path.name for path in shards.iterdir() if path.suffix != ".lock"]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".lock"} == {*names}
    assert all((tmp_path / "out" / name).read_bytes() == (shards / name).read_bytes() for name in names)


def test_two_preparations_cannot_share_a_folder(prepare, source, tmp_path, monkeypatch):
    monkeypatch.setattr(JpegEncoder, "__call__", lambda self, value: time.sleep(60))
    process = start(prepare, "--output_dir", tmp_path / "out", *source, "--num_workers", 0)
    try:
        while not (tmp_path / "out" / ".preparation.lock").exists():
            time.sleep(0.01)
        time.sleep(0.1)
        monkeypatch.undo()
        monkeypatch.setenv("ALBEF_TRACEBACK", "1")
        with pytest.raises(BlockingIOError, match=f"out is in use by process {process} on"):
            prepare("--output_dir", tmp_path / "out", *source, "--num_workers", 0)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    prepare("--output_dir", tmp_path / "out", *source, "--num_workers", 0)
    assert len(Shards([tmp_path / "out"])) == 17


def test_secrets_of_an_address_are_not_saved(prepare, source, shards, monkeypatch):
    options = ShardArguments(output_dir="a", dataset="https://me:s3cret@host/rows", data_files=["b?token=s3cret"])
    rows = datasets.Dataset.from_dict({"image": ["a"], "caption": ["b"]})
    shard_preparation.save_settings(shards.parent, shard_preparation.content_settings(options, rows))
    assert "s3cret" not in (shards.parent / "preparation.json").read_text()


def test_an_unusable_source_raises_an_error_and_can_be_corrected(prepare, source, tmp_path):
    folder = tmp_path / "later"
    files = source[:2]
    with pytest.raises(ValueError, match=r"none of the first 100 can be used \(image_missing.*check its files, image"):
        prepare("--output_dir", folder, *files, "--image_root", tmp_path / "elsewhere", "--num_workers", 0)
    prepare("--output_dir", folder, *source, "--num_workers", 0)
    assert len(Shards([folder])) == ROWS - 3


def test_a_source_with_changed_content_is_refused(prepare, source, shards):
    file = Path(source[source.index("--train_files") + 1])
    file.write_text(file.read_text().replace("number 0", "number zero"))
    with pytest.raises(ValueError, match=r"contains shards of other settings \(content\)"):
        prepare("--output_dir", shards, *source, "--short_side", 48, "--num_workers", 0)


def test_several_processes_write_the_same_shards(prepare, source, shards, tmp_path):
    prepare("--output_dir", tmp_path / "other", *source, "--short_side", 48, "--num_workers", 2)
    assert (tmp_path / "other" / "index.json").read_text() == (shards / "index.json").read_text()


def test_a_full_disk_leaves_no_incomplete_shard(prepare, source, tmp_path, monkeypatch):
    def full(path):
        if path.name.startswith(".00001.tar."):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("albef_hf.data.shard_writer.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        prepare("--output_dir", tmp_path / "out", *source, "--num_workers", 0)
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["00000.tar"]
    assert not (tmp_path / "out" / "index.json").exists()


def test_other_libraries_read_the_shards(prepare, tmp_path):
    (tmp_path / "folder").mkdir()
    for row, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 30), color).save(tmp_path / "folder" / f"{row}.png")
    lines = [json.dumps({"file_name": f"{row}.png", "words": f"number {row} \U0001f600 犬"}) for row in range(3)]
    (tmp_path / "folder" / "metadata.jsonl").write_text("\n".join(lines))
    prepare(
        *("--dataset", tmp_path / "folder", "--caption_column", "words", "--output_dir", tmp_path / "shards"),
        *("--num_workers", 0),
    )
    expected = [f"number {row} \U0001f600 犬" for row in range(3)]
    assert captions_of(Shards([tmp_path / "shards"])) == expected
    files = [str(tmp_path / "shards" / "00000.tar")]
    rows = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    assert [row["txt"] for row in rows] == expected
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    read = webdataset.WebDataset(files, shardshuffle=False).decode("pil").to_tuple("jpg", "json")
    assert [about["caption"][0] for image, about in read if image.size == (40, 30)] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "output_dir is missing"),
        (["--output_dir", "a", "--train_files", "a", "--dataset", "b"], "choose one"),
        (["--output_dir", "a", "--train_files", "a", "--data_files", "b"], "data_files has no effect"),
        (["--output_dir", "a", "--quality", "101"], "between 1 and 100"),
        (["--output_dir", "a", "--short_side", "0"], "at least 1"),
        (["--output_dir", "a", "--short_size", "9"], "did you mean --short_side?"),
    ],
)
def test_invalid_options_raise_an_error_with_a_remedy(prepare, arguments, message, capsys):
    with pytest.raises(SystemExit):
        prepare(*arguments)
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Order
# ---------------------------------------------------------------------------------------------------------------------

BOUNDS = np.array([0, 1000, 1000, 1777, 3000])  # of four shards, one of them empty


def order_of(rank: int, world_size: int, epoch: int = 0, **more) -> ShardOrder:
    order = ShardOrder(BOUNDS, 5, rank, world_size, **{"block": 64, "window": 300} | more)
    order.set_epoch(epoch)
    return order


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_each_row_comes_once_per_epoch_on_one_process(world_size):
    left_out = set()
    for epoch in range(2):
        orders = [order_of(rank, world_size, epoch) for rank in range(world_size)]
        rows = [row for order in orders for row in order]
        assert {len(order) for order in orders} == {3000 // world_size}
        assert len(rows) == len(set(rows)) == 3000 // world_size * world_size and set(rows) <= set(range(3000))
        left_out |= {(epoch, row) for row in set(range(3000)) - set(rows)}
    if world_size == 7:
        assert len({row for _, row in left_out}) == 2 * (3000 % 7), "the same rows are left out in each epoch"


def test_the_order_is_shuffled_and_depends_on_seed_and_epoch():
    assert list(order_of(0, 2)) == list(order_of(0, 2)) != list(order_of(0, 2, epoch=1))
    assert list(ShardOrder(BOUNDS, 5)) != list(ShardOrder(BOUNDS, 6))
    rows = list(order_of(0, 1))
    assert np.abs(np.diff(rows)).mean() > 400  # of 1000 between rows drawn at random
    assert abs(np.corrcoef(rows, np.arange(3000))[0, 1]) < 0.5


def test_a_window_reads_few_places():
    rows = np.array(list(order_of(1, 2)))
    for start in range(0, 1500, 300):
        shard_of = [np.searchsorted(BOUNDS, row, "right") - 1 for row in rows[start : start + 300]]
        blocks = {(n, (row - BOUNDS[n]) // 64) for n, row in zip(shard_of, rows[start:], strict=False)}
        assert len(blocks) <= 300 // 64 + 4


# ---------------------------------------------------------------------------------------------------------------------
# Reading, and damage
# ---------------------------------------------------------------------------------------------------------------------


def test_rows_of_several_folders_are_selected_and_pickled(shards):
    rows = Shards([shards, shards])
    assert len(rows) == 34 and captions_of(rows)[17:] == captions_of(rows)[:17]
    assert rows.bounds.tolist() == [0, 6, 13, 17, 23, 30, 34]
    some = rows.select(np.array([1, 6, 7, 20, 33])).select(np.array([0, 2, 3, 4]))
    assert captions_of(some) == ["number 1", "number 10", "number 3", "number 19"]
    assert some.bounds.tolist() == [0, 1, 2, 2, 3, 3, 4]
    assert rows.image_ids().tolist() == 2 * rows.image_ids()[:17].tolist() and len(set(rows.image_ids())) == 17
    assert some.image_ids().tolist() == rows.image_ids()[[1, 7, 20, 33]].tolist()
    again = pickle.loads(pickle.dumps(some))
    assert captions_of(again) == captions_of(some)
    with pytest.raises(IndexError, match="There are 4 pairs; 4 is not one"):
        some[4]


def test_forked_processes_read_at_the_same_time(shards):
    """DataLoader workers are forked after the first row was read; none may move the file position of another."""
    rows = Shards([shards])
    expected = list(rows)

    def read_all() -> None:
        for _ in range(200):
            assert list(rows) == expected

    processes = [multiprocessing.get_context("fork").Process(target=read_all) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def places_of(shards: Path) -> np.ndarray:
    return np.load(shards / "index.npy")


def test_a_block_is_fetched_once_before_its_rows(shards, reader, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        "os.posix_fadvise", lambda file, start, size, advice: fetched.append((start, size)), raising=False
    )
    monkeypatch.setattr("albef_hf.data.shards.BLOCK", 4)
    rows = Shards([shards]).select(np.arange(2, 17))
    places = places_of(shards)
    (shards / "00002.tar").unlink()
    pairs = ImageTextPairs(rows, reader)
    expected = [places[row]["image_start"] for row in (2, 6, 10)]  # two blocks in the second shard, one in the first
    for row in range(15):
        assert pairs[row]["caption"]
    assert fetched == [(start, 1 << 17) for start in expected]


def overwrite(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def hole(shards: Path, content: bytes) -> set[int]:
    """Overwrite from the middle of the third image of the second shard to the middle of the fifth."""
    places = places_of(shards)
    start, end = (int(places[row]["image_start"] + places[row]["image_bytes"] // 2) for row in (9, 11))
    overwrite(shards / "00001.tar", start, (content * (end - start))[: end - start])
    return {9, 10, 11}


DAMAGES = {
    "hole": lambda shards: hole(shards, b"\0"),
    "garbage": lambda shards: hole(shards, b"\xff\xd8garbage"),
    "image": lambda shards: (
        overwrite(shards / "00000.tar", int(places_of(shards)[3]["image_start"]) + 700, b"?") or {3}
    ),
    "caption": lambda shards: (
        overwrite(shards / "00000.tar", int(places_of(shards)[3]["text_start"]) + 30, b"?") or {3}
    ),
    "truncated": lambda shards: (
        truncate(shards / "00002.tar", int(places_of(shards)[15]["text_start"]) + 2) or {15, 16}
    ),
    "missing": lambda shards: (shards / "00001.tar").unlink() or set(range(6, 13)),
    "empty": lambda shards: truncate(shards / "00001.tar", 0) or set(range(6, 13)),
    "folder": lambda shards: (shards / "00001.tar").unlink() or (shards / "00001.tar").mkdir() or set(range(6, 13)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_affects_only_the_pairs_that_it_hits(shards, damage, reader):
    before = list(Shards([shards]))
    damaged = damage(shards)
    rows = Shards([shards])
    for row in range(17):
        if row in damaged:
            with pytest.raises(InvalidSampleError, match="shard_damaged: .*0000[012].tar"):
                rows[row]
        else:
            assert rows[row] == before[row]
    samples = [ImageTextPairs(rows, reader)[row] for row in range(17)]
    assert {row for row in range(17) if samples[row]["issues"]} == damaged
    assert {issue for sample in samples for issue in sample["issues"]} <= {SkipReason.SHARD_DAMAGED}
    held_out = EvaluationImages(rows)
    assert len(held_out) == 17 - len(damaged) and set(held_out.bad_rows) == damaged
    faults = check_folder(shards)
    assert len(faults) == 1, faults
    assert bool(rows.faults()) == (damage in [DAMAGES[name] for name in ("truncated", "missing", "empty", "folder")])


def test_an_index_that_does_not_match_is_refused(shards):
    with pytest.raises(ValueError, match=r"has no index.json: albef shards --output_dir"):
        Shards([shards.parent])
    places = places_of(shards)
    places["image_start"][3] += 1
    np.save(shards / "index.npy", places)
    with pytest.raises(ValueError, match="index.npy does not match index.json.*albef shards"):
        Shards([shards])
    (shards / "index.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        Shards([shards])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(shards=[]), "lists no shards"),
        (lambda index: index.pop("shards"), "'shards'"),
        (lambda index: index["shards"][0].update(file="/etc/passwd"), "'/etc/passwd' is not the name of a file"),
        (lambda index: index["shards"][0].update(file="../00000.tar"), "not the name"),
        (lambda index: index["shards"][0].update(file=".."), "not the name"),
        (lambda index: index["shards"][0].update(file=5), "5 is not the name"),
        (lambda index: index["shards"][0].update(rows="6"), "rows and bytes of 00000.tar"),
        (lambda index: index["shards"][0].update(rows=True), "rows and bytes of 00000.tar"),
        (lambda index: index["shards"].extend({**index["shards"][0], "rows": rows} for rows in (-3, 3)), "rows and b"),
        (lambda index: index["shards"][0].pop("bytes"), "'bytes'"),
        (lambda index: index["shards"][0].update(sha256=None), "no SHA-256"),
        (lambda index: index.update(table=[]), "cannot be read"),
    ],
)
def test_a_manipulated_index_is_refused(shards, change, message):
    index = json.loads((shards / "index.json").read_text())
    change(index)
    (shards / "index.json").write_text(json.dumps(index))
    for read in (lambda: Shards([shards]), lambda: check_folder(shards)):
        with pytest.raises(ValueError, match=f"{re.escape(message)}.*albef shards"):
            read()


@pytest.mark.parametrize("content", ["[]", "[" * 200_000, '{"shards": 5}', "", "\xff"])
def test_an_invalid_index_is_refused(shards, content):
    (shards / "index.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="cannot be read"):
        Shards([shards])


def with_table(shards: Path, content: bytes) -> None:
    (shards / "index.npy").write_bytes(content)
    index = json.loads((shards / "index.json").read_text())
    index["table"]["sha256"] = sha256(shards / "index.npy")
    (shards / "index.json").write_text(json.dumps(index))


def saved(save, *arrays) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays)
    return buffer.getvalue()


def test_an_invalid_table_is_refused(shards):
    places = places_of(shards)
    tables = [b"", saved(np.savez, places), saved(np.save, places[:-1]), saved(np.save, np.zeros(17))]
    tables += [saved(np.save, np.array([{}], object))]
    for content in tables:
        with_table(shards, content)
        with pytest.raises(ValueError, match="cannot be read"):
            Shards([shards])


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_start", 2**64 - 1), ("image_start", 2**50), ("image_bytes", 2**32 - 1), ("text_start", 2**63)],
)
def test_positions_beyond_a_shard_affect_only_their_pair(shards, reader, field, value):
    before = list(Shards([shards]))
    places = places_of(shards)
    places[field][5] = value  # the last pair of the first shard, up to which is read ahead
    with_table(shards, saved(np.save, places))
    rows = Shards([shards])
    rows.read_ahead(0)
    with pytest.raises(InvalidSampleError, match="shard_damaged: .*00000.tar: .*beyond its"):
        rows[5]
    assert [rows[row] for row in range(5)] == before[:5]


def test_invalid_json_affects_only_its_pair(shards):
    places = places_of(shards)
    places["text_bytes"][3] = 2
    places["text_crc"][3] = zlib.crc32(b'{"')
    with_table(shards, saved(np.save, places))
    with pytest.raises(InvalidSampleError, match="shard_damaged: .*00000.tar: the text of row 3 is not JSON"):
        Shards([shards])[3]


def test_a_named_pipe_is_not_a_shard(shards):
    (shards / "00001.tar").unlink()
    os.mkfifo(shards / "00001.tar")
    assert len(Shards([shards]).faults()) == len(check_folder(shards)) == 1
    with pytest.raises(InvalidSampleError, match="shard_damaged: .*00001.tar: it is missing, or not a file"):
        Shards([shards])[7]


def test_check_reports_changed_shards(prepare, shards, capsys):
    prepare("--output_dir", shards, "--check", "--num_workers", 0)
    assert "All shards match their index." in capsys.readouterr().out
    overwrite(shards / "00001.tar", 600, b"?")
    with pytest.raises(SystemExit, match=r"00001.tar has changed since it was written \(SHA-256\)"):
        prepare("--output_dir", shards, "--check", "--num_workers", 0)


# ---------------------------------------------------------------------------------------------------------------------
# Shards of other tools
# ---------------------------------------------------------------------------------------------------------------------


def foreign(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_tar_files_of_other_tools_are_indexed(prepare, tmp_path):
    """They look like those of img2dataset and webdataset, and some members are not part of a pair."""
    image = encoded(Image.new("RGB", (9, 9), "red"))
    long = "a/" * 60 + "x"  # longer than a plain header allows
    foreign(
        tmp_path / "b.tar",
        [
            ("000.jpg", image), ("000.json", b'{"caption": "zero"}'), ("000.txt", b"other"),
            ("d/001.PNG", image), ("d/001.txt", "one \u72ac".encode()),
            ("d/e/001.png", image), ("d/e/001.txt", b"\xff two"),
            ("003.png", image), ("003.json", b'{"url": "caption"}'), ("003.txt", b"three"),
            ("004.png", image), ("004.cls", b"4"),
            ("005.txt", b"five"), (f"{long}.webp", image), (f"{long}.json", b'{"caption": ["six", "seven"]}'),
        ],
    )  # fmt: skip
    foreign(tmp_path / "a.tar", [])
    (tmp_path / "c.tar").write_bytes(b"no tar file" * 1000)
    prepare("--output_dir", tmp_path, "--num_workers", 0)
    rows = Shards([tmp_path])
    assert [row["caption"] for row in rows] == ["zero", "one 犬", "\ufffd two", "three", ["six", "seven"]]
    assert all(row["image"] == image for row in rows)
    left_out = json.loads((tmp_path / "index.json").read_text())["left_out"]
    assert left_out.pop("no_caption") == 1 and left_out.pop("no_picture") == 1
    assert sum(ShardOrder(rows.bounds)) == 10


def test_keys_may_contain_dots_and_skipped_members_are_counted(prepare, tmp_path, capsys):
    image = encoded(Image.new("RGB", (9, 9), "red"))
    foreign(
        tmp_path / "a.tar",
        [
            ("1.jpg", image), ("1.txt", b"one"), ("scan.22.05.jpg", image), ("scan.22.05.txt", b"five"),
            ("d.1/scan.22.06.JPG", image), ("d.1/scan.22.06.json", b'{"caption": [{"raw": "six"}]}'),
            ("1.seg.png", image), ("1.cls", b"4"), ("1.png", image), ("scan.22.05.txt", b"again"),
            ("._1.jpg", b"of macOS"), ("._1.txt", b"of macOS"), ("2.jpg.txt", b"two"), ("noend", b""),
            ("3.jpg", image), ("3.json", b'{"caption": null}'), ("4.json", b"[]"), ("caf\udce9.cls", b""),
        ],
    )  # fmt: skip
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        link = tarfile.TarInfo("5.jpg")
        link.type = tarfile.LNKTYPE
        link.linkname = "4.jpg"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    (tmp_path / "c.tar").write_bytes(gzip.compress(np.random.default_rng(0).bytes(2000)))
    (tmp_path / "d.tar").mkdir()
    os.mkfifo(tmp_path / "e.tar")
    prepare("--output_dir", tmp_path, "--num_workers", 0)
    rows = Shards([tmp_path])
    assert [valid_captions(row["caption"]) for row in rows] == [["one"], ["five"], ["six"]]
    index = json.loads((tmp_path / "index.json").read_text())
    assert [shard["file"] for shard in index["shards"]] == ["a.tar", "b.tar", "c.tar"]
    expected = {
        "no_caption": (2, "a.tar: 1.seg.png"), "unknown_kind": (3, "a.tar: 1.cls"), "duplicate": (2, "a.tar: 1.png"),
        "hidden": (2, "a.tar: ._1.jpg"), "no_picture": (1, "a.tar: 2.jpg.txt"), "not_a_file": (1, "b.tar: 5.jpg"),
        "json_without_caption": (2, "a.tar: 3.json"), "not_a_tar_file": (1, "c.tar"),
        "unreadable": (2, "d.tar: it is missing, or not a file"),
    }  # fmt: skip
    left_out = index["left_out"]
    assert {reason: (left_out[reason], first) for reason, first in index["left_out_first"].items()} == expected
    assert sum(index["left_out"].values()) == 18 - 2 * 3 + 1 + 3, "a member is neither in a pair nor counted"
    assert "first unknown_kind: a.tar: 1.cls" in capsys.readouterr().out


def header(size: bytes, kind: bytes = b"0") -> bytes:
    """Return the header of a member 000.jpg with any size and a correct checksum."""
    block = bytearray(512)
    block[:7] = b"000.jpg"
    block[100:108] = b"0000644\0"
    block[124:136] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def negative(size: int) -> bytes:
    return b"\xff" + (size + (1 << 88)).to_bytes(11, "big")


def record(content: bytes, kind: bytes = b"x") -> bytes:
    return header(b"%011o\0" % len(content), kind) + content.ljust(-(-len(content) // 512) * 512, b"\0")


NOTHING = header(b"%011o\0" % 0)
HEADERS = {
    "negative": header(negative(-512)),
    "back again": 2 * NOTHING + header(negative(-1024)),  # endlessly to itself
    "far back": header(negative(-(10**9))),
    "too far": header(b"\x80" + (2**80).to_bytes(11, "big")),
    "negative by pax": record(b"13 size=-512\n") + NOTHING,
    "length of pax": record(b"99999999999999999999 size=5\n"),
    "sparse": record(b"24 GNU.sparse.map=0,abc\n") + NOTHING,
    "sparse map": record(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + record(b"10000000\n", b"0"),
    "deep": record(b"14 path=a.jpg\n") * 500,
    "many": record(b"99999999999999999999 size=5\n") * 200,
}


HARMLESS = set() if hasattr(tarfile, "data_filter") else {"length of pax", "many"}  # to Python before 3.11.4


@pytest.mark.parametrize("kind", HEADERS)
def test_invalid_headers_affect_at_most_their_tar_file(kind, tmp_path):
    image = encoded(Image.new("RGB", (9, 9), "red"))
    pair = [("1.jpg", image), ("1.txt", b"one")]
    foreign(tmp_path / "a.tar", pair)
    foreign(tmp_path / "c.tar", pair)
    (tmp_path / "b.tar").write_bytes(HEADERS[kind] + (tmp_path / "a.tar").read_bytes())
    index = index_folder(tmp_path)
    rows = [shard["rows"] for shard in index["shards"]]
    assert rows[::2] == [1, 1]
    assert all(name.startswith("b.tar: ") or name == "b.tar" for name in index["left_out_first"].values())
    assert rows[1] == 1 if kind in HARMLESS else index["left_out"]
    assert all(row["caption"] == "one" for row in Shards([tmp_path]))


@pytest.mark.parametrize("content", [b"\0", b"garbage"])
def test_members_behind_a_hole_are_indexed(shards, content, tmp_path):
    """The header of one image and the content of the one before it are lost; the others are found."""
    before = list(Shards([shards]))
    places = places_of(shards)
    start = int(places[9]["image_start"])
    overwrite(shards / "00001.tar", start - 512, (content * 2000)[: int(places[9]["image_bytes"]) + 700])
    index = index_folder(shards)
    assert index["rows"] == 16
    assert list(Shards([shards])) == before[:9] + before[10:]


def test_a_folder_without_pairs_is_refused(prepare, tmp_path):
    with pytest.raises(ValueError, match="No tar file in .* contains an image and"):
        prepare("--output_dir", tmp_path, "--num_workers", 0)
    assert PLACE.itemsize == 33  # bytes per pair, as documented


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def test_held_out_images_are_in_no_training_row(run, shards):
    training, held_out = hold_out(Shards([shards, shards]), 1000, seed=0)
    assert len(training) == 32 and len(held_out) == 2  # a tenth of 17 images, each of which is there twice
    assert not set(training.image_ids()) & set(held_out.image_ids())
    assert Counter(captions_of(held_out)).most_common(1)[0][1] == 2


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited for 20 seconds"
        time.sleep(0.01)


def test_an_orphaned_worker_of_other_settings_finishes_no_shard(prepare, source, tmp_path, monkeypatch):
    """It is paused where its shard is complete and only has to get its name, and wakes up during the next run."""
    folder = tmp_path / "out"
    arguments = ["--output_dir", folder, *source]

    def pause(path: Path) -> None:
        if path.name.startswith(".00000.tar."):
            os.kill(os.getpid(), signal.SIGSTOP)

    with monkeypatch.context() as patches:
        patches.setattr("albef_hf.data.shard_writer.fsync", pause)
        patches.setattr("albef_hf.data.workers.exit_with_parent", lambda worker: None)
        first = start(prepare, *arguments, "--short_side", 20, "--num_workers", 1)
        wait_until(lambda: [child for child in psutil.Process(first).children() if child.status() == "stopped"])
        (orphan,) = psutil.Process(first).children()
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)

    save_settings = shard_preparation.save_settings

    def save_and_wake(*arguments: object) -> None:
        save_settings(*arguments)
        orphan.resume()
        wait_until(lambda: not orphan.is_running() or orphan.status() == "zombie")

    monkeypatch.setattr(shard_preparation, "save_settings", save_and_wake)
    prepare(*arguments, "--short_side", 50, "--num_workers", 0)
    sizes = {Image.open(io.BytesIO(row["image"])).size[1] for row in Shards([folder])}
    assert sizes == {50} and not list(folder.glob(".*.unfinished"))
