"""Tiny random pipelines of every family: every part is the real one, only its weights mean nothing."""

import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    LDMPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ROOT = Path(__file__).parents[2]
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


def tiny_playground(tokenizer_folder):
    """Stable Diffusion XL as Playground v2.5: EDM, and a VAE with the mean and the deviation of its latents."""
    pipeline = tiny_sdxl(tokenizer_folder)
    pipeline.vae.register_to_config(latents_mean=[-1.6, 1.1, 3.2, -2.2], latents_std=[8.4, 5.9, 8.1, 6.3], scaling_factor=0.5)
    pipeline.scheduler = EDMDPMSolverMultistepScheduler()
    return pipeline


def tiny_edm(tokenizer_folder=None):
    """Unconditional images by EDM, whose output diffusers calls v."""
    return ConsistencyModelPipeline(tiny_pixel_unet(), EDMEulerScheduler(prediction_type="v_prediction", sigma_max=40.0))


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


def tiny_rgba(tokenizer_folder=None):
    """Unconditional RGBA images that are not square, with a learned variance and DDPM's scheduler for it."""
    unet = tiny_pixel_unet(sample_size=(14, 20), in_channels=4, out_channels=8)
    return DDPMPipeline(unet, DDPMScheduler(variance_type="learned_range"))


def tiny_grey(tokenizer_folder=None):
    """Three classes of grey images of 14 pixels, of edges that halve to an odd number."""
    unet = tiny_pixel_unet(sample_size=14, in_channels=1, out_channels=1, num_class_embeds=3)
    return ConsistencyModelPipeline(unet, DDIMScheduler())


def tiny_ldm(tokenizer_folder=None):
    """Unconditional latent diffusion with a VQ autoencoder, latents (3, 8, 8)."""
    unet = tiny_pixel_unet(sample_size=8)
    torch.manual_seed(4)
    vqvae = VQModel(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        norm_num_groups=4,
        num_vq_embeddings=32,
        scaling_factor=0.7,
    ).eval()
    return LDMPipeline(vqvae, unet, DDIMScheduler(clip_sample=False))


TINY = {
    "sd1": tiny_pipeline,
    "sd2": tiny_sd2,
    "sdxl": tiny_sdxl,
    "unconditional": tiny_ddpm,
    "playground": tiny_playground,
    "classes": tiny_classes,
    "edm": tiny_edm,
    "rgba": tiny_rgba,
    "grey": tiny_grey,
    "ldm": tiny_ldm,
}
