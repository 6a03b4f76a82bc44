"""Tiny random pipelines of every family: every part is the real one, only its weights mean nothing."""

import json
import sys
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2TokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

ROOT = Path(__file__).parents[2]
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
CAPTIONS = ["google emoji of food fruit", "twitter emoji of a red apple", "emoji of animals", "smileys and people"]


def tiny_unet(seed=0, **changes):
    """A `UNet2DConditionModel` of 0.2 M random weights for latents (4, 8, 8) and prompts (L, 32)."""
    torch.manual_seed(seed)
    settings = {
        "sample_size": 8,
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**{**settings, **changes})


def tiny_tokenizer(folder):
    sys.path.insert(0, str(ROOT / "scripts" / "recipes"))
    from tiny_sd import train_tokenizer

    return train_tokenizer(CAPTIONS, folder)


def tiny_text_encoder(tokenizer, kind=CLIPTextModel, **changes):
    from tiny_sd import MAX_TOKENS

    torch.manual_seed(1)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return kind(CLIPTextConfig(**{**settings, **changes})).eval()


def tiny_vae(kind=AutoencoderKL, **changes):
    torch.manual_seed(2)
    settings = {
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [8, 8, 16],
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return kind(**{**settings, **({"scaling_factor": 0.7} if kind is AutoencoderKL else {}), **changes}).eval()


def tiny_pipeline(tokenizer_folder, unet=None, scheduler=None, **text):
    """Stable Diffusion 1; with a `unet` and a `scheduler` of another kind, Stable Diffusion 2."""
    tokenizer = tiny_tokenizer(tokenizer_folder)
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(tokenizer, **text),
        tokenizer=tokenizer,
        unet=(unet or tiny_unet()).eval(),
        scheduler=scheduler
        or PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sd2(tokenizer_folder):
    """Stable Diffusion 2 that predicts v at zero terminal SNR."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )
    return tiny_pipeline(
        tokenizer_folder, tiny_unet(use_linear_projection=True, attention_head_dim=[1, 2]), scheduler, hidden_act="gelu"
    )


def tiny_sdxl(tokenizer_folder):
    """Stable Diffusion XL: prompts (L, 32 + 24), pooled embeddings (16,), 6 time ids."""
    tokenizer = tiny_tokenizer(tokenizer_folder)
    unet = tiny_unet(
        cross_attention_dim=56,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        attention_head_dim=[1, 2],
    )
    second = {"hidden_size": 24, "projection_dim": 16, "hidden_act": "gelu", "num_hidden_layers": 2}
    return StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(tokenizer, num_hidden_layers=2),
        text_encoder_2=tiny_text_encoder(tokenizer, CLIPTextModelWithProjection, **second),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        ),
        add_watermarker=False,
    )


def tiny_pixel_unet(**changes):
    """A `UNet2DModel` of random weights for images (3, 16, 16)."""
    torch.manual_seed(3)
    settings = {
        "sample_size": 16,
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    return UNet2DModel(**{**settings, **changes}).eval()


def tiny_ddpm(tokenizer_folder=None):
    """Unconditional, in pixel space, with DDPM's own schedule and clipping."""
    return DDPMPipeline(tiny_pixel_unet(), DDPMScheduler())


def tiny_classes(tokenizer_folder=None):
    """Three classes, in pixel space."""
    return ConsistencyModelPipeline(tiny_pixel_unet(num_class_embeds=3), DDIMScheduler())


def tiny_t5(width):
    """A T5 encoder whose states have `width` channels, and its tokenizer of single letters."""
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -3.0) for letter in ALPHABET)]
    tokenizer = Tokenizer(models.Unigram(letters, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    torch.manual_seed(4)
    settings = {"d_model": width, "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 1, "vocab_size": len(letters)}
    return T5EncoderModel(T5Config(**settings)).eval(), T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0)


def tiny_sd3(tokenizer_folder, t5=False, shift=3.0):
    """Stable Diffusion 3 of 16x16 latents: prompts (L, 48) of two CLIPs (8 + 16), with or without T5, pooled (8 + 8,)."""
    tokenizer = tiny_tokenizer(tokenizer_folder)
    torch.manual_seed(5)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
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
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=tiny_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=tiny_text_encoder(tokenizer, CLIPTextModelWithProjection, hidden_size=8, **text),
        tokenizer=tokenizer,
        text_encoder_2=tiny_text_encoder(tokenizer, CLIPTextModelWithProjection, hidden_size=16, hidden_act="gelu", **text),
        tokenizer_2=tokenizer,
        text_encoder_3=encoder_3,
        tokenizer_3=tokenizer_3,
    )


def tiny_sd3_with_t5(tokenizer_folder):
    return tiny_sd3(tokenizer_folder, t5=True)


def tiny_flux(tokenizer_folder, guidance_embeds=True, dynamic=True):
    """Flux.1 dev, and without `guidance_embeds` schnell: prompts (512, 32) of a T5, pooled (24,)."""
    tokenizer = tiny_tokenizer(tokenizer_folder)
    torch.manual_seed(6)
    transformer = FluxTransformer2DModel(
        in_channels=16,
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
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        vae=tiny_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
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


TINY = {
    "sd1": tiny_pipeline,
    "sd2": tiny_sd2,
    "sdxl": tiny_sdxl,
    "sd3": tiny_sd3,
    "sd3 with t5": tiny_sd3_with_t5,
    "flux": tiny_flux,
    **({"flux2": tiny_flux_2} if hasattr(diffusers, "Flux2KleinPipeline") else {}),
    "unconditional": tiny_ddpm,
    "classes": tiny_classes,
}
