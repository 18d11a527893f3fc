"""data2vec's pretraining: a student that sees a part predicts what a teacher makes of the whole (Baevski et al., 2022).

The teacher is a moving average of the student. Its last blocks' outputs, normalised and averaged, are the targets at
the masked places. Where the published implementations differ between modalities, so does this: see `views`.

Shapes: B batch, T frames, tokens or patches, N packed positions, n masked ones, D width, C outputs of the other head.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.devices import moved, taken
from d2v.errors import InputError
from d2v.losses import at_least_fp32
from d2v.models.base import PreTrainedModel
from d2v.models.economy import Decoder, encode_seen
from d2v.models.packing import Packing
from d2v.models.sharded import full_tensor
from d2v.models.text import Data2VecTextConfig
from d2v.models.text_heads import LMHead

Norm = Literal["none", "layer", "instance"]
Own = TypeVar("Own", bound="Teacher")


@dataclass
class PretrainingOutput:
    """Of a batch's masked places.

    Attributes:
        predictions: (n, D), the student's, of the targets; None without a teacher.
        targets: (n, D), the teacher's, without gradients.
        auxiliary: (N, C), of the other head at its places, if there is one: the masked ones, or of sound all frames.
        front: (N, D), what the encoder would read if nothing were masked; without gradients, for guards.
    """

    predictions: Tensor | None
    targets: Tensor | None
    auxiliary: Tensor | None
    front: Tensor


class Student(nn.Module):
    """A model without a head, and the heads that only pretraining has.

    Args:
        base_model: what is pretrained, of any modality; its mask embedding is trained too.
        head_layers: linear layers from states to targets, with GELU between and the first twice as wide (fairseq's
            `data2vec_text.py`); 0 for no such head, without a teacher.
        auxiliary: outputs of a linear layer for another target; 0 for none. A text model has a
            language modelling head instead, whose outputs are its tokens.
        decoder: what fills the gaps where the student encodes but what it sees, see `d2v.models.economy`.
    """

    base_model_prefix: ClassVar[str] = "base_model"

    def __init__(self, base_model: Any, *, head_layers: int = 1, auxiliary: int = 0, decoder: Decoder | None = None):
        super().__init__()
        self.decoder = decoder
        self.base_model = base_model
        config: Any = base_model.config
        width, layers = config.hidden_size, list[nn.Module]()
        widths = [width, *[2 * width] * (head_layers - 1), width]
        for i in range(head_layers):
            layers += [nn.GELU()] if i else []
            layers.append(nn.Linear(widths[i], widths[i + 1]))
        # Vision normalises before its blocks, and so behind the last one too; fine-tuning has a norm of its own there.
        norm = getattr(base_model, "layernorm", None)
        self.final_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if isinstance(norm, nn.Identity) else norm
        self.head = nn.Sequential(*layers) if head_layers else None
        self.auxiliary_head: nn.Module | None = None
        if auxiliary:
            text = isinstance(config, Data2VecTextConfig)
            self.auxiliary_head = LMHead(config) if text else nn.Linear(width, auxiliary)

    def forward(
        self, batch: Mapping[str, Any], teacher: "Teacher | None" = None, auxiliary: bool = True
    ) -> PretrainingOutput:
        """What both make of a batch, at its masked places.

        Args:
            batch: what `views` reads of it; `auxiliary_at`, like `masked`, where the auxiliary head is computed, if
                that is elsewhere.
            teacher: of this student; without one nothing but the auxiliary head is computed.
            auxiliary: compute that head, if there is one. Where its loss is not taken it has to be left out: several
                processes wait for the gradient of all that was computed.
        """
        masked, other = batch["masked"], None if teacher is None else teacher.model
        if self.decoder is None:
            seen, packing, front, whole = views(self.base_model, batch, other)
            states = packing.unpack(self.base_model.encoder(seen, packing)[0])[:, first_patch(self.base_model) :]
            states = states if self.final_norm is None else self.final_norm(states)  # (B, T, D)
        else:
            filled, real, front, packing = encode_seen(self.base_model, batch, self.final_norm)
            states = self.decoder(filled, real).unflatten(0, masked.shape[:2])  # (B, M, T, D)
            whole = whole_input(other, batch, front)
        targets = None if teacher is None or whole is None else at_masked(teacher.targets(whole, packing), masked)
        return PretrainingOutput(
            None if self.head is None else self.head(taken(states, masked)),
            targets,
            self.auxiliary(taken(states, batch.get("auxiliary_at", masked))) if auxiliary else None,
            packing.trim(front.detach()),
        )

    def auxiliary(self, states: Tensor) -> Tensor | None:
        """(n, D) -> (n, C), if there is that head."""
        if self.auxiliary_head is None:
            return None
        if isinstance(self.auxiliary_head, LMHead):
            return self.auxiliary_head(states, self.base_model.embeddings.word_embeddings)
        return self.auxiliary_head(states)

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """As `PreTrainedModel.gradient_checkpointing_enable`."""
        self.base_model.gradient_checkpointing_enable(enable)


def at_masked(values: Tensor, masked: Tensor) -> Tensor:
    """(B, T, ...) at the masked places, (n, ...).

    Args:
        values: of each place.
        masked: (B, T) bool, or (B, M, T) for M views of each row.
    """
    if masked.ndim == 2:
        return taken(values, masked)
    rows, _, places = masked.nonzero(as_tuple=True)  # on the host: of M views no copy is made
    return values.flatten(0, 1).index_select(0, moved(rows * masked.shape[2] + places, values.device))


@torch.no_grad()
def begin(model: PreTrainedModel) -> None:
    """Give a new model of images or text tokens and positions that differ enough to be told apart at once.

    BEiT draws its tokens from a normal distribution, and divides what its i-th block adds by the root of 2 i
    (`modeling_cyclical.py`, `fix_init_weight`). Absolute positions of images, which
    data2vec's models do not have, begin as sines and cosines of the row and of the column, a tenth of the usual size,
    and those of text as 0.07 of it: drawn as small as words, they leave small runs at words' frequencies for minutes.
    """
    embeddings: Any = getattr(model, "embeddings", None)
    if first_patch(model):
        for token in (embeddings.cls_token, embeddings.mask_token):
            if token is not None:
                nn.init.normal_(token, std=model.config.initializer_range)
        for i, block in enumerate(cast(Any, model).encoder.layers):
            for linear in (block.attn.out_proj, block.ffn.fc2):
                linear.weight /= (2 * (i + 1)) ** 0.5
        if embeddings.position_embeddings is not None:
            places = torch.cartesian_prod(*(torch.arange(side).float() for side in embeddings.grid))  # (P, 2)
            set_waves(embeddings.position_embeddings[0, 1:], places, 0.1)
    elif isinstance(model.config, Data2VecTextConfig):
        table = embeddings.position_embeddings.weight[model.config.pad_token_id + 1 :]
        set_waves(table, torch.arange(len(table)).float()[:, None], 0.07)


def set_waves(table: Tensor, places: Tensor, size: float) -> None:
    """Make positions (P, D) sines and cosines of each of their coordinates (P, K); up to 2 K - 1 channels stay."""
    waves = places[:, :, None] / 10_000 ** torch.linspace(0, 1, max(table.shape[1] // (2 * places.shape[1]), 1))
    waves = torch.cat((waves.sin(), waves.cos()), dim=2).flatten(1)
    table[:, : waves.shape[1]] = size * waves


def first_patch(model: PreTrainedModel) -> int:
    """Positions of each row before those that can be masked: vision's class token."""
    return int(model.config.model_type == "data2vec-vision")


def views(
    student: PreTrainedModel, batch: Mapping[str, Any], teacher: PreTrainedModel | None
) -> tuple[Tensor, Packing, Tensor, Tensor | None]:
    """What the two encoders read.

    Speech: `input_values` and `attention_mask` (B, S). Frames are masked behind the convolutions and the projection,
    which the teacher has from the student, as it is trained (fairseq: `ema_transformer_only`).
    Text: `input_ids`, `masked_ids` and `attention_mask` (B, T). The teacher embeds the whole without dropout.
    Images: `pixel_values` (B, channels, height, width). Patches become the mask embedding behind the projection.

    Args:
        student: the model that sees the masked input.
        batch: with `masked`, (B, T) bool besides.
        teacher: the model that sees the whole, if there is one.

    Returns:
        (N, D) that the student's encoder reads, its packing, the same unmasked, and (N, D) that the teacher's reads.
    """
    model: Any = student
    other: Any = teacher
    kind = student.config.model_type
    if kind == "data2vec-audio":
        x, packing, _ = model.embed(batch["input_values"], batch["attention_mask"])
        return model.mask(x, packing, batch["masked"]), packing, x, x.detach()
    if kind == "data2vec-text":
        x, packing = model.embed(batch["masked_ids"], batch["attention_mask"])
        front = whole_input(other or model, batch, x)
        return x, packing, front, front
    padded, grid = model.embeddings(batch["pixel_values"], batch["masked"])
    packing = model.packing(padded, grid)
    front = whole_input(other or model, batch, padded)
    return packing.pack(padded), packing, front, front


@torch.no_grad()
def whole_input(model: Any, batch: Mapping[str, Any], shared: Tensor) -> Any:
    """(N, D) that a teacher's encoder reads of whole rows, which in speech is `shared`, the student's; None without."""
    if model is None or model.config.model_type == "data2vec-audio":
        return None if model is None else shared.detach()
    if model.config.model_type == "data2vec-text":
        return model.embed(batch["input_ids"], batch["attention_mask"], trusted=True)[0]
    padded, grid = model.embeddings(batch["pixel_values"])
    return model.packing(padded, grid).pack(padded)


AVERAGED = {"data2vec-audio": r"encoder\.(?!pos_conv_embed\.)", "data2vec-text": r"encoder\.", "data2vec-vision": ""}
"""Parameters of which the teacher has a moving average; it has the student's own of the others.

In fairseq the positional convolutions of speech (`ema_layers_only`) and the embeddings of text
(`ema_transformer_layers_only`) are copied; of vision all is averaged (data2vec_vision's `engine_for_cyclical.py`).
"""


class Teacher(nn.Module):
    """A moving average of a student, in fp32, always in evaluation mode, and what it says of whole inputs.

    Args:
        student: whose base model it is a copy of at first.
        layers: number of last blocks whose outputs are averaged.
        outputs: of a block: of its feed-forward before the residual is added, or of the whole block.
        layer_norm: how each block's outputs are normalised: over the channels, over the positions of each row and
            channel, or not at all.
        target_norm: likewise of their mean.

    Raises:
        InputError: the model has fewer blocks.
    """

    def __init__(
        self,
        student: Student,
        *,
        layers: int,
        outputs: Literal["feed_forward", "block"] = "feed_forward",
        layer_norm: Norm = "layer",
        target_norm: Norm = "none",
    ):
        super().__init__()
        depth = len(student.base_model.encoder.layers)
        if not 1 <= layers <= depth:
            raise InputError(f"teacher.layers should be 1 to {depth}, the model's blocks, not {layers}")
        self.model: Any = copy.deepcopy(student.base_model).float().requires_grad_(False)
        self.model.gradient_checkpointing_enable(False)
        self.layers, self.outputs, self.norms = layers, outputs, (layer_norm, target_norm)
        self.averaged = re.compile(AVERAGED[student.base_model.config.model_type])
        self.eval()

    def train(self: Own, mode: bool = True) -> Own:
        """Stay in evaluation mode: nothing is dropped."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: Student, decay: float) -> None:
        """Move towards the student: the average keeps `decay` of what it was."""
        new = {name: full_tensor(each) for name, each in student.base_model.named_parameters()}
        old = dict(self.model.named_parameters())
        averaged = [name for name in old if self.averaged.match(name)]
        torch._foreach_lerp_([old[name] for name in averaged], [new[name].float() for name in averaged], 1 - decay)
        for name in old.keys() - set(averaged):
            old[name].copy_(new[name])

    @torch.no_grad()
    def targets(self, whole: Tensor, packing: Packing) -> Tensor:
        """(B, T, D): the mean of the last blocks' normalised outputs, without vision's class token.

        Args:
            whole: (N, D) what the encoder reads, see `views`.
            packing: where its positions came from.
        """
        blocks = list(self.model.encoder.layers)[-self.layers :]
        modules: list[Any] = [block.ffn if self.outputs == "feed_forward" else block for block in blocks]
        with recorded(modules) as outputs:
            self.model.encoder(whole, packing)
        skip, (each, last) = first_patch(self.model), self.norms
        if skip:  # images have equally many patches
            outputs = [packing.unpack(output)[:, skip:].flatten(0, 1) for output in outputs]
            packing = Packing(packing.batch, packing.length - skip, lengths=(packing.length - skip,) * packing.batch)
        real = replace(packing, filler=0)
        normalised = [normalise(packing.trim(output), real, each) for output in outputs]
        return real.unpack(normalise(torch.stack(normalised).mean(0), real, last))


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Within, the outputs of these modules are added to a list; of those that return several, the first."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def normalise(x: Tensor, packing: Packing, norm: Norm, eps: float = 1e-5) -> Tensor:
    """(N, D) in fp32, normalised over the channels of each position or over each row's real positions."""
    x = at_least_fp32(x)
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:], eps=eps)
    if norm == "none":
        return x
    parts = []
    for (rows, length), part in zip(packing.runs, x.split([rows * n for rows, n in packing.runs]), strict=True):
        var, mean = torch.var_mean(part.unflatten(0, (rows, length)), dim=1, correction=0, keepdim=True)
        parts.append(((part.unflatten(0, (rows, length)) - mean) * (var + eps).rsqrt()).flatten(0, 1))
    return torch.cat(parts)
