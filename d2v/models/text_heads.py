"""Text models with a head.

Each `forward` takes the arguments of `Data2VecTextModel.forward`, and labels.

Shapes: B batch, T tokens, N real tokens of a batch, D width, C classes or vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v import losses
from d2v.devices import moved
from d2v.models.base import check_labels, classification_loss, mean
from d2v.models.cpu import Dropout
from d2v.models.generation import generate
from d2v.models.outputs import CausalLMOutput, HeadOutput, QuestionAnsweringOutput
from d2v.models.packing import Packing
from d2v.models.text import Data2VecTextConfig, Data2VecTextModel, TextPreTrainedModel
from d2v.models.transformer import Cache


class LMHead(nn.Module):
    """BERT's language modelling head: linear, GELU, norm, and a projection: the embedding table unless untied."""

    def __init__(self, config: Data2VecTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor, embeddings: nn.Embedding) -> Tensor:
        """(N, D) -> (N, C)"""
        x = self.layer_norm(F.gelu(self.dense(x)))
        return F.linear(x, embeddings.weight, self.bias) if self.decoder is None else self.decoder(x)

    def resize(self, size: int, resized: Callable[[Tensor, int], nn.Parameter]) -> None:
        """Another number of tokens."""
        self.bias = resized(self.bias, size)
        if self.decoder is not None:
            self.decoder.weight = resized(self.decoder.weight, size)
            self.decoder.bias = resized(self.decoder.bias, size)
            self.decoder.out_features = size


class LanguageModel(TextPreTrainedModel):
    """What the two language models share: the head, and where it is computed."""

    def __init__(self, config: Data2VecTextConfig):
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=False)
        self.lm_head = LMHead(config)
        self.init_weights()

    def logits(self, x: Tensor, packing: Packing, at: Tensor | None = None) -> Tensor:
        """Packed states (N, D) to (B, T, C), zeros at padding; or to (n, C), where `at` (B, T) is True."""
        embeddings = self.data2vec_text.embeddings.word_embeddings
        if at is None:
            return packing.unpack(self.lm_head(x, embeddings))
        return self.lm_head(packing.trim(x)[moved(packing.places(at), x.device)], embeddings)


class Data2VecTextForMaskedLM(LanguageModel):
    """Masked tokens, guessed from both sides."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        logits_at: Tensor | None = None,
        return_dict: bool = True,
        **inputs,
    ) -> HeadOutput | tuple:
        """Logits over the vocabulary, and the mean cross-entropy with the labels.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, return_dict, **inputs: as in
                `Data2VecTextModel.forward`.
            labels: (B, T) tokens, -100 where nothing is to be guessed.
            logits_at: (B, T) bool; logits are computed, and returned as (n, C), at these n real tokens only. With a
                large vocabulary that saves most of the head's work. Not together with labels.

        Raises:
            ValueError: a label is outside the vocabulary, or the input is wrong as in `Data2VecTextModel.forward`.
        """
        x, packing, hidden_states, attentions, _ = self.data2vec_text.encode(
            input_ids, attention_mask, token_type_ids, position_ids, **inputs
        )
        logits, loss = self.logits(x, packing, logits_at), None
        if labels is not None:
            check_labels(labels, logits.shape[:2], self.config.vocab_size)
            loss = mean(*losses.cross_entropy(logits.flatten(0, 1), labels.flatten()))
        output = HeadOutput(loss, logits, hidden_states, attentions)
        return output if return_dict else output.to_tuple()


class Data2VecTextForCausalLM(LanguageModel):
    """The next token, guessed from those before it; `config.is_decoder` has to be set."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        logits_at: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        return_dict: bool = True,
        **inputs,
    ) -> CausalLMOutput | tuple:
        """Logits over the vocabulary, and the mean cross-entropy with the token that follows.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, past_key_values, use_cache, return_dict, **inputs:
                as in `Data2VecTextModel.forward`; with labels nothing is cached.
            labels: (B, T), usually `input_ids` with -100 at padding; moved by one token here.
            logits_at: (B, T) bool; logits are computed, and returned as (n, C), at these n real tokens only. Not
                together with labels.

        Raises:
            ValueError: a label is outside the vocabulary, or the input is wrong as in `Data2VecTextModel.forward`.
        """
        if labels is not None:
            use_cache = False
        cache = self.data2vec_text.cache(past_key_values, use_cache)
        x, packing, *states = self.data2vec_text.encode(
            input_ids, attention_mask, token_type_ids, position_ids, past_key_values=cache, **inputs
        )
        logits, loss = self.logits(x, packing, logits_at), None
        if labels is not None:
            check_labels(labels, logits.shape[:2], self.config.vocab_size)
            loss = mean(*losses.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
        output = CausalLMOutput(loss, logits, cache, *states)
        return output if return_dict else output.to_tuple()

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options) -> Tensor:
        """Continue texts token by token, see `d2v.models.generation.generate`."""
        return generate(self, input_ids, attention_mask, **options)


class Data2VecTextForSequenceClassification(TextPreTrainedModel):
    """A class, several, or a value for a text or a pair of texts."""

    def __init__(self, config: Data2VecTextConfig):
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=False)
        self.classifier = ClassificationHead(config)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **inputs,
    ) -> HeadOutput | tuple:
        """Logits for each text, and the loss that fits the labels.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, return_dict, **inputs: as in
                `Data2VecTextModel.forward`.
            labels: (B,) classes; (B, C) zeros and ones, or values; what they are is `config.problem_type`, or told by
                their dtype, see `d2v.losses.classification`.

        Raises:
            ValueError: a label is outside the classes, or the input is wrong as in `Data2VecTextModel.forward`.
        """
        x, packing, hidden_states, attentions, _ = self.data2vec_text.encode(
            input_ids, attention_mask, token_type_ids, position_ids, **inputs
        )
        logits = self.classifier(packing.firsts(x))  # (B, C)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        output = HeadOutput(loss, logits, hidden_states, attentions)
        return output if return_dict else output.to_tuple()


class ClassificationHead(nn.Module):
    """RoBERTa's head: dropout, linear, tanh, dropout, linear, over the first token."""

    def __init__(self, config: Data2VecTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.head_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, first: Tensor) -> Tensor:
        """(B, D) -> (B, C)"""
        return self.out_proj(self.dropout(self.dense(self.dropout(first)).tanh()))


class Data2VecTextForMultipleChoice(TextPreTrainedModel):
    """The right one of several texts, such as a question with each of its answers."""

    def __init__(self, config: Data2VecTextConfig):
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.init_weights()

    def freeze_base_model(self) -> None:
        """Train the head alone, and the pooler with it: pretrained checkpoints have none, so it begins at random."""
        super().freeze_base_model()
        if self.data2vec_text.pooler is not None:
            self.data2vec_text.pooler.requires_grad_(True)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **inputs,
    ) -> HeadOutput | tuple:
        """A logit for each choice, and the cross-entropy with the right one's number.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as in `Data2VecTextModel.forward`,
                with a dimension more: (B, choices, T).
            labels: (B,) numbers of the right choices.
            return_dict, **inputs: as in `Data2VecTextModel.forward`.

        Raises:
            ValueError: a label is not a choice, or the input is wrong as in `Data2VecTextModel.forward`.
        """
        given = inputs_embeds if input_ids is None else input_ids
        if given is None or given.ndim < 3:
            raise ValueError("input_ids should be (B, choices, T)")
        ids, mask, types, positions, embeddings = (
            None if x is None else x.flatten(0, 1)
            for x in (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        )
        x, packing, hidden_states, attentions, _ = self.data2vec_text.encode(
            ids, mask, types, positions, embeddings, **inputs
        )
        logits = self.classifier(self.dropout(self.data2vec_text.pool(x, packing))).view(
            given.shape[:2]
        )  # (B, choices)
        loss = None if labels is None else classification_loss(logits, labels, "single_label_classification")
        output = HeadOutput(loss, logits, hidden_states, attentions)
        return output if return_dict else output.to_tuple()


class Data2VecTextForTokenClassification(TextPreTrainedModel):
    """A class for every token: names, parts of speech."""

    def __init__(self, config: Data2VecTextConfig):
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=False)
        self.dropout = Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **inputs,
    ) -> HeadOutput | tuple:
        """Logits for every token, zeros at padding, and the mean cross-entropy with the labels.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, return_dict, **inputs: as in
                `Data2VecTextModel.forward`.
            labels: (B, T) classes, -100 where none counts, such as at the later pieces of a word.

        Raises:
            ValueError: a label is outside the classes, or the input is wrong as in `Data2VecTextModel.forward`.
        """
        x, packing, hidden_states, attentions, _ = self.data2vec_text.encode(
            input_ids, attention_mask, token_type_ids, position_ids, **inputs
        )
        logits, loss = packing.unpack(self.classifier(self.dropout(x))), None  # (B, T, C)
        if labels is not None:
            check_labels(labels, logits.shape[:2], self.config.num_labels)
            loss = mean(*losses.cross_entropy(logits.flatten(0, 1), labels.flatten()))
        output = HeadOutput(loss, logits, hidden_states, attentions)
        return output if return_dict else output.to_tuple()


class Data2VecTextForQuestionAnswering(TextPreTrainedModel):
    """Where in a text the answer to a question begins and ends."""

    def __init__(self, config: Data2VecTextConfig):
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool = True,
        **inputs,
    ) -> QuestionAnsweringOutput | tuple:
        """Scores of every token as first and last of the answer, and the mean of their two cross-entropies.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, return_dict, **inputs: as in
                `Data2VecTextModel.forward`.
            start_positions, end_positions: (B,) the answer's first and last token; one outside the text counts for
                nothing.

        Raises:
            ValueError: the input is wrong as in `Data2VecTextModel.forward`.
        """
        x, packing, hidden_states, attentions, _ = self.data2vec_text.encode(
            input_ids, attention_mask, token_type_ids, position_ids, **inputs
        )
        logits = packing.unpack(self.qa_outputs(x))  # (B, T, 2)
        if packing.mask is not None:  # else the loss would depend on how long the batch is
            logits = logits.masked_fill(~packing.mask[..., None], torch.finfo(logits.dtype).min)
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            outside = start_logits.shape[1]
            first, last = (
                mean(*losses.cross_entropy(logits, positions.flatten().clamp(0, outside), ignore=outside))
                for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
            )
            loss = (first + last) / 2
        output = QuestionAnsweringOutput(loss, start_logits, end_logits, hidden_states, attentions)
        return output if return_dict else output.to_tuple()
