"""The options of pretraining, and the two networks that they describe."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from d2v.config import Data, Job, Lora, Optim, Run, at_least, named_model, not_blank
from d2v.data.facts import note
from d2v.errors import InputError
from d2v.models.economy import Decoder
from d2v.models.pretraining import Norm, Student, Teacher


@dataclass
class Teaching:
    """The teacher, and the student's loss of its targets.

    Attributes:
        weight: weight of the loss; 0 for no teacher, so that the auxiliary target is the only one.
        layers: number of the teacher's last blocks whose outputs make the targets; all blocks of a model that has
            fewer than the default.
        outputs: output of a block: that of its feed-forward layers before the residual is added, or the whole block's.
        layer_norm: normalisation of each block's outputs, over the channels, over the positions of a row, or none.
        target_norm: normalisation of the mean of these outputs, likewise.
        half_life: the teacher's half-life at the first update, as a share of the run's updates.
        final_half_life: the same at the end of the rise.
        rise: share of the run's updates in which the decay rises linearly from the first half-life to the final one.
        beta: difference from which the loss grows linearly; 0 for the squared difference.
        reduction: a position's loss is the sum over the channels, that over the root of their number, or their mean.
        head_layers: number of linear layers from the student's states to the targets.
    """

    weight: float = 1.0
    layers: int = 8
    outputs: Literal["feed_forward", "block"] = "feed_forward"
    layer_norm: Norm = "layer"
    target_norm: Norm = "none"
    half_life: float = 0.005
    final_half_life: float = 0.05
    rise: float = 0.25
    beta: float = 0.0
    reduction: Literal["sum", "root", "mean"] = "mean"
    head_layers: int = 1

    def __post_init__(self):
        at_least(0, "teacher", self, ("weight", "half_life", "final_half_life", "rise", "beta"))
        at_least(1, "teacher", self, ("layers", "head_layers"))

    def decay(self, step: int, total: int) -> float:
        """The share of itself that the teacher keeps at an update; it rises linearly, as fairseq's `get_annealed_rate`.

        Args:
            step: updates done before.
            total: updates of the whole run.
        """
        first, last = (0.5 ** (1 / max(share * total, 1e-9)) for share in (self.half_life, self.final_half_life))
        risen = min(step / max(self.rise * total, 1), 1.0)
        return first + (last - first) * risen


@dataclass
class Auxiliary:
    """A target that needs no teacher: MFCCs of all frames of sound, pixels or tokens at masked places.

    Attributes:
        weight: weight of its loss at the first update; 0 for none. The loss is summed over the predicted positions and
            divided by the number of masked ones, which are fewer in audio.
        until: share of the run's updates in which the weight falls to 0; by default it is constant.
    """

    weight: float = 0.0
    until: float | None = None

    def __post_init__(self):
        at_least(0, "auxiliary", self, ("weight", "until"))

    def at(self, step: int, total: int) -> float:
        """The weight at an update."""
        return self.weight * (1.0 if self.until is None else max(1 - step / max(self.until * total, 1), 0.0))


@dataclass
class Alarm:
    """Conditions for stopping a run because the targets have collapsed.

    Attributes:
        rank: effective rank of the targets below which they may have collapsed.
        unexplained: share of the targets' variance left unexplained below which targets of low rank count as collapsed.
        deviation: standard deviation of the targets or predictions below which they have collapsed in any case; they
            also have if all have the same direction.
        patience: number of consecutive log lines that have to show this; 0 never stops a run.
    """

    rank: float = 20.0
    unexplained: float = 0.25
    deviation: float = 0.01
    patience: int = 5

    def __post_init__(self):
        at_least(0, "alarm", self, ("rank", "unexplained", "deviation", "patience"))


@dataclass
class Probe:
    """Linear classifiers that measure progress on a few labels, which the loss does not; the model does not use them.

    Attributes:
        column: column of labels, such as words or speakers, that linear classifiers predict from each layer's mean
            states at every evaluation; by default none.
        rows: number of training rows that they are fitted to, and maximum number of validation rows that they are
            scored on.
    """

    column: str | None = None
    rows: int = 500

    def __post_init__(self):
        at_least(2, "probe", self, ("rows",))
        not_blank("probe", self)


@dataclass
class Economy:
    """data2vec 2.0's economy.

    Attributes:
        views: number of masked views of each row that share the teacher's pass; the student encodes only their unmasked
            positions. 0 for version 1, whose student encodes whole rows that contain the mask embedding.
        layers: number of the decoder's convolutions, which fill the gaps.
        width: number of the decoder's channels.
        kernel: number of positions in a convolution's kernel; for patches in either direction.
        groups: number of groups of a convolution's channels.
    """

    views: int = 0
    layers: int = 4
    width: int = 384
    kernel: int = 7
    groups: int = 16

    def __post_init__(self):
        at_least(0, "economy", self, ("views",))
        at_least(1, "economy", self, ("layers", "width", "kernel", "groups"))


@dataclass
class Pretraining:
    """The configuration of every pretraining recipe.

    Attributes:
        mode: train, or prepare: fetch data and model and cache what is computed for every row, so that the same
            command trains without a network.
        model: hub id or folder of the model to continue with, or small, which comes with d2v; by default, or with none,
            pretraining starts from random weights.
        arch: fields of the model's configuration to change, such as --arch.hidden_size 192.
        teacher: the teacher, and the student's loss of its targets.
        auxiliary: a target that needs no teacher.
        alarm: conditions for stopping a run because the targets have collapsed.
        probe: linear classifiers that measure progress on a few labels.
        economy: data2vec 2.0's economy.
        data: the data; only the probe uses labels.
        optim: optimisation by AdamW.
        run: the run.
    """

    freeze: ClassVar[str] = "nothing"
    lora: ClassVar[Lora] = Lora()

    mode: Literal["train", "prepare"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    teacher: Teaching = field(default_factory=Teaching)
    auxiliary: Auxiliary = field(default_factory=Auxiliary)
    alarm: Alarm = field(default_factory=Alarm)
    probe: Probe = field(default_factory=Probe)
    economy: Economy = field(default_factory=Economy)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)

    def __post_init__(self):
        self.model = named_model(self.model, self.data)
        if not self.teacher.weight and not self.auxiliary.weight:
            raise InputError("teacher.weight and auxiliary.weight are 0: there is nothing to learn")
        if not self.teacher.weight and self.auxiliary.until is not None and self.auxiliary.until < 1:
            raise InputError(
                f"auxiliary.until {self.auxiliary.until:g}: without a teacher (teacher.weight 0) nothing is learnt then"
            )
        unused = {"run.patience": self.run.patience, "run.metric": self.run.metric, "optim.ema": self.optim.ema}
        unused["optim.freeze_encoder_steps"] = self.optim.freeze_encoder_steps
        for name, value in unused.items():
            if value:
                raise InputError(f"{name} has no meaning in pretraining, which keeps the last model; leave it out")


def student_and_teacher(
    job: Job, base_model: Any, auxiliary: int, grid: tuple[int, int] | None = None
) -> tuple[Student, Teacher | None]:
    """The two networks that a run starts from.

    Args:
        job: whose configuration is a `Pretraining`.
        base_model: from `d2v.training.model.build`.
        auxiliary: number of outputs for the auxiliary target.
        grid: rows and columns of patches of an image.
    """
    options: Teaching = job.config.teacher
    layers = options.head_layers if options.weight else 0
    economy, decoder = job.config.economy, None
    if economy.views:
        shape = {"layers": economy.layers, "kernel": economy.kernel, "groups": economy.groups, "grid": grid}
        decoder = Decoder(base_model.config.hidden_size, economy.width, **shape)
    outputs = auxiliary if job.config.auxiliary.weight else 0
    student = Student(base_model, head_layers=layers, auxiliary=outputs, decoder=decoder)
    if not options.weight:
        return student, None
    norms = {"layer_norm": options.layer_norm, "target_norm": options.target_norm}
    depth, wanted = base_model.config.num_hidden_layers, options.layers
    if wanted > depth and wanted == type(job.config)().teacher.layers:  # nobody asked for the base model's number
        line = f"teacher: the outputs of all {depth} blocks are learnt from; the model has fewer than {wanted}"
        note(job, "teacher's layers", f"{line} (teacher.layers)", layers=depth)
        wanted = depth
    return student, Teacher(student, layers=wanted, outputs=options.outputs, **norms)
