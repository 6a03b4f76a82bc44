"""The layout of Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from gendistill.samplers.layouts.layout import NETWORK, Row
from gendistill.samplers.layouts.transformer_layout import TransformerLayout

SIDES = {  # the two streams of a block: names in its attention, feed-forward network and modulation
    "x_block": (("attn.to_q", "attn.to_k", "attn.to_v"), "attn.to_out.0", "ff", "norm1.linear", "norm_{}"),
    "context_block": (
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.to_add_out",
        "ff_context",
        "norm1_context.linear",
        "norm_added_{}",
    ),
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
}
POOLED = "y_embedder.mlp.0.weight"


class StableDiffusion3Layout(TransformerLayout):
    """One file with the transformer, the VAE and, in some files, the text encoders.

    The release has no projection of the first text encoder's pooled state: a checkpoint has it in the layer that reads it.
    """

    prefixes: Mapping[str, tuple[str, ...]] = {
        "transformer": (f"{NETWORK}joint_blocks.", "joint_blocks."),
        "vae": ("first_stage_model.",),
        "text_encoder": ("text_encoders.clip_l.transformer.",),
        "text_encoder_2": ("text_encoders.clip_g.transformer.",),
        "text_encoder_3": ("text_encoders.t5xxl.transformer.",),
    }
    optional = ("text_encoder_3", "tokenizer_3")

    def architecture(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        if not self.holds("transformer", shapes):
            return None
        shape = next((shape for name, shape in shapes.items() if name.removeprefix(NETWORK) == "pos_embed"), (0, 0, 0))
        sizes = {(36864, 1536): "sd3-medium", (147456, 1536): "sd3.5-medium", (36864, 2432): "sd3.5-large"}
        if (found := sizes.get((shape[1], shape[2]))) is None:
            raise ValueError(
                f"a Stable Diffusion 3 with a pos_embed of {tuple(shape)}; expects teacher_config: a folder with its configs"
            )
        return found

    def release(self, pipeline: Any) -> str:
        self.require_autoencoder(pipeline)
        projection = pipeline.text_encoder.text_projection.weight
        if projection.shape[0] != projection.shape[1]:
            raise ValueError(
                f"text_encoder has a projection from {projection.shape[1]} to {projection.shape[0]} numbers; the original "
                "layout expects equal widths"
            )
        return "stable-diffusion-3-medium" if pipeline.transformer.config.qk_norm is None else "stable-diffusion-3.5"

    def rows(self, config: Mapping[str, Any], names: Iterable[str]) -> Iterator[Row]:
        yield Row("pos_embed", ("pos_embed.pos_embed",))
        for original, part in ENDS.items():
            yield Row(f"{original}.{{}}", (f"{part}.{{}}",))
        yield Row("final_layer.adaLN_modulation.1.{}", ("norm_out.linear.{}",), swapped=True)
        last = config["num_layers"] - 1
        for number in range(last + 1):
            for side, (attention, out, feed_forward, modulation, norm) in SIDES.items():
                block, part = f"joint_blocks.{number}.{side}", f"transformer_blocks.{number}"
                ends = side == "context_block" and number == last
                yield Row(f"{block}.adaLN_modulation.1.{{}}", (f"{part}.{modulation}.{{}}",), swapped=ends)
                yield Row(f"{block}.mlp.fc1.{{}}", (f"{part}.{feed_forward}.net.0.proj.{{}}",))
                yield Row(f"{block}.mlp.fc2.{{}}", (f"{part}.{feed_forward}.net.2.{{}}",))
                for own in ("attn", "attn2") if side == "x_block" else ("attn",):
                    named = tuple(f"{part}.{name.replace('attn', own, 1)}.{{}}" for name in attention)
                    yield Row(f"{block}.{own}.qkv.{{}}", named)
                    yield Row(f"{block}.{own}.proj.{{}}", (f"{part}.{out.replace('attn', own, 1)}.{{}}",))
                    for which in "qk":
                        yield Row(f"{block}.{own}.ln_{which}.{{}}", (f"{part}.{own}.{norm.format(which)}.{{}}",))

    def weights(self, pipeline: Any) -> dict[str, Tensor]:
        weights = super().weights(pipeline)
        if (projection := weights.pop("text_encoders.clip_l.transformer.text_projection.weight", None)) is not None:
            pooled, size = weights[NETWORK + POOLED], len(projection)
            weights[NETWORK + POOLED] = pooled.clone()
            weights[NETWORK + POOLED][:, :size] = (pooled[:, :size].float() @ projection.float()).to(pooled.dtype)
        return weights
