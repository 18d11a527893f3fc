"""Configuration as dataclasses: the options that every recipe shares. `d2v.cli` fills them from the command line."""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from d2v.errors import InputError


@dataclass
class Run:
    """The run.

    Attributes:
        out: folder for everything that the run writes.
        seed: seed of initial weights, dropout, masks, the order of rows and the held-out share.
        epochs: passes over the training rows; max_steps overrides it.
        max_steps: number of updates; by default epochs decides.
        max_minutes: minutes of this session after which the run saves and stops; --run.resume true continues it.
        resume: continue exactly from the last checkpoint in out, or start if there is none.
        precision: fp32, bf16, fp16, or auto for bf16 where the processor has instructions for it and fp32 elsewhere; by
            default accelerate's configuration.
        pieces: number of pieces that a batch is computed in, one after another, in evaluation too; more take less
            memory and change no update.
        eval_every: updates from one evaluation to the next; by default one epoch.
        save_every: updates from one checkpoint to the next; by default eval_every. Evaluations save first in any case.
        save_minutes: minutes without a checkpoint after which one is written.
        log_every: updates from one line of log.jsonl to the next.
        keep_last: number of checkpoints that are kept besides the best model.
        metric: metric that chooses the best model, such as cer or eval_loss, the validation loss; in a list such as
            wer,cer later ones break ties; by default the recipe's first. Pretraining keeps the last model.
        patience: evaluations without a better metric after which the run stops; by default it does not.
        max_nonfinite: consecutive updates with a loss or gradient that is not finite after which the run stops.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        replications: number of bootstrap replications for a metric's 95 % interval; 0 gives no interval.
        push: hub id that the best model is pushed to in the end, with its processor, card and adapter; by default none.
        private: create the repository of push as private; by default it is public.
        tracker: tracker of accelerate that gets the log too, such as wandb; auto means tensorboard if it is installed.
        project: project of the run in the tracker; TensorBoard's files are in a folder of this name in out.
    """

    out: str = "runs/d2v"
    seed: int = 0
    epochs: int = 10
    max_steps: int | None = None
    max_minutes: float | None = None
    resume: bool = False
    precision: Literal["fp32", "bf16", "fp16", "auto"] | None = None
    pieces: int = 1
    eval_every: int | None = None
    save_every: int | None = None
    save_minutes: float = 30.0
    log_every: int = 10
    keep_last: int = 2
    metric: str | None = None
    patience: int | None = None
    max_nonfinite: int = 10
    gradient_checkpointing: bool = False
    replications: int = 1000
    push: str | None = None
    private: bool = False
    tracker: str | None = "auto"
    project: str = "d2v"

    def __post_init__(self):
        counts = ("epochs", "max_steps", "pieces", "eval_every", "save_every", "log_every", "keep_last", "patience")
        at_least(1, "run", self, (*counts, "max_nonfinite"))
        at_least(0, "run", self, ("save_minutes", "max_minutes", "replications"))
        not_blank("run", self)
        self.out = str(Path(self.out).expanduser()) if self.out.startswith("~") else self.out
        if not 0 <= self.seed < 2**32:  # numpy's range
            raise InputError(f"run.seed should be between 0 and {2**32 - 1}, not {self.seed}")


@dataclass
class Optim:
    """Optimisation by AdamW.

    Attributes:
        lr: peak learning rate.
        betas: AdamW's betas.
        eps: AdamW's epsilon.
        weight_decay: weight decay of parameters with two or more dimensions; biases, norms and scales have none.
        clip: maximum gradient norm; 0 disables clipping.
        schedule: course of the learning rate after warm-up; tri_stage holds it, then decays it exponentially.
        warmup: number of updates, or below 1 share of all updates, in which the rate rises to its peak.
        hold: share of all updates for which tri_stage holds the peak.
        start_scale: learning rate at the start of warm-up, as a share of the peak; tri_stage begins at it, others one
            step above.
        final_scale: learning rate that the schedule falls to, as a share of the peak; the last update is one step
            above it.
        layer_decay: factor of the learning rate from each layer to the one below it.
        batches: number of batches whose rows make one update, on any number of processes.
        freeze_encoder_steps: number of initial updates in which only the head is trained. Not in pretraining.
        ema: decay of a moving average of the weights, such as 0.9999, which is evaluated and kept; it begins lower and
            rises to this; 0 disables it. Not in pretraining.
    """

    lr: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: Literal["linear", "cosine", "tri_stage", "constant"] = "linear"
    warmup: float = 0.1
    hold: float = 0.4
    start_scale: float = 0.0
    final_scale: float = 0.0
    layer_decay: float = 1.0
    batches: int = 1
    freeze_encoder_steps: int = 0
    ema: float = 0.0

    def __post_init__(self):
        at_least(1, "optim", self, ("batches",))
        scales = ("hold", "start_scale", "final_scale", "layer_decay", "ema")
        at_least(0, "optim", self, ("lr", "eps", "weight_decay", "clip", "warmup", "freeze_encoder_steps", *scales))
        if self.schedule == "tri_stage" and self.final_scale <= 0:
            raise InputError("optim.final_scale should be above 0 with optim.schedule tri_stage, such as 0.05")
        if self.schedule == "tri_stage" and self.warmup < 1 < self.warmup + self.hold:
            both = self.warmup + self.hold
            raise InputError(f"optim.warmup and optim.hold should be at most 1 together, not {both:g}")
        if self.ema >= 1:
            raise InputError(f"optim.ema should be below 1, such as 0.9999, not {self.ema:g}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optim.betas should be at least 0 and below 1, not {list(self.betas)}")


@dataclass
class Lora:
    """Low-rank adapters.

    Attributes:
        rank: rank of the adapters, which are trained in place of the encoder's weights; 0 trains all weights.
        alpha: an adapter's output is scaled by alpha / rank; by default that factor is 2.
        dropout: dropout before the adapters.
        target_modules: layers that get an adapter, among q_proj, k_proj, v_proj, out_proj, fc1 and fc2.
    """

    rank: int = 0
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])

    def __post_init__(self):
        at_least(0, "lora", self, ("rank", "dropout"))
        if self.dropout >= 1:
            raise InputError(f"lora.dropout should be below 1, not {self.dropout:g}")


@dataclass
class Data:
    """The data; without a path the recipe's embedded demo.

    Attributes:
        path: hub id, perhaps with a revision as in owner/name@main, or folder or file, see recipes/README.md; by
            default the demo, with the options of configs/<recipe>/demo.yaml.
        name: configuration of the data set, such as cola of glue.
        train_split: split to train on; train+other joins two.
        validation_split: split that chooses the best checkpoint; without one a share of train is held out.
        test_split: split that is scored once, with the best checkpoint; null leaves it for later, and validation is
            scored.
        validation_share: share of train that is held out where there is no validation split.
        group_column: column of groups, such as speakers or sites, that are held out whole; by default rows about one
            text, or parts of one recording, form a group if that holds out about as many rows.
        fold: part of train that is tested and not trained on, such as 2/5 for the second of five; run.seed draws the
            parts, so use the same seed for all of them.
        max_train_samples: number of rows to train on, sampled by run.seed; by default all.
        max_validation_samples: number of rows to validate on, sampled likewise.
        max_test_samples: number of rows to test on, sampled likewise.
        batch_size: maximum number of rows in a batch.
        workers: number of processes that read and prepare batches; 0 does so in the training process.
        submission: sample submission of a competition, a CSV of ids and predictions, by which predict writes
            submission.csv; by default none.
        bad_rows: refuse rows that cannot be used, or skip and count them.
        streaming: read train during training, shard by shard, from a hub id, parquet, JSON lines or WebDataset
            archives, instead of preparing it on disk first; run.max_steps says when training ends.
        buffer_rows: number of rows of a stream that are held and shuffled at a time, on all processes together.
        delimiter: character between the columns of a CSV or TSV file; by default a comma or a tab, by its ending.
        header: names of the columns of CSV and TSV files without a header; by default their first line has them.
    """

    modality: ClassVar[str] = ""
    """The model's input: audio, text or vision; set by each recipe's data."""
    unit: ClassVar[str] = "rows"
    """Unit of a batch's size."""
    whole: ClassVar[str | None] = None
    """Why train cannot be streamed; None where it can."""

    path: str | None = None
    name: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str | None = "test"
    validation_share: float = 0.1
    group_column: str | None = None
    fold: str | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None
    batch_size: int = 16
    workers: int = 0
    submission: str | None = None
    bad_rows: Literal["refuse", "skip"] = "refuse"
    streaming: bool = False
    buffer_rows: int = 2000
    delimiter: str | None = None
    header: list[str] | None = None

    def __post_init__(self):
        if self.path is not None and not self.path.strip():
            raise InputError("data.path is empty, such as a variable that is not set; leave it out for the demo")
        not_blank("data", self, besides=("delimiter", "label_separator", "separator", "remove"))
        if getattr(self, "label_separator", None) == "":
            raise InputError("data.label_separator is empty; it should be what stands between labels, such as ;")
        if self.path and self.path.startswith("file://"):
            self.path = unquote(urlsplit(self.path).path)
        if self.path and "://" in self.path:
            raise InputError(f"data.path {self.path}: should be a file or folder here, or the hub id of a data set")
        if self.path:
            self.path = str(Path(self.path).expanduser())
        self.delimiter = {"\\t": "\t", "tab": "\t"}.get(self.delimiter or "", self.delimiter)
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise InputError(f"data.delimiter should be one character, such as ; or tab, not {self.delimiter!r}")
        samples = ("max_train_samples", "max_validation_samples", "max_test_samples")
        at_least(1, "data", self, ("batch_size", "buffer_rows", *samples))
        at_least(0, "data", self, ("workers",))
        for each in fields(self):  # of the recipe's own data too
            value = getattr(self, each.name)
            length = each.name.endswith("_seconds") and each.name != "stride_seconds"  # which may be 0
            if length and value is not None and not value > 0:
                raise InputError(f"data.{each.name} should be above 0, not {value:g}")

    @property
    def running(self) -> bool:
        """Whether each row continues the one before it, so that rows are held out and sampled in one piece."""
        return False

    @property
    def together(self) -> str | None:
        """Column of the text or recording that several rows share; these stay together in a split if possible."""
        return None

    @property
    def max_size(self) -> float | None:
        """Largest padded size of a batch in `unit`s; None where only the number of rows is limited."""
        return None


@dataclass
class Recipe:
    """The configuration of every recipe.

    Attributes:
        mode: train and test a model, evaluate it on labelled data, predict on unlabelled data, or prepare: fetch data
            and model and cache what is computed for every row, so that the same command trains without a network.
        model: hub id, perhaps with a revision as in owner/name@main, or folder of the model to start from, or small,
            the pretrained model of this modality that comes with d2v (a folder of this name is ./small); none starts
            from random weights. By default the demo's model where data.path is not given, else random weights.
        arch: fields of the model's configuration to change, such as --arch.hidden_size 192.
        freeze: part that is not trained: nothing; feature_encoder, the waveform convolutions, or the embeddings of text
            and images; or encoder, everything except the head. By default feature_encoder if an audio model is given,
            else nothing.
        lora: low-rank adapters.
        data: the data.
        optim: optimisation by AdamW.
        run: the run.
    """

    mode: Literal["train", "evaluate", "predict", "prepare"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    freeze: Literal["nothing", "feature_encoder", "encoder"] | None = None
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)

    def __post_init__(self):
        self.model = named_model(self.model, self.data)
        if self.freeze is None:  # random convolutions have to be learnt
            self.freeze = "feature_encoder" if self.model and self.data.modality == "audio" else "nothing"


@dataclass(frozen=True)
class Job:
    """A run that has begun, from `d2v.training.job.start`, shared by data, model and loop.

    Attributes:
        config: the recipe's configuration.
        accelerator: the `accelerate.Accelerator`.
        recipe: name of the recipe, such as "asr_ctc".
        facts: what was read, see `d2v.data.facts`.
        decoded: rows that decoding had to change, counted there too.
        shared: how many of the first of these all processes know of.
    """

    config: Any
    accelerator: Any
    recipe: str
    facts: list[dict[str, Any]] = field(default_factory=list)
    decoded: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    shared: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Folder of the run."""
        return Path(self.config.run.out)

    @property
    def training(self) -> bool:
        """Whether the mode is train, or prepares for it."""
        return self.config.mode in ("train", "prepare")

    @property
    def labelled(self) -> bool:
        """Whether the data have labels: in all modes but predict."""
        return self.config.mode != "predict"

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process


def recipe_file(config: type) -> Path | None:
    """The recipe's script that defines this configuration class, also when a notebook or test has loaded it."""
    source = getattr(sys.modules.get(config.__module__), "__file__", None)
    return Path(source) if source else None


def demo_file(config: type) -> Path | None:
    """`configs/<recipe>/demo.yaml` beside the recipe that defines this configuration class, where there is one."""
    source = recipe_file(config)
    file = source and source.parent / f"configs/{source.stem}/demo.yaml"
    return file if file and file.is_file() else None


def named_model(model: str | None, data: Data) -> str | None:
    """The model that the option `model` names; small is another one for each modality."""
    if model is not None and not model.strip():
        raise InputError("model is empty, such as a variable that is not set; none is for random weights")
    named = {"none": None, "small": f"small/{data.modality}"}.get(model or "none", model)
    return str(Path(named).expanduser()) if named and named.startswith("~") else named


def at_least(lowest: float, group: str, options: Any, names: tuple[str, ...]) -> None:
    """Raise InputError for the first of these options that is set and below `lowest`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise InputError(f"{group}.{name} should be at least {lowest}, not {value}")


def not_blank(group: str, options: Any, besides: tuple[str, ...] = ()) -> None:
    """Raise InputError for the first option that is blank text, which as a path would be the current folder.

    Args:
        group: of the options.
        options: a dataclass.
        besides: options for which white space is a value.
    """
    for each in fields(options):
        value = getattr(options, each.name)
        if isinstance(value, str) and not value.strip() and each.name not in besides:
            text = f"{group}.{each.name} is empty, such as a variable that is not set"
            raise InputError(f"{text}; leave it out for its default")


def shares(group: str, options: Any, names: tuple[str, ...]) -> None:
    """Raise InputError for the first of these options that is a number, and not a share from 0 to below 1."""
    for name in names:
        value = getattr(options, name)
        if isinstance(value, int | float) and not 0 <= value < 1:
            raise InputError(f"{group}.{name} should be at least 0 and below 1, not {value:g}")
