"""Options that say where rows come from."""

from dataclasses import dataclass, field


@dataclass
class SourceArguments:
    """Where rows come from."""

    train_files: list[str] = field(
        default_factory=list,
        metadata={"help": 'JSON lists of {"image": path, "caption": text or list}, or of a task\'s rows'},
    )
    image_root: str | None = field(
        default=None, metadata={"help": "folder that image paths are relative to; nothing outside of it is read"}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "argument of datasets.load_dataset: Hub name, folder, imagefolder, webdataset"},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    data_files: list[str] = field(
        default_factory=list, metadata={"help": "files of the dataset, for parquet, webdataset and the like"}
    )
    split: str = field(default="train", metadata={"help": "split of the dataset that rows come from"})

    @property
    def has_source(self) -> bool:
        """Whether rows come from anywhere."""
        return bool(self.train_files or self.dataset)

    def require_one_source(self) -> None:
        """Raise a `ValueError` if two sources are given."""
        if self.train_files and self.dataset:
            raise ValueError("train_files and dataset are both sources of rows; choose one.")
