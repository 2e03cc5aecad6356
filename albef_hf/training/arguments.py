"""Every option that trainings share, as plain dataclasses; the defaults are the paper's.

A subclass that overrides a default keeps the help of the option. Only light libraries are imported here, so that
`--help` needs neither torch nor the models.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..data.source_arguments import SourceArguments
from ..utils.dtypes import AS_SAVED, DTYPES
from ..utils.redaction import redact
from ..utils.renamed_options import RENAMED_OPTIONS

TRACKERS = ("tensorboard", "wandb", "trackio", "none")
MAX_POSITIONS = 512  # of BERT
COMPILED_TOKENS = 32  # whose multiples texts are padded to for compiled models, at most: one shape for most captions
ENCODERS = ("image_encoder", "text_encoder")
FREEZABLE = (*ENCODERS, "contrastive_head")
NO_AUGMENTATION = {"min_crop_scale": 1.0, "randaugment_operations": 0, "flip_probability": 0.0, "fast_resize": False}


@dataclass
class TrainingArguments:
    """How to train; the defaults are the paper's pretraining."""

    output_dir: str = field(default="runs/albef", metadata={"help": "directory for the model, the log and the curves"})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "replace a model and checkpoints that are already in output_dir"}
    )
    resume_from_checkpoint: bool = field(
        default=False, metadata={"help": "resume from the latest complete checkpoint in output_dir, if there is one"}
    )
    seed: int = field(default=42, metadata={"help": "seed of weights, data order, augmentation and masking"})
    num_train_epochs: int = field(default=30, metadata={"help": "passes over the data"})
    max_steps: int = field(
        default=-1, metadata={"help": "if positive, optimizer steps; overrides num_train_epochs; required for streams"}
    )
    per_device_train_batch_size: int = field(
        default=64, metadata={"help": "pairs per process and forward pass; the paper has 64 on each of 8 GPUs"}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes per optimizer step"})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "peak learning rate; it is not scaled with the batch size"}
    )
    min_learning_rate: float = field(default=1e-5, metadata={"help": "learning rate at the end of the cosine"})
    warmup_steps: int = field(default=1000, metadata={"help": "steps of linear warmup"})
    warmup_learning_rate: float = field(default=0.0, metadata={"help": "learning rate at the start of the warmup"})
    image_encoder_learning_rate: float | None = field(
        default=None,
        metadata={"help": "peak learning rate of the image encoder, scheduled alike; default: learning_rate"},
    )
    text_encoder_learning_rate: float | None = field(
        default=None,
        metadata={"help": "peak learning rate of the text encoder, scheduled alike; default: learning_rate"},
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "factor of the learning rate from each layer of an encoder to the one below, as in BEiT; the last "
            "layer has it once; 1: none"
        },
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "what is not trained, of image_encoder, text_encoder and contrastive_head; the teacher shares it. "
            "The output layer of masked language, which is tied to the word embeddings, is frozen with the text "
            "encoder"
        },
    )
    lora_rank: int = field(
        default=0,
        metadata={
            "help": "rank of LoRA adapters in the attention of the encoders, whose own weights are frozen, as in the "
            "output layer of masked language; needs peft; 0: none"
        },
    )
    lora_alpha: int = field(default=16, metadata={"help": "scale of the adapters, divided by lora_rank"})
    lora_merge: bool = field(
        default=True,
        metadata={
            "help": "merge the adapters into plain weights when a model is saved; if false, they are saved beside "
            "the weights as they were, and loading the model needs peft"
        },
    )
    cache_image_states: str | None = field(
        default=None,
        metadata={
            "help": "directory for the states of a frozen image encoder, computed once for all training images, which "
            "are not augmented then"
        },
    )
    staircase: bool = field(
        default=False,
        metadata={"help": "hold the rate for an epoch, and for 100 steps of the warmup, as the original does"},
    )
    weight_decay: float = field(
        default=0.02, metadata={"help": "weight decay of AdamW; biases and layer norms have none"}
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "clip gradients to this norm; 0 does not clip, as in the original"}
    )
    alpha: float = field(
        default=0.4, metadata={"help": "weight of the teacher in the targets; 0 disables distillation"}
    )
    alpha_ramp_steps: int = field(
        default=-1, metadata={"help": "steps in which alpha grows from 0 to its value; -1: the first epoch"}
    )
    gather_keys: bool = field(
        default=False,
        metadata={
            "help": "contrast with the pairs of all processes and accumulated batches, as in one large batch; "
            "the paper does not"
        },
    )
    gather_negatives: bool = field(
        default=False,
        metadata={"help": "draw hard negatives from the batches of all processes; the paper does not"},
    )
    hardness_strength: float = field(
        default=1.0,
        metadata={
            "help": "exponent of the contrastive distribution that negatives are drawn from; 1: the paper, 0: uniform"
        },
    )
    itm_negatives: int = field(
        default=1, metadata={"help": "negatives for each image and for each text in matching (ITM); 1: the paper"}
    )
    itm_contrast_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the contrast of the matching scores of every text with every image of a batch; "
            "0: the paper"
        },
    )
    momentum: float = field(default=0.995, metadata={"help": "weight of the old teacher in each of its updates"})
    queue_size: int = field(
        default=65536, metadata={"help": "pairs in the teacher's queue; a queue saved with the model keeps its size"}
    )
    teacher_dropout: bool = field(
        default=True,
        metadata={
            "help": "keep the teacher's dropout active, as the original does; without it, a step with alpha 0 "
            "computes no masked-language logits of the teacher"
        },
    )
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "help": "no, bf16 or fp16; default: what `accelerate launch` sets, if it is bf16 or fp16, or that of the "
            "resumed run, or bf16 on a GPU that has it, otherwise no"
        },
    )
    tf32: bool = field(
        default=False,
        metadata={
            "help": "train in float32, but multiply matrices in TF32, which NVIDIA GPUs have from Ampere on; not with "
            "bf16 or fp16"
        },
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "sdpa, eager or flash_attention_2; with bf16 on a CPU, eager is the fastest"}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "recompute activations instead of storing them"}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "compile student and teacher; pays off in runs of more than a few minutes"}
    )
    ddp_timeout: int = field(
        default=7200,
        metadata={
            "help": "seconds that a process waits for the others before it ends with an error; longer than anything "
            "that the main process does alone, such as writing the model"
        },
    )
    ddp_comm_hook: str = field(
        default="no",
        metadata={
            "help": "bf16: processes exchange gradients in bfloat16, which is half as much on the network; no: in the "
            "precision of the weights"
        },
    )
    dataloader_num_workers: int = field(default=4, metadata={"help": "processes that load data, per training process"})
    logging_steps: int = field(default=50, metadata={"help": "steps between two records in the log"})
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "where records go besides the log: tensorboard, wandb, trackio, or none"},
    )
    peak_tflops: float = field(
        default=0.0,
        metadata={"help": "10^12 operations per second of a device, for the MFU; 0: data sheet of a known GPU"},
    )
    eval_steps: int = field(default=0, metadata={"help": "steps between two evaluations; 0: at the end of each epoch"})
    save_steps: int = field(
        default=0,
        metadata={"help": "steps between two checkpoints; 0: with each evaluation, -1: only when interrupted"},
    )
    save_total_limit: int = field(default=2, metadata={"help": "latest checkpoints that are kept, at least 1"})
    keep_every: int = field(
        default=0, metadata={"help": "keep every checkpoint whose step is a multiple of this; 0: none"}
    )
    max_skipped_share: float = field(
        default=0.1, metadata={"help": "stop when more than this fraction of the pairs had to be skipped"}
    )
    max_nonfinite_steps: int = field(
        default=20, metadata={"help": "stop after this many consecutive steps with a non-finite loss or gradient"}
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "push the directory to the Hub whenever a model is saved, and at the end"}
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "repository to push to, such as you/albef; default: the directory's name"}
    )
    hub_private_repo: bool = field(
        default=False, metadata={"help": "make the repository private if it does not exist yet"}
    )
    hub_tag: str | None = field(default=None, metadata={"help": "tag of the final push, such as v1.0"})
    hub_teacher: bool = field(
        default=False, metadata={"help": "push momentum.safetensors too, which further training can start from"}
    )

    RENAMED: ClassVar[dict[str, str]] = RENAMED_OPTIONS  # former names, refused with the present ones

    def __post_init__(self) -> None:
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}; image-text matching needs a "
                "negative, so use at least 2."
            )
        if self.itm_negatives >= self.per_device_train_batch_size and not self.gather_negatives:
            raise ValueError(
                f"itm_negatives is {self.itm_negatives} and per_device_train_batch_size "
                f"{self.per_device_train_batch_size}: negatives come from the same batch, which needs more pairs. "
                "Lower the first, raise the second, or set gather_negatives."
            )
        self.require_at_least(1, "gradient_accumulation_steps", "num_train_epochs", "logging_steps")
        self.require_at_least(1, "max_nonfinite_steps", "save_total_limit", "itm_negatives", "ddp_timeout")
        self.require_at_least(0, "queue_size", "dataloader_num_workers", "eval_steps", "warmup_steps")
        self.require_at_least(0, "max_grad_norm", "weight_decay", "keep_every", "lora_rank", "itm_contrast_weight")
        self.require_at_least(-1, "max_steps", "alpha_ramp_steps", "save_steps")
        self.require_fraction("alpha", "momentum", "max_skipped_share", "hardness_strength")
        if not 0 <= self.min_learning_rate <= self.learning_rate or self.learning_rate == 0:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and min_learning_rate {self.min_learning_rate}; "
                "both must be positive, and the first the larger one."
            )
        self._check_encoders()
        self._check_report_to()
        self._check_precision()

    def _check_precision(self) -> None:
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision is {self.mixed_precision!r}; choose no, bf16 or fp16.")
        if self.tf32 and self.mixed_precision not in (None, "no"):
            raise ValueError(f"tf32 is for float32; remove it, or mixed_precision {self.mixed_precision}.")
        if self.ddp_comm_hook not in ("no", "bf16"):
            raise ValueError(f"ddp_comm_hook is {self.ddp_comm_hook!r}; choose no or bf16.")

    def _check_encoders(self) -> None:
        """Refuse unknown encoders, rates that cannot be, and options of encoders that are frozen."""
        unknown = [name for name in self.freeze if name not in FREEZABLE]
        if unknown:
            raise ValueError(f"freeze contains {unknown[0]!r}; choose from {', '.join(FREEZABLE)}.")
        for encoder in ENCODERS:
            name = f"{encoder}_learning_rate"
            rate = getattr(self, name)
            if rate is not None and encoder in self.freeze:
                raise ValueError(f"{name} has no effect on a frozen encoder; remove it, or {encoder} from freeze.")
            if rate is not None and rate <= 0:
                raise ValueError(
                    f"{name} is {rate}; it must be positive. To train nothing of it, set freeze {encoder}."
                )
        if self.lora_rank and set(self.freeze) >= set(ENCODERS):
            raise ValueError("lora_rank has no effect on frozen encoders; remove it, or one of them from freeze.")
        if not (self.lora_merge or self.lora_rank):
            raise ValueError("lora_merge false has no effect without adapters; remove it, or set lora_rank.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1.")
        if self.layer_decay < 1 and set(self.freeze) >= set(ENCODERS):
            raise ValueError("layer_decay has no effect on frozen encoders; remove it, or train one of them.")

    def _check_report_to(self) -> None:
        unknown = [name for name in self.report_to if name not in TRACKERS]
        if unknown:
            raise ValueError(f"report_to contains {unknown[0]!r}; choose from {', '.join(TRACKERS)}.")
        if len(self.report_to) > 1 and "none" in self.report_to:
            raise ValueError("report_to contains none and other trackers; remove one or the other.")

    def require_at_least(self, minimum: int, *names: str) -> None:
        """Raise a `ValueError` for an option below `minimum`."""
        for name in names:
            if not getattr(self, name) >= minimum:  # also NaN
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {minimum}.")

    def require_fraction(self, *names: str) -> None:
        """Raise a `ValueError` for an option that is not between 0 and 1."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1.")


@dataclass
class DataArguments(SourceArguments, TrainingArguments):
    """What to train and evaluate on, and how texts and images are prepared."""

    validation_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "JSON lists, or files of a published dataset, to evaluate on; can be combined with a dataset to "
            "train on"
        },
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "split of the dataset, or of files that name several, for evaluation"}
    )
    scenes: int = field(
        default=20000,
        metadata={"help": "built-in rows to train on if no other data is given; validation_size others are evaluated"},
    )
    validation_size: int = field(default=1000, metadata={"help": "images, or built-in rows, for evaluation"})
    min_crop_scale: float = field(
        default=0.2, metadata={"help": "smallest fraction of an image that the augmentation keeps"}
    )
    randaugment_operations: int = field(default=2, metadata={"help": "operations of RandAugment drawn for each image"})
    fast_resize: bool = field(
        default=False,
        metadata={"help": "resize training images with torch, which is faster; few pixels differ, by little"},
    )
    max_words: int = field(default=30, metadata={"help": "words of a text that are kept"})
    max_tokens: int = field(default=25, metadata={"help": "tokens of a text that are kept"})
    pad_to_multiple_of: int | None = field(
        default=None,
        metadata={
            "help": "pad texts to a multiple of this number of tokens, at most to max_tokens, in pretraining the "
            "masked tokens to the number that is expected of so many, and answers likewise, so that torch_compile "
            "meets few shapes; the loss stays the same; default: with torch_compile max_tokens, at most 32, otherwise "
            "what the longest text needs"
        },
    )

    # The splits of the rows of published files, by the files and the option that chose them; known once they are read.
    read_splits: ClassVar[dict[tuple[str, ...], list[str]]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "max_words", "scenes")
        self.require_at_least(2, "max_tokens")
        if self.pad_to_multiple_of is not None:
            self.require_at_least(1, "pad_to_multiple_of")
        self.require_at_least(0, "validation_size", "randaugment_operations")
        self.require_fraction("min_crop_scale")
        self.check_source()
        if self.cache_image_states:
            self._check_image_states()

    def _check_image_states(self) -> None:
        """Refuse states of an encoder that is trained, and augmentation, which would have no effect."""
        if "image_encoder" not in self.freeze:
            raise ValueError(
                "cache_image_states keeps the states of a frozen image encoder; set freeze image_encoder too, or "
                "remove it."
            )
        for name, value in NO_AUGMENTATION.items():
            default = type(self).__dataclass_fields__.get(name)
            if default is None:  # an option of some commands
                continue
            if getattr(self, name) not in (value, default.default):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but images are not augmented with cache_image_states; remove "
                    f"it, or set {value}."
                )
            setattr(self, name, value)

    @property
    def row_files(self) -> list[str]:
        """Files of rows to train on and to evaluate on."""
        return self.train_files + self.validation_files

    @property
    def needs_splits(self) -> bool:
        """Whether a split is evaluated on of the files that are trained on, which have to name it then."""
        is_chosen = self.validation_split != type(self).validation_split
        return is_chosen and {*self.train_files} == {*self.validation_files}

    @property
    def text_multiple(self) -> int | None:
        """Number of tokens whose multiples texts are padded to, if any."""
        if self.torch_compile and self.pad_to_multiple_of is None:
            return min(self.max_tokens, COMPILED_TOKENS)
        return self.pad_to_multiple_of

    def describe_rows(self, files: list[str], split: str | None, count: int) -> str:
        """Return where rows come from, for the model card."""
        if files:
            splits = self.read_splits.get((*files, split or ""))
            names = ", ".join(Path(redact(file)).name for file in files)
            return f"the rows of {names}" + (f", split {'+'.join(splits)}" if splits else "")
        if self.dataset:
            return f"the dataset {redact(self.dataset)}, split {split}"
        return f"{count} built-in rows, images of colored shapes drawn from a seed"

    def describe_training_data(self) -> str:
        """Return what the model is trained on."""
        return self.describe_rows(self.train_files, self.split, self.scenes)

    def describe_validation_data(self) -> str:
        """Return what the model is evaluated on, which may be held out of the training data."""
        named = self.validation_files or (self.dataset and self.validation_split)
        if not named and self.has_source:
            return f"a part held out of {self.describe_training_data()}"
        return self.describe_rows(self.validation_files, self.validation_split, self.validation_size)


@dataclass
class PretrainingArguments(DataArguments):
    """Options of pretraining: the initial model, in addition to `DataArguments`; pairs are held out for validation."""

    model: str | None = field(
        default=None, metadata={"help": "folder or Hub name of an ALBEF to continue from, with its teacher"}
    )
    vision_model: str | None = field(
        default=None,
        metadata={
            "help": "folder or Hub name of an image model, such as DeiT or DINOv2, that initializes the image encoder"
        },
    )
    text_model: str | None = field(
        default=None,
        metadata={"help": "folder or Hub name of a BERT, RoBERTa, XLM-R or CamemBERT that initializes the text side"},
    )
    model_config: str | None = field(
        default=None, metadata={"help": "AlbefConfig as a JSON file or text; missing settings are those of base size"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "folder or Hub name; default: that of the text model, or BERT-base uncased"},
    )
    shards: list[str] = field(
        default_factory=list, metadata={"help": "folders written by `albef shards`, to train on"}
    )
    streaming: bool = field(
        default=False, metadata={"help": "read the dataset on the fly instead of downloading it first"}
    )
    image_column: str = field(default="image", metadata={"help": "column of the dataset that has the image"})
    caption_column: str = field(
        default="caption", metadata={"help": "column of the dataset that has the caption, a text or a list of texts"}
    )
    scenes_max_objects: int = field(default=4, metadata={"help": "a scene has 2 to this many objects, at most 4"})
    scenes_wrong_share: float = field(
        default=0.0, metadata={"help": "fraction of the scenes' captions that belong to another scene"}
    )
    scenes_vague_share: float = field(
        default=0.0, metadata={"help": "fraction of the scenes' captions that fit any scene"}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "probability of masking a token"})
    rerank_k: int = field(default=16, metadata={"help": "candidates of each query that ITM reranks in the evaluation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "rerank_k")
        self.require_fraction("mlm_probability", "scenes_wrong_share", "scenes_vague_share")
        fresh = [name for name in ("vision_model", "text_model", "model_config", "tokenizer") if getattr(self, name)]
        if self.model and fresh:
            raise ValueError(f"model comes with its own configuration and tokenizer; remove {', '.join(fresh)}.")
        if self.cache_image_states and self.streaming:
            raise ValueError("cache_image_states needs to know all images; remove streaming.")
        if self.shards and (self.train_files or self.dataset):
            raise ValueError("shards, train_files and dataset are all sources of rows; choose one.")
        if self.validation_split and not self.validation_files:
            self.validation_files = self.train_files  # of which it chooses the rows
            if not (self.train_files or self.dataset):
                raise ValueError(
                    "validation_split chooses among the rows of a dataset or of files; set validation_files, or "
                    "remove it."
                )

    @property
    def has_source(self) -> bool:
        """Whether pairs come from anywhere but the built-in scenes."""
        return bool(self.shards) or super().has_source

    def describe_training_data(self) -> str:
        """Return what the model is trained on."""
        names = [Path(folder).resolve().name for folder in self.shards]
        if names:
            return f"the pairs in the shards of {', '.join(names)}"
        return super().describe_training_data()


@dataclass
class FineTuningArguments(DataArguments):
    """Options of fine-tuning: the initial model, in addition to `DataArguments`."""

    unused_options: ClassVar[frozenset[str]] = frozenset()  # without effect in this task; refused

    validation_split: str | None = "validation"
    min_crop_scale: float = 0.5
    max_tokens: int = MAX_POSITIONS
    model: str = field(default="", metadata={"help": "folder or Hub name of an ALBEF to start from, with its teacher"})
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "JSON file or text with AlbefConfig settings: with a model, other probabilities of dropout; "
            "without one, all settings of an untrained model"
        },
    )
    image_size: list[int] = field(
        default_factory=list,
        metadata={
            "help": "pixels of a square, or height and width; positions are interpolated; default: those of the model"
        },
    )
    columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": "names of columns of the dataset, such as image=photo; for NLVR2 maybe left_image=a right_image=b"
        },
    )
    flip_probability: float = field(
        default=0.5, metadata={"help": "probability of mirroring an image; built-in rows are never mirrored"}
    )
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "rows per process and forward pass in the evaluation"}
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "of the weights in an evaluation: float32, bfloat16, float16, or auto for that of the saved ones; "
            "bfloat16 is twice as fast on many CPUs. Others than float32 take the place of mixed_precision"
        },
    )
    text_only_baseline: bool = field(
        default=True, metadata={"help": "train a classifier on the texts alone, for comparison"}
    )
    exchanged_images: bool = field(
        default=True,
        metadata={
            "help": "evaluate once more with images exchanged among rows, which shows what the model reaches without "
            "the right image; takes as long as the evaluation and is done for each new best model"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "validation_size", "per_device_eval_batch_size")
        self._check_image_size()
        self._check_dtype()
        self.require_fraction("flip_probability")
        if not (self.model or self.model_config):
            raise ValueError(
                "Set model, a folder or Hub repository of an ALBEF to start from, or model_config, the settings of an "
                "untrained one."
            )

    def _check_dtype(self) -> None:
        if self.dtype not in (*DTYPES, AS_SAVED):
            raise ValueError(f"dtype is {self.dtype!r}; choose from {', '.join(DTYPES)} and {AS_SAVED}.")
        if self.dtype != "float32" and self.tf32:
            raise ValueError(f"tf32 is for float32; remove it, or dtype {self.dtype}.")

    def _check_image_size(self) -> None:
        """Accept one number, also from a saved run or a YAML file, or two."""
        if isinstance(self.image_size, int):
            self.image_size = [self.image_size] if self.image_size else []
        if len(self.image_size) > 2 or any(side < 1 for side in self.image_size):
            raise ValueError(f"image_size is {self.image_size}; pass one positive number of pixels, or two.")
