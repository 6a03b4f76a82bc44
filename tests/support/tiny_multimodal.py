"""Tiny random pipelines of transformers in which the tokens of text and image attend to each other (multimodal, MMDiT)."""

import json
import string

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tiny_pipeline import tiny_text_encoder, tiny_tokenizer, tiny_vae
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextModelWithProjection, Qwen2TokenizerFast, T5Config, T5EncoderModel, T5TokenizerFast

SHIFTED = {"latent_channels": 16, "shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False}


def tiny_t5(width):
    """A T5 encoder whose states have `width` channels, and its tokenizer of single letters."""
    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -1.0),
        *((letter, -3.0) for letter in string.ascii_lowercase),
    ]
    tokenizer = Tokenizer(models.Unigram(letters, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    torch.manual_seed(4)
    settings = {"d_model": width, "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 1, "vocab_size": len(letters)}
    return T5EncoderModel(T5Config(**settings)).eval(), T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0)


def tiny_sd3(tokenizer_folder, t5=True):
    """Stable Diffusion 3 for 32 pixels: prompts (L, 48) of two CLIPs (8 + 16), with or without T5, pooled (8 + 8,)."""
    tokenizer = tiny_tokenizer(tokenizer_folder)
    torch.manual_seed(5)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=12,
        qk_norm="rms_norm",
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    text = {"projection_dim": 8, "num_hidden_layers": 2}
    encoder_3, tokenizer_3 = tiny_t5(48) if t5 else (None, None)
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(AutoencoderKL, **SHIFTED),
        text_encoder=tiny_text_encoder(tokenizer, CLIPTextModelWithProjection, hidden_size=8, **text),
        tokenizer=tokenizer,
        text_encoder_2=tiny_text_encoder(tokenizer, CLIPTextModelWithProjection, hidden_size=16, hidden_act="gelu", **text),
        tokenizer_2=tokenizer,
        text_encoder_3=encoder_3,
        tokenizer_3=tokenizer_3,
    )


def tiny_sd3_without_t5(tokenizer_folder):
    return tiny_sd3(tokenizer_folder, t5=False)


def tiny_flux(tokenizer_folder, guidance_embeds=True):
    """Flux.1 dev, and without `guidance_embeds` schnell: prompts (512, 32) of a T5, pooled (24,)."""
    tokenizer = tiny_tokenizer(tokenizer_folder)
    torch.manual_seed(6)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=24,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    encoder_2, tokenizer_2 = tiny_t5(32)
    return FluxPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(AutoencoderKL, **SHIFTED),
        text_encoder=tiny_text_encoder(tokenizer, hidden_size=24),
        tokenizer=tokenizer,
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
    )


def tiny_flux_2(tokenizer_folder, **settings):
    """Flux.2 klein base, where diffusers has it: prompts (512, 3 * 8) of layers 9, 18 and 27 of a Qwen3."""
    tokenizer_folder.mkdir(exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    (tokenizer_folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    (tokenizer_folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Qwen2TokenizerFast.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    torch.manual_seed(7)
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 28, "num_attention_heads": 1, "head_dim": 8}
    config = transformers.Qwen3Config(**text, num_key_value_heads=1, vocab_size=len(tokenizer))
    encoder = transformers.Qwen3ForCausalLM(config)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = tiny_vae(diffusers.AutoencoderKLFlux2)
    vae.bn.running_mean.normal_(0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2)
    return diffusers.Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        **settings,
    )


MULTIMODAL = {
    "sd3": tiny_sd3,
    "sd3-without-t5": tiny_sd3_without_t5,
    "flux": tiny_flux,
    **({"flux2": tiny_flux_2} if hasattr(diffusers, "Flux2KleinPipeline") else {}),
}
