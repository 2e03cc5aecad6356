"""The checkpoints that the authors of ALBEF published, by name, and what they report for them.

Imports neither torch nor transformers, so that `--help` is fast.
"""

from typing import NamedTuple


class PublishedCheckpoint(NamedTuple):
    """A file of the authors.

    Attributes:
        file: Its name at `ADDRESS`.
        task: What it was trained for, a key of `parameter_names.HEADS`.
        reported: Figures that were published for it; recall in % at 1 / 5 / 10, texts for an image first.
        source: Where they were published: a table of the paper (arXiv 2107.07651) or an issue of the repository.
    """

    file: str
    task: str
    reported: str
    source: str


# Addresses of the files are in the README of github.com/salesforce/ALBEF, that of the 4M model also in its issue 16.
ADDRESS = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF"
PUBLISHED = {
    "14M": PublishedCheckpoint(
        "ALBEF.pth",
        "pretraining",
        "Flickr30k test, at 384: text retrieval 88.5 / 98.5 / 99.2, image retrieval 75.92 / 93.34 / 96.66",
        "issues 3 and 29",
    ),
    "4M": PublishedCheckpoint(
        "ALBEF_4M.pth", "pretraining", "Flickr30k test: 84.9 / 97.2 / 99.0, 68.18 / 88.58 / 93.02", "issue 74"
    ),
    "mscoco": PublishedCheckpoint(
        "mscoco.pth",
        "retrieval",
        "COCO 5K test: 77.6 / 94.3 / 97.2, 60.7 / 84.3 / 90.5; Flickr30k without fine-tuning on it: "
        "94.1 / 99.5 / 99.7, 82.8 / 96.3 / 98.1",
        "tables 2 and 3 of the paper",
    ),
    "flickr30k": PublishedCheckpoint(
        "flickr30k.pth",
        "retrieval",
        "Flickr30k test: 95.9 / 99.8 / 100.0, 85.6 / 97.5 / 98.9",
        "table 2 of the paper",
    ),
    "vqa": PublishedCheckpoint("vqa.pth", "vqa", "VQA v2: test-dev 75.84, test-std 76.04", "table 4 of the paper"),
    "refcoco": PublishedCheckpoint(
        "refcoco.pth",
        "retrieval",
        "RefCOCO+, weakly supervised: val 58.46, test A 65.89, test B 46.25",
        "table 5 of the paper",
    ),
    "nlvr2-pretraining": PublishedCheckpoint(
        "pretrain_model_nlvr.pth",
        "nlvr2-pretraining",
        "after fine-tuning, NLVR2: dev 82.55, test-P 83.14",
        "table 4 of the paper",
    ),
}
