"""Text from a causal language model, token by token.

Shapes: B batch, T tokens, C vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2v.devices import moved
from d2v.models.text import TextPreTrainedModel


@torch.no_grad()
def generate(
    model: TextPreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    vocab_size: int | None = None,
    eos_token_id: int | list[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    use_cache: bool = True,
    **inputs,
) -> Tensor:
    """Continue texts.

    Args:
        model: a `Data2VecTextForCausalLM`, in evaluation mode, unless dropout is wanted.
        input_ids: (B, T), padded on either side.
        attention_mask: (B, T), 1 at real tokens; without it all are.
        max_new_tokens: at most so many.
        do_sample: draw tokens instead of taking the likeliest.
        temperature: logits are divided by it before drawing.
        top_k: draw from the k likeliest; 0 for all.
        top_p: draw from the likeliest that have this probability together (Holtzman et al., 2020).
        repetition_penalty: logits of tokens that the text has are divided by it, or multiplied where they are negative
            (Keskar et al., 2019); 1 for none.
        vocab_size: only tokens below it are chosen: a tokenizer may have fewer than the model; by default all.
        eos_token_id: a text ends with such a token; by default the configuration's. An empty list for none.
        generator: source of random numbers, or one on the host for each text, whose tokens then do not depend on what
            stands beside it.
        use_cache: keep keys and values; without, everything is computed again for each token.
        **inputs: `encoder_hidden_states` and `encoder_attention_mask` for cross-attention.

    Returns:
        (B, T + new) the given and the new tokens, the pad token where a text has ended.

    Raises:
        ValueError: the model looks at what follows (`config.is_decoder` is not set), or has no positions left; or the
            temperature is not above 0.
    """
    if not model.config.is_decoder:
        raise ValueError("generate needs a model with config.is_decoder")
    if do_sample and not temperature > 0:
        raise ValueError(f"temperature should be above 0, not {temperature}; do_sample=False takes the likeliest token")
    ends = model.config.eos_token_id if eos_token_id is None else eos_token_id
    stops = torch.tensor([ends] if isinstance(ends, int) else ends or [], device=input_ids.device)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids)
    if (longest := int(mask.sum(dim=1).max()) + max_new_tokens - 1) > model.config.max_tokens:
        raise ValueError(f"{longest} tokens would be read; the model has positions for {model.config.max_tokens}")
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    cache, new, new_mask = model.base_model.cache(None, use_cache), input_ids, mask
    for _ in range(max_new_tokens):
        place = new_mask * torch.arange(1, new.shape[1] + 1, device=new.device)
        last = place == place.max(dim=1, keepdim=True).values  # (B, T), True at each text's last real token
        logits = model(new, new_mask, logits_at=last, past_key_values=cache, use_cache=use_cache, **inputs).logits
        logits = repeat_less(logits.float(), input_ids, repetition_penalty)[:, :vocab_size]
        token = choose(logits, do_sample, temperature, top_k, top_p, generator)
        token = token.masked_fill(ended, model.config.pad_token_id)[:, None]  # (B, 1)
        input_ids, mask = torch.cat((input_ids, token), dim=1), torch.cat((mask, torch.ones_like(token)), dim=1)
        ended |= torch.isin(token[:, 0], stops)
        if ended.all():
            break
        new, new_mask = (token, torch.ones_like(token)) if use_cache else (input_ids, mask)
    return input_ids


def repeat_less(logits: Tensor, input_ids: Tensor, penalty: float) -> Tensor:
    """Logits (B, C) that are lower for the tokens of a text (B, T), as `repetition_penalty` of `generate` says."""
    if penalty == 1:
        return logits
    seen = logits.gather(1, input_ids)
    return logits.scatter(1, input_ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def choose(
    logits: Tensor,
    do_sample: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Tensor:
    """The next token, (B,), from logits (B, C); arguments as in `generate`."""
    if not do_sample:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        before[:, 0] = -1  # the likeliest always stays
        logits = logits.scatter(1, order, ordered.masked_fill(before >= top_p, -torch.inf))
    probabilities = logits.softmax(dim=-1)
    if not isinstance(generator, Sequence):
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    sums = probabilities.cumsum(dim=-1)
    drawn = moved(torch.stack([torch.rand(1, generator=each) for each in generator]), logits.device) * sums[:, -1:]
    return torch.searchsorted(sums, drawn, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
