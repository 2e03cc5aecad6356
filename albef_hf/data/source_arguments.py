"""Options that say where rows come from."""

from dataclasses import dataclass, field, fields

from ..utils.spelling import closest

DATASET_FORMATS = (
    "aokvqa",
    "cc3m",
    "coco_captions",
    "flickr30k_token",
    "gqa",
    "img2dataset",
    "karpathy",
    "nlvr2",
    "okvqa",
    "refcoco",
    "slake",
    "snli_ve",
    "textvqa",
    "vizwiz",
    "vqa_rad",
    "vqav2",
)

# Options of `dataset` alone: the keys of other rows are fixed.
DATASET_OPTIONS = ("caption_column", "data_files", "dataset_config", "image_column", "streaming")


@dataclass
class SourceArguments:
    """Where rows come from."""

    train_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": 'JSON lists of {"image": path, "caption": text or list}, or of a task\'s rows; or the files of a '
            "published dataset"
        },
    )
    dataset_format: str | None = field(
        default=None,
        metadata={
            "help": f"published dataset that the files are of: {', '.join(DATASET_FORMATS)}; default: what their keys "
            "say"
        },
    )
    image_root: str | None = field(
        default=None,
        metadata={
            "help": "folder that image paths are relative to; nothing outside of it is read; default: the current "
            "one, or that of the first file of a published dataset"
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "argument of datasets.load_dataset: Hub name, folder, imagefolder, webdataset"},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    data_files: list[str] = field(
        default_factory=list, metadata={"help": "files of the dataset, for parquet, webdataset and the like"}
    )
    split: str = field(
        default="train",
        metadata={"help": "split of the dataset, or of files that name several, that rows come from; a+b is both"},
    )

    @property
    def has_source(self) -> bool:
        """Whether rows come from anywhere."""
        return bool(self.train_files or self.dataset)

    @property
    def row_files(self) -> list[str]:
        """Files of rows."""
        return self.train_files

    def check_source(self) -> None:
        """Raise a `ValueError` for two sources, options of no source, or a format that is unknown or without files."""
        if self.train_files and self.dataset:
            raise ValueError("train_files and dataset are both sources of rows; choose one.")
        if not self.dataset:
            self._check_dataset_options()
        if self.dataset_format is None:
            return
        if self.dataset_format not in DATASET_FORMATS:
            raise ValueError(
                f"dataset_format is {self.dataset_format!r}, which is none of {', '.join(DATASET_FORMATS)}"
                f"{closest(self.dataset_format, DATASET_FORMATS)}"
            )
        if not self.row_files:
            raise ValueError(f"dataset_format {self.dataset_format} is that of files; set train_files.")

    def _check_dataset_options(self) -> None:
        """Refuse options that have no effect without a dataset."""
        for option in fields(self):
            if option.name in DATASET_OPTIONS and getattr(self, option.name) not in (option.default, [], None):
                raise ValueError(f"{option.name} has no effect, since dataset is not set: remove it, or set dataset.")
