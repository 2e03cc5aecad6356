"""Compute the states of a frozen image encoder once for all training images.

Each image is known by its content. A byte of `status.bin` becomes 1 when the states of an image are on the disk, so a
run that is killed continues where it was, with any number of processes.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from ..data.image_states import (
    BROKEN,
    ENCODED,
    KEYS_FILE,
    PENDING,
    STATES_FILE,
    STATUS_FILE,
    ImageRecorder,
    ImageStates,
    image_key,
    read_status,
)
from ..data.images import load_image
from ..data.row_errors import InvalidSampleError
from ..processing_albef import AlbefProcessor
from ..utils.files import atomic_write, fsync, locked
from ..utils.progress import progress
from .optimization import ENCODER_MODULES

if TYPE_CHECKING:
    from ..tasks.base import Task

MANIFEST_FILE = "states.json"
LOCK_FILE = "states.lock"
ENCODING_BATCH = 32
# Entries of configurations that do not change the states.
IRRELEVANT = ("_attn_implementation", "_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")

Place = tuple[int, int]  # row, and which of its images


def load_image_states(task: "Task", student: PreTrainedModel, rows: Any, accelerator: Accelerator) -> ImageStates:
    """Return the states of all training images; those that are missing are computed by all processes.

    Args:
        task: Reads the rows.
        student: Its image encoder is frozen.
        rows: Rows to train on.
        accelerator: Provides the processes and the device.

    Raises:
        ValueError: If the directory has states of another encoder or of other preprocessing, is in use, or its disk is
            too small.
    """
    folder = Path(task.args.cache_image_states)
    encoder: Any = student.get_submodule(ENCODER_MODULES["image_encoder"]).to(accelerator.device)
    images = RowImages(task, rows, show=accelerator.is_main_process)
    problems = [""]
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not is_complete(folder, images):
                    stack.enter_context(locked(folder / LOCK_FILE))
                prepare_folder(folder, encoder, task.processor, images)
            except BlockingIOError as error:
                problems = [f"{error}: wait until it has computed the states, or set another cache_image_states."]
            except (OSError, ValueError) as error:
                problems = [str(error)]
        (problem,) = broadcast_object_list(problems)
        if problem:
            raise ValueError(f"cache_image_states: {problem}")
        encode_missing(folder, encoder, task.processor, images, accelerator, task.args.dataloader_num_workers)
    states = ImageStates(folder)
    accelerator.print(f"training from the states of {len(states.indices):,} images in {folder}, without augmentation")
    return states


class RowImages(Dataset):
    """The distinct images of rows, by their keys; the task reads no pixels until it gets its `ImageStates`.

    Args:
        task: Reads the rows.
        rows: Rows to train on.
        show: Show progress.
    """

    def __init__(self, task: "Task", rows: Sequence[Mapping[str, Any]], show: bool):
        self.rows = rows
        self.recorder = ImageRecorder()
        task.image_states = self.recorder  # until the states are there
        self.read: Callable = task.make_reader()
        self.places: dict[bytes, Place] = {}
        for row in progress(range(len(rows)), "find images", leave=False, disable=not show):
            for index, (image, image_root) in enumerate(self._images(row)):
                with contextlib.suppress(InvalidSampleError):  # counted in the training
                    self.places.setdefault(image_key(image, image_root), (row, index))

    def load(self, key: bytes) -> Image.Image:
        """Return an image by its key.

        Raises:
            InvalidSampleError: If it is broken.
        """
        row, index = self.places[key]
        image, image_root = self._images(row)[index]
        return load_image(image, image_root)

    def _images(self, row: int) -> list[tuple[Any, str | None]]:
        """Return the images that a sample of a row is made of; none if the row cannot be used."""
        self.recorder.images = []
        try:
            self.read(self.rows[row], np.random.default_rng(0))
        except InvalidSampleError:
            return []
        return self.recorder.images


def prepare_folder(folder: Path, encoder: PreTrainedModel, processor: AlbefProcessor, images: RowImages) -> None:
    """Check the states of a folder, and reserve room for those of images that it does not have.

    Raises:
        ValueError: If they are of another encoder or of other preprocessing.
        OSError: If the disk is too small.
    """
    manifest = describe(encoder, processor)
    if (folder / MANIFEST_FILE).exists():
        check_manifest(folder, manifest)
        missing = unknown_keys(folder, images)
        if missing:
            extend_folder(folder, missing)
        return
    if not images.places:
        raise ValueError("no training image can be read; check image_root, and the columns or keys of the rows.")
    blank = processor(images=[Image.new("RGB", (32, 32))], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        shape = tuple(encoder(blank.to(encoder.device)).last_hidden_state.shape[1:])
    print_size(folder, len(images.places), shape)
    keys = np.frombuffer(b"".join(images.places), np.uint8).reshape(-1, 16)
    np.save(folder / KEYS_FILE, keys)
    np.lib.format.open_memmap(folder / STATES_FILE, "w+", np.float16, (len(keys), *shape))
    (folder / STATUS_FILE).write_bytes(bytes([PENDING]) * len(keys))
    for name in (KEYS_FILE, STATES_FILE, STATUS_FILE):
        fsync(folder / name)
    with atomic_write(folder / MANIFEST_FILE) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def is_complete(folder: Path, images: RowImages) -> bool:
    """Return whether a folder has the states of all images that can be read."""
    is_there = (folder / MANIFEST_FILE).exists()
    return is_there and not unknown_keys(folder, images) and not indices_to_do(folder, images)


def unknown_keys(folder: Path, images: RowImages) -> list[bytes]:
    """Return the keys of the images that a folder has no room for."""
    known = {key.tobytes() for key in np.load(folder / KEYS_FILE)}
    return [key for key in images.places if key not in known]


def extend_folder(folder: Path, new_keys: Sequence[bytes]) -> None:
    """Reserve room for more images; their keys, which make it known, are written last.

    Raises:
        OSError: If the disk is too small.
    """
    keys = np.load(folder / KEYS_FILE)
    states = np.load(folder / STATES_FILE, mmap_mode="r")
    print(f"{folder} has states of {len(keys):,} images and is extended")
    print_size(folder, len(new_keys), states.shape[1:])
    count = max(len(keys) + len(new_keys), len(states))  # an extension that was interrupted may have reserved more
    with (folder / STATES_FILE).open("r+b") as file:
        file.truncate(states.offset + count * states[0].nbytes)
        header = np.lib.format.header_data_from_array_1_0(states) | {"shape": (count, *states.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)  # numpy leaves room for it to grow in
        if file.tell() != states.offset:
            raise OSError(f"{folder / STATES_FILE} has no room for more images: remove the folder.")
    with (folder / STATUS_FILE).open("r+b") as file:
        file.seek(len(keys))
        file.write(bytes([PENDING]) * len(new_keys))
    for name in (STATES_FILE, STATUS_FILE):
        fsync(folder / name)
    with atomic_write(folder / KEYS_FILE) as unfinished, unfinished.open("wb") as file:
        np.save(file, np.concatenate([keys, np.frombuffer(b"".join(new_keys), np.uint8).reshape(-1, 16)]))


def print_size(folder: Path, count: int, shape: tuple[int, ...]) -> None:
    """Print the size of the states of images.

    Raises:
        OSError: If the disk is too small.
    """
    size = 2 * count * int(np.prod(shape))
    free = shutil.disk_usage(folder).free
    print(f"{count:,} images have {shape[0]} x {shape[1]} states each, {size / 1e9:.3g} GB in {folder}")
    if size > free:
        raise OSError(
            f"{folder} has room for {free / 1e9:.3g} GB: free disk space, set another cache_image_states, or remove "
            "the option to train from pixels."
        )


def describe(encoder: PreTrainedModel, processor: AlbefProcessor) -> dict[str, Any]:
    """Return all that states depend on besides the images: weights, configuration and preprocessing."""
    weights = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    settings = [encoder.config.to_dict(), processor.image_processor.to_dict()]
    relevant = [{name: value for name, value in given.items() if name not in IRRELEVANT} for given in settings]
    described = {
        "weights": weights.hexdigest(),
        "configuration": relevant[0],
        "states": [getattr(encoder, name, None) for name in ("pooling", "num_registers")],
        "preprocessing": relevant[1],
    }
    return json.loads(json.dumps(described, default=str))  # as it is read


def check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise a `ValueError` if states were computed by another encoder or from other pixels."""
    saved = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    different = [name for name, value in manifest.items() if saved.get(name) != value]
    if different:
        raise ValueError(
            f"{folder} has states of an image encoder with other {' and '.join(different)} than that of this run: set "
            "another cache_image_states, or remove the folder to compute them again."
        )


class _PixelReader(Dataset):
    """Pixels of the images that are to be encoded, with their indices; None for a broken image."""

    def __init__(self, images: RowImages, keys: np.ndarray, indices: Sequence[int], processor: AlbefProcessor):
        self.images = images
        self.keys = keys
        self.indices = indices
        self.processor = processor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, torch.Tensor | None]:
        index = int(self.indices[position])
        try:
            image = self.images.load(self.keys[index].tobytes())
        except InvalidSampleError:
            return index, None
        return index, self.processor(images=[image], return_tensors="pt")["pixel_values"][0]


@torch.inference_mode()
def encode_missing(
    folder: Path,
    encoder: PreTrainedModel,
    processor: AlbefProcessor,
    images: RowImages,
    accelerator: Accelerator,
    num_workers: int,
) -> None:
    """Encode the images of a folder that have no states yet; each process encodes and writes its part."""
    keys = np.load(folder / KEYS_FILE)
    todo = indices_to_do(folder, images)
    accelerator.wait_for_everyone()  # all processes have read the status before it changes
    todo = todo[accelerator.process_index :: accelerator.num_processes]
    dataset = _PixelReader(images, keys, todo, processor)
    loader = DataLoader(dataset, ENCODING_BATCH, collate_fn=list, num_workers=min(num_workers, os.cpu_count() or 1))
    bar = progress(total=len(todo), desc="encode images", disable=not accelerator.is_main_process)
    for batch in loader if todo else ():
        pixels = {index: image for index, image in batch if image is not None}
        if pixels:
            inputs = torch.stack(list(pixels.values())).to(encoder.device)
            states = encoder(inputs).last_hidden_state.to(torch.float16).cpu()
            if not torch.isfinite(states).all():
                raise ValueError(
                    f"States of the image encoder are not finite in float16: remove {folder} and cache_image_states, "
                    "and train from pixels."
                )
            write_states(folder, dict(zip(pixels, states.numpy(), strict=True)))
        write_status(folder, {index: BROKEN if image is None else ENCODED for index, image in batch})
        bar.update(len(batch))
    bar.close()
    accelerator.wait_for_everyone()


def indices_to_do(folder: Path, images: RowImages) -> list[int]:
    """Return the indices of images of a folder that are needed and have no states yet."""
    keys, status = read_status(folder)
    return [int(index) for index in np.flatnonzero(status == PENDING) if keys[index].tobytes() in images.places]


def write_states(folder: Path, states: Mapping[int, np.ndarray]) -> None:
    """Write states by the indices of their images, and wait until they are on the disk.

    Unlike a write to a memory map, this raises an `OSError` on a full disk.
    """
    mapped = np.load(folder / STATES_FILE, mmap_mode="r")
    with (folder / STATES_FILE).open("r+b") as file:
        for index, values in states.items():
            file.seek(mapped.offset + index * mapped[0].nbytes)
            file.write(values.tobytes())
    fsync(folder / STATES_FILE)


def write_status(folder: Path, status: Mapping[int, int]) -> None:
    """Write the status of images by their indices, and wait until it is on the disk."""
    with (folder / STATUS_FILE).open("r+b") as file:
        for index, value in status.items():
            file.seek(index)
            file.write(bytes([value]))
    fsync(folder / STATUS_FILE)
