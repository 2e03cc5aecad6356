"""Rows of captions from the files of published datasets; each function takes the parsed contents of one or more."""

from typing import Any

from .file_contents import Row

FLICKR30K_FOLDER = "flickr30k-images"
CAPTION_COLUMNS = ("caption", "title")
PATH_COLUMNS = ("filepath", "file")
DOWNLOAD = (
    "a list of captions and addresses, and nothing is downloaded. Give it the first line `caption<TAB>url`, run "
    "`img2dataset --url_list FILE --input_format tsv --url_col url --caption_col caption --output_format webdataset "
    "--output_folder cc3m`, then `albef shards --output_dir cc3m`, and train with --shards cc3m"
)


def karpathy(contents: list[Any]) -> list[Row]:
    """Return a row for each caption of Karpathy's splits, `dataset_coco.json` and `dataset_flickr30k.json`.

    `{"images": [{"filepath", "filename", "split", "sentences": [{"raw"}]}], "dataset"}`, with a `filepath` in COCO
    alone (https://cs.stanford.edu/people/karpathy/deepimagesent). Splits: train, restval (COCO), val, test.
    """
    return [
        {
            "image": f"{image.get('filepath', FLICKR30K_FOLDER)}/{image['filename']}",
            "caption": sentence["raw"],
            "split": image["split"],
        }
        for content in contents
        for image in content["images"]
        for sentence in image["sentences"]
    ]


def coco_captions(contents: list[Any]) -> list[Row]:
    """Return a row for each caption of `captions_train2014.json` and the like, of 2014 or 2017.

    `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`
    (https://cocodataset.org/#format-data); an image is looked for in the folder of its part, such as `val2014`.
    """
    rows = []
    for content in contents:
        files = {image["id"]: image for image in content["images"]}
        for annotation in content["annotations"]:
            image = files[annotation["image_id"]]
            folder = image["coco_url"].split("/")[-2] if "coco_url" in image else "images"
            rows.append({"image": f"{folder}/{image['file_name']}", "caption": annotation["caption"]})
    return rows


def flickr30k_token(contents: list[Any]) -> list[Row]:
    """Return a row for each line of Flickr30k's `results_20130124.token`, which has no splits.

    `1000092795.jpg#0<TAB>Two young guys ...` (https://shannon.cs.illinois.edu/DenotationGraph).
    """
    rows = []
    for lines in contents:
        for line in lines:
            name, _, caption = line.partition("\t")
            rows.append({"image": f"{FLICKR30K_FOLDER}/{name.rpartition('#')[0]}", "caption": caption})
    return rows


def cc3m(contents: list[Any]) -> list[Row]:
    """Return a row for each line of Conceptual Captions with the path of an image that was downloaded.

    The published `Train_GCC-training.tsv` has lines of caption and address and no header
    (https://ai.google.com/research/ConceptualCaptions/download). The files that open_clip's `src/data/gather_cc.py`
    writes begin with `title<TAB>filepath`.

    Raises:
        ValueError: If there is no column of paths; the message says how to download the images.
    """
    rows = []
    for lines in contents:
        header = lines[0].split("\t")
        caption = next((header.index(name) for name in CAPTION_COLUMNS if name in header), None)
        path = next((header.index(name) for name in PATH_COLUMNS if name in header), None)
        if caption is None or path is None:
            raise ValueError(f"It is {DOWNLOAD}.")
        for line in lines[1:]:
            values = line.split("\t")
            if len(values) == len(header):
                rows.append({"image": values[path], "caption": values[caption]})
            else:
                rows.append({"dropped": f"line of {len(values)} columns"})
    return rows
