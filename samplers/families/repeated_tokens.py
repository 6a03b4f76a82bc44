"""Joint attention with one text token in place of many identical ones: the same function at a fraction of its cost.

Stable Diffusion 3's pipeline without T5 appends 256 zero tokens to the tokens of CLIP. The text stream has no positions, so
these tokens remain identical in every block. One of them with `log(256)` added to the logits of its key has the same weight in
every softmax as all 256 together, and the outputs of the other tokens are equal (`exp(l + log n) = n exp(l)`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0

Stock: Any = JointAttnProcessor2_0  # diffusers' annotations lack other processors and plain tensors


@contextmanager
def last_token_repeated(transformer: Any, repeats: int) -> Iterator[None]:
    """A context in which the last text token stands for `repeats` identical tokens; the processors are restored at its end.

    with last_token_repeated(transformer, 256):
        transformer(latents, encoder_hidden_states=states[:, :-255], ...)  # one of the 256
    """
    processors = transformer.attn_processors
    transformer.set_attn_processor(RepeatedTokenProcessor(repeats))
    try:
        yield
    finally:
        transformer.set_attn_processor(processors)


def knows_repeated_tokens(network: torch.nn.Module) -> bool:
    """Whether the last text token of a call stands for n identical tokens with `joint_attention_kwargs={"repeats": n}`.

    A network with diffusers' processors has those of this module from then on, which compute the same without that argument. A
    network with others, such as those of an IP-Adapter, is left as it is.
    """
    layers: list[Any] = [layer for layer in network.modules() if isinstance(layer, Attention)]
    if not layers or any(type(layer.processor) not in (JointAttnProcessor2_0, RepeatedTokenProcessor) for layer in layers):
        return False
    for layer in layers:
        if not isinstance(layer.processor, RepeatedTokenProcessor):
            layer.set_processor(RepeatedTokenProcessor())
    return True


class RepeatedTokenProcessor(Stock):
    """`JointAttnProcessor2_0` with the last text token in place of `repeats` identical tokens.

    Attention of the image alone (`attn2` of Stable Diffusion 3.5) is unchanged.

    Args:
        repeats: of calls that do not give a number.
    """

    def __init__(self, repeats: int = 1) -> None:
        super().__init__()
        self.repeats = repeats

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        repeats: int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        repeats = repeats or self.repeats
        if encoder_hidden_states is None or repeats == 1:
            unchanged: torch.Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)
            return unchanged

        def heads(projection: torch.nn.Module, norm: torch.nn.Module | None, states: torch.Tensor) -> torch.Tensor:
            projected = projection(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return projected if norm is None else norm(projected)

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat([heads(attn.to_q, attn.norm_q, image), heads(attn.add_q_proj, attn.norm_added_q, text)], dim=2)
        key = torch.cat([heads(attn.to_k, attn.norm_k, image), heads(attn.add_k_proj, attn.norm_added_k, text)], dim=2)
        value = torch.cat([heads(attn.to_v, None, image), heads(attn.add_v_proj, None, text)], dim=2)
        bias = F.pad(query.new_full((1, 1, 1, 1), math.log(repeats)), (key.shape[2] - 1, 0))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        image, text = attended.to(query.dtype).split([image.shape[1], text.shape[1]], dim=1)
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[1](attn.to_out[0](image)), text
