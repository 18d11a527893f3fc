"""data2vec for language: its configuration, and the model that puts token embeddings before the shared encoder.

Shapes: B batch, T tokens, N real tokens of a batch, D width, H heads, S tokens of another encoder.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from d2v.errors import InputError
from d2v.models.base import Config, PreTrainedModel, init_linear
from d2v.models.cpu import Dropout, filler
from d2v.models.outputs import TextModelOutput
from d2v.models.packing import Packing
from d2v.models.transformer import Activation, Cache, Encoder
from d2v.pretrained import Renames


@dataclass(kw_only=True)
class Data2VecTextConfig(Config):
    """Configuration of the text models; the sizes are data2vec text base's, which are BERT base's.

    Attributes:
        vocab_size: tokens that have an embedding.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act: size of the encoder.
        hidden_dropout_prob, attention_probs_dropout_prob: after the embeddings and each branch, and on the attention
            weights.
        max_position_embeddings: positions; a text can have `max_position_embeddings - pad_token_id - 1` tokens.
        type_vocab_size: token types (segments).
        layer_norm_eps: of all norms.
        pad_token_id, bos_token_id, eos_token_id: of the vocabulary; positions are counted from `pad_token_id + 1`.
        use_cache: a decoder returns its keys and values.
        classifier_dropout: before a classification head; by default `hidden_dropout_prob`.
        is_decoder: a token sees only what comes before it.
        add_cross_attention: a decoder's layers also attend to another encoder's states.
        tie_word_embeddings: the language modelling heads project with the embedding table.
    """

    model_type: ClassVar[str] = "data2vec-text"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.add_cross_attention and not self.is_decoder:
            raise InputError("add_cross_attention needs is_decoder: only a decoder looks at another encoder's states")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise InputError(f"pad_token_id {self.pad_token_id} should be a token, 0 to {self.vocab_size - 1}")
        if self.max_tokens < 1:
            least = (
                f"should be at least {self.pad_token_id + 2}, of which the first {self.pad_token_id + 1} are not used"
            )
            raise InputError(f"max_position_embeddings {self.max_position_embeddings} {least}")

    @property
    def max_tokens(self) -> int:
        """The longest text, special tokens counted; the positions up to the pad token's are never used (fairseq)."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def head_dropout(self) -> float:
        """Dropout before a classification head."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


class TextEmbeddings(nn.Module):
    """Token, position and type embeddings, added and normalised; packed."""

    def __init__(self, config: Data2VecTextConfig):
        super().__init__()
        pad, width = config.pad_token_id, config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=pad)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, padding_idx=pad)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Embedded words (N, D), positions (N,) and types (N,) to (N, D)."""
        x = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.layer_norm(x))


class Pooler(nn.Module):
    """The first token's state through a linear layer and tanh, as BERT's next-sentence head began."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Tensor) -> Tensor:
        """(B, D) -> (B, D)"""
        return self.dense(first).tanh()


class TextPreTrainedModel(PreTrainedModel):
    """What the text models share: names, initialisation, the embedding table's size."""

    config_class = Data2VecTextConfig
    config: Data2VecTextConfig
    base_model: "Data2VecTextModel"
    base_model_prefix = "data2vec_text"
    renames: ClassVar[Renames] = (
        ("embeddings.layer_norm.", "embeddings.LayerNorm."),
        ("encoder.layers.*.attn.q_proj.", "encoder.layer.*.attention.self.query."),
        ("encoder.layers.*.attn.k_proj.", "encoder.layer.*.attention.self.key."),
        ("encoder.layers.*.attn.v_proj.", "encoder.layer.*.attention.self.value."),
        ("encoder.layers.*.attn.out_proj.", "encoder.layer.*.attention.output.dense."),
        ("encoder.layers.*.attn_norm.", "encoder.layer.*.attention.output.LayerNorm."),
        ("encoder.layers.*.cross_attn.q_proj.", "encoder.layer.*.crossattention.self.query."),
        ("encoder.layers.*.cross_attn.k_proj.", "encoder.layer.*.crossattention.self.key."),
        ("encoder.layers.*.cross_attn.v_proj.", "encoder.layer.*.crossattention.self.value."),
        ("encoder.layers.*.cross_attn.out_proj.", "encoder.layer.*.crossattention.output.dense."),
        ("encoder.layers.*.cross_norm.", "encoder.layer.*.crossattention.output.LayerNorm."),
        ("encoder.layers.*.ffn.fc1.", "encoder.layer.*.intermediate.dense."),
        ("encoder.layers.*.ffn.fc2.", "encoder.layer.*.output.dense."),
        ("encoder.layers.*.ffn_norm.", "encoder.layer.*.output.LayerNorm."),
    )

    def init_weights(self) -> None:
        """Initialise as BERT: normal weights, zero biases; the pad token's embedding is zero."""
        for module in self.modules():
            init_linear(module, self.config.initializer_range)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx])

    def adapt_weights(self, weights: dict[str, Tensor], entries: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """Drop what a model computes by itself, and the copies of tied weights that older checkpoints have.

        A checkpoint may have a tied weight under its other name alone: which of the two is kept, each tool decides.
        """
        unused = ["embeddings.position_ids", "embeddings.token_type_ids"]
        if self.config.tie_word_embeddings:
            base = "" if self.base_model is self else self.base_model_prefix + "."
            tied = {f"{base}embeddings.word_embeddings.weight": "lm_head.decoder.weight"}
            tied |= {"lm_head.bias": "lm_head.decoder.bias"} if base else {}
            weights = {own: weights[copy] for own, copy in tied.items() if copy in weights} | weights
            unused += tied.values()
        return {key: value for key, value in weights.items() if not key.endswith(tuple(unused))}

    def resize_token_embeddings(self, size: int) -> None:
        """Make room for more tokens, or drop the last ones; new rows are drawn as at initialisation.

        Raises:
            ValueError: the pad token would be dropped.
        """
        if size <= self.config.pad_token_id:
            raise ValueError(f"{size} tokens would leave out the pad token, {self.config.pad_token_id}")
        self.config.vocab_size = size
        embeddings = self.base_model.embeddings
        embeddings.word_embeddings.weight = self.resized(embeddings.word_embeddings.weight, size)
        embeddings.word_embeddings.num_embeddings = size
        if (head := getattr(self, "lm_head", None)) is not None:
            head.resize(size, self.resized)

    def resized(self, old: Tensor, size: int) -> nn.Parameter:
        """A table with another number of rows."""
        new = old.new_empty(size, *old.shape[1:])
        nn.init.normal_(new, std=self.config.initializer_range) if new.ndim > 1 else nn.init.zeros_(new)
        kept = min(size, len(old))
        new[:kept] = old.data[:kept]
        return nn.Parameter(new, requires_grad=old.requires_grad)


class Data2VecTextModel(TextPreTrainedModel):
    """Tokens to contextual states; with `config.is_decoder` from left to right."""

    def __init__(self, config: Data2VecTextConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(
            config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            hidden=config.intermediate_size,
            pre_norm=False,
            activation=config.hidden_act,
            norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
            activation_dropout=0.0,
            layer_scale=0.0,
            key_bias=True,
            implementation=config.attn_implementation,
            causal=config.is_decoder,
            cross_attention=config.add_cross_attention,
        )
        self.pooler = Pooler(config.hidden_size) if add_pooling_layer else None
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> TextModelOutput | tuple:
        """Encode a batch of texts.

        Args:
            input_ids: (B, T) token numbers.
            attention_mask: (B, T), 1 at real tokens; without it all are.
            token_type_ids: (B, T); 0 by default.
            position_ids: (B, T); by default real tokens are counted from `pad_token_id + 1`, as fairseq does.
            head_mask: (H,) or (layers, H), a factor for each head's output.
            inputs_embeds: (B, T, D) in place of `input_ids`.
            encoder_hidden_states: (B, S, D), what a decoder with cross-attention looks at.
            encoder_attention_mask: (B, S), 1 where they are real.
            past_key_values: what an earlier call returned; the tokens given now follow on those.
            use_cache: begin a cache and return it; by default a decoder does as its configuration says, but not in
                training.
            output_attentions: return attention weights, which takes the eager path in every layer.
            output_hidden_states: return all layers' outputs.
            return_dict: False for a tuple of the fields that are set.

        Raises:
            ValueError: the input has the wrong shape or dtype, is too long, or has a number outside the vocabulary
                (numbers are not looked at while compiling).
        """
        cache = self.cache(past_key_values, use_cache)
        x, packing, hidden_states, attentions, cross_attentions = self.encode(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            cache,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        output = TextModelOutput(
            packing.unpack(x), self.pool(x, packing), hidden_states, cache, attentions, cross_attentions
        )
        return output if return_dict else output.to_tuple()

    def pool(self, x: Tensor, packing: Packing) -> Tensor | None:
        """Packed states (N, D) to (B, D), a text each; None without a pooler."""
        return None if self.pooler is None else self.pooler(packing.firsts(x))

    def cache(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache that was given, or a new one if one is wanted."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if past_key_values is None and use_cache and self.config.is_decoder:
            return Cache(self.config.num_hidden_layers)
        return past_key_values

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **options,
    ) -> tuple[Tensor, Packing, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """What `forward` does, but the last hidden state is packed, (N, D), and its packing follows it; for heads."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            x, packing = self.embed(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, past_key_values
            )
            memory = None
            if encoder_hidden_states is not None:
                if not self.config.add_cross_attention:
                    raise ValueError("encoder_hidden_states are for a decoder with config.add_cross_attention")
                rows, size = encoder_hidden_states.shape[:2]
                seen = Packing.of(encoder_attention_mask, rows, size, device=encoder_hidden_states.device)
                memory = seen.pack(encoder_hidden_states), seen
            x, hidden_states, attentions = self.encoder(x, packing, memory=memory, cache=past_key_values, **options)
        cross_attentions = None
        if attentions is not None and memory is not None:
            attentions, cross_attentions = zip(*attentions, strict=True)
        return x, packing, hidden_states, attentions, cross_attentions

    def embed(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        *,
        trusted: bool = False,
    ) -> tuple[Tensor, Packing]:
        """What the encoder reads, (N, D), and its packing; of `trusted` input no number is looked at, see `check`."""
        given = self.check(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, trusted)
        batch, length = given.shape[:2]
        packing = Packing.of(attention_mask, batch, length, device=given.device)
        if packing.lengths is not None:
            if not min(packing.lengths):
                raise ValueError(f"row {packing.lengths.index(0)} has no token: its attention_mask is all 0")
            packing = replace(packing, filler=filler(sum(packing.lengths), self.embeddings.word_embeddings.weight))
        if position_ids is None:
            position_ids = self.position_ids(input_ids, (batch, length), past_key_values)
        position_ids = position_ids.expand(batch, length)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        words = packing.pack(given)
        if inputs_embeds is None:
            words = self.embeddings.word_embeddings(words)
        return self.embeddings(words, packing.pack(position_ids), packing.pack(token_type_ids)), packing

    def position_ids(self, input_ids: Tensor | None, shape: tuple[int, int], cache: Cache | None) -> Tensor:
        """(B, T): real tokens counted from `pad_token_id + 1`; the pad token's position is its number.

        What is real is told by `input_ids`, not by the attention mask, as in fairseq and Hugging Face's models.
        """
        pad, device = self.config.pad_token_id, self.device
        past = torch.zeros(shape[0], 1, dtype=torch.int64, device=device)
        if cache is not None and cache.mask is not None:
            past = cache.mask.sum(dim=1, keepdim=True)
        real = torch.ones(shape, dtype=torch.int64, device=device) if input_ids is None else (input_ids != pad).long()
        positions = (real.cumsum(dim=1) + past) * real + pad
        # Only where there may be too many is a device asked, which would make the host wait.
        possible = cache is not None or shape[1] + pad >= self.config.max_position_embeddings
        if possible and not torch.compiler.is_compiling() and positions.max() >= self.config.max_position_embeddings:
            longest = positions.max().item() - pad
            raise ValueError(f"a text of {longest} tokens; the model has positions for {self.config.max_tokens}")
        return positions

    def check(
        self, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, trusted: bool = False
    ) -> Tensor:
        """Raise ValueError for input of the wrong shape, dtype, length or range.

        Ranges are not looked at while compiling, of trusted input, or in training on a device, which is not waited for.

        Returns:
            Whichever is given of `input_ids` and `inputs_embeds`.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("either input_ids or inputs_embeds should be given")
        if inputs_embeds is not None and (inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != config.hidden_size):
            raise ValueError(f"inputs_embeds should be (B, T, {config.hidden_size}), not {tuple(inputs_embeds.shape)}")
        if input_ids is not None and (input_ids.ndim != 2 or input_ids.is_floating_point()):
            raise ValueError(
                f"input_ids should be whole numbers (B, T), not {input_ids.dtype} {tuple(input_ids.shape)}"
            )
        shape = input_ids.shape if inputs_embeds is None else inputs_embeds.shape[:2]
        limits = {"input_ids": config.vocab_size, "token_type_ids": config.type_vocab_size}
        given = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask}
        limits["position_ids"], given["position_ids"] = config.max_position_embeddings, position_ids
        for name, value in given.items():
            if value is None:
                continue
            if value.shape != shape and not (name == "position_ids" and value.shape == (1, shape[1])):
                raise ValueError(f"{name} has shape {tuple(value.shape)}; should be {tuple(shape)}")
            unseen = trusted or (self.training and value.device.type != "cpu")
            if name in limits and not unseen and not torch.compiler.is_compiling() and value.numel():
                least, most = value.min().item(), value.max().item()
                if least < 0 or most >= limits[name]:
                    wrong = least if least < 0 else most
                    raise ValueError(f"{name} has a {wrong}; should be 0 to {limits[name] - 1}")
        return input_ids if inputs_embeds is None else inputs_embeds
