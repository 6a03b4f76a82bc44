"""The layout of Flux.1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gendistill.samplers.layouts.layout import NETWORK, Row
from gendistill.samplers.layouts.transformer_layout import TransformerLayout

SIDES = {  # the two streams of a double block
    "img": (("attn.to_q", "attn.to_k", "attn.to_v"), "attn.to_out.0", "ff", "norm1.linear", "norm_{}"),
    "txt": (
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.to_add_out",
        "ff_context",
        "norm1_context.linear",
        "norm_added_{}",
    ),
}
EMBEDDERS = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
ENDS = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
NORMS = {"query_norm": "q", "key_norm": "k"}


class FluxLayout(TransformerLayout):
    """One file with the transformer and, in some files, the VAE and the text encoders."""

    prefixes: Mapping[str, tuple[str, ...]] = {
        "transformer": (f"{NETWORK}double_blocks.", "double_blocks."),
        "vae": ("vae.", "first_stage_model."),
        "text_encoder": ("text_encoders.clip_l.transformer.",),
        "text_encoder_2": ("text_encoders.t5xxl.transformer.",),
    }

    def architecture(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        names = {name.removeprefix(NETWORK): shape for name, shape in shapes.items()}
        if not self.holds("transformer", shapes) or "double_blocks.0.img_attn.norm.query_norm.scale" not in names:
            return None
        if "guidance_in.in_layer.weight" not in names or names.get("img_in.weight", (0, 64))[1] != 64:
            raise ValueError(
                "a Flux without the guidance scale as an input (schnell), or for other inputs; expects Flux.1 dev, or "
                "teacher_config: a folder with its configs"
            )
        return "flux-dev"

    def release(self, pipeline: Any) -> str:
        self.require_autoencoder(pipeline)
        return "flux-1-dev" if pipeline.transformer.config.guidance_embeds else "flux-1-schnell"

    def rows(self, config: Mapping[str, Any], names: Iterable[str]) -> Iterator[Row]:
        for original, part in EMBEDDERS.items():
            for layer, number in (("in_layer", 1), ("out_layer", 2)):
                yield Row(f"{original}.{layer}.{{}}", (f"time_text_embed.{part}.linear_{number}.{{}}",))
        for original, part in ENDS.items():
            yield Row(f"{original}.{{}}", (f"{part}.{{}}",))
        yield Row("final_layer.adaLN_modulation.1.{}", ("norm_out.linear.{}",), swapped=True)
        for number in range(config["num_layers"]):
            for side, (attention, out, feed_forward, modulation, norm) in SIDES.items():
                block, part = f"double_blocks.{number}.{side}", f"transformer_blocks.{number}"
                yield Row(f"{block}_mod.lin.{{}}", (f"{part}.{modulation}.{{}}",))
                yield Row(f"{block}_attn.qkv.{{}}", tuple(f"{part}.{name}.{{}}" for name in attention))
                yield Row(f"{block}_attn.proj.{{}}", (f"{part}.{out}.{{}}",))
                yield Row(f"{block}_mlp.0.{{}}", (f"{part}.{feed_forward}.net.0.proj.{{}}",))
                yield Row(f"{block}_mlp.2.{{}}", (f"{part}.{feed_forward}.net.2.{{}}",))
                for original, which in NORMS.items():
                    yield Row(f"{block}_attn.norm.{original}.scale", (f"{part}.attn.{norm.format(which)}.weight",))
        for number in range(config["num_single_layers"]):
            block, part = f"single_blocks.{number}", f"single_transformer_blocks.{number}"
            layers = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            yield Row(f"{block}.linear1.{{}}", tuple(f"{part}.{name}.{{}}" for name in layers))
            yield Row(f"{block}.linear2.{{}}", (f"{part}.proj_out.{{}}",))
            yield Row(f"{block}.modulation.lin.{{}}", (f"{part}.norm.linear.{{}}",))
            for original, which in NORMS.items():
                yield Row(f"{block}.norm.{original}.scale", (f"{part}.attn.norm_{which}.weight",))
