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
HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
BLOCKS = {"num_layers": 1, "num_single_layers": 1, **HEADS}  # of Flux
LANGUAGE_MODEL = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}


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
        **HEADS,
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
        **BLOCKS,
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


def tiny_flux_2_parts(tokenizer_folder, guidance_embeds):
    """The parts of Flux.2 other than the text encoder, for prompts (512, 3 * 8)."""
    tokenizer_folder.mkdir(exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    (tokenizer_folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    (tokenizer_folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Qwen2TokenizerFast.from_pretrained(tokenizer_folder)
    content = "message['content'] if message['content'] is string else message['content'][0]['text']"
    tokenizer.chat_template = "{% for message in messages %}{{ " + content + " }}{% endfor %}"
    torch.manual_seed(7)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        **BLOCKS,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    vae = tiny_vae(diffusers.AutoencoderKLFlux2)
    vae.bn.running_mean.normal_(0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return {"transformer": transformer.eval(), "vae": vae, "scheduler": scheduler, "tokenizer": tokenizer}


def tiny_flux_2_klein(tokenizer_folder, **settings):
    """Flux.2 klein base, with layers 9, 18 and 27 of a Qwen3."""
    parts = tiny_flux_2_parts(tokenizer_folder, guidance_embeds=False)
    config = transformers.Qwen3Config(**LANGUAGE_MODEL, num_hidden_layers=28, vocab_size=len(parts["tokenizer"]))
    return diffusers.Flux2KleinPipeline(text_encoder=transformers.Qwen3ForCausalLM(config).eval(), **parts, **settings)


def tiny_flux_2(tokenizer_folder):
    """Flux.2 dev, with layers 10, 20 and 30 of a Mistral 3."""
    parts = tiny_flux_2_parts(tokenizer_folder, guidance_embeds=True)
    text = transformers.MistralConfig(**LANGUAGE_MODEL, num_hidden_layers=31, vocab_size=len(parts["tokenizer"]))
    eyes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8}
    vision = transformers.PixtralVisionConfig(**eyes, patch_size=4)
    encoder = transformers.Mistral3ForConditionalGeneration(transformers.Mistral3Config(text_config=text, vision_config=vision))
    return diffusers.Flux2Pipeline(text_encoder=encoder.eval(), **parts)


MULTIMODAL = {
    "sd3": tiny_sd3,
    "sd3-without-t5": tiny_sd3_without_t5,
    "flux": tiny_flux,
    **({"flux2-klein": tiny_flux_2_klein, "flux2": tiny_flux_2} if hasattr(diffusers, "Flux2KleinPipeline") else {}),
}
