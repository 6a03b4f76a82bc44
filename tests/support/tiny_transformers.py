"""Tiny random pipelines of transformers: every part is the real one, only its weights mean nothing."""

import string

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from tiny_pipeline import tiny_vae
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

LETTERS = string.ascii_letters + string.digits + string.punctuation
WIDTH = 32
T5_SIZES = {"d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}


def letters_tokenizer(kind):
    """A tokenizer whose tokens are letters, as T5's or Gemma's."""
    if kind is T5Tokenizer:
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
        return T5Tokenizer(vocab=[*pieces, *((letter, -3.0) for letter in LETTERS)], extra_ids=0)
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    return GemmaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})


def tiny_t5(tokenizer, kind=T5EncoderModel, config=T5Config):
    torch.manual_seed(1)
    return kind(config(vocab_size=len(tokenizer), **T5_SIZES)).eval()


def tiny_gemma(tokenizer):
    torch.manual_seed(1)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 16}
    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), pad_token_id=0, **sizes, **heads)).eval()


def dpm_solver(**changes):
    return DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, **changes)


def randomised(network):
    """The network with weights in place of zeros, from which many transformers start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return network.eval()


def vae_of(levels, **changes):
    """A VAE of 2^(levels - 1) pixels per latent."""
    return tiny_vae(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[8] * (levels - 1) + [16],
        **changes,
    )


def tiny_pixart_transformer(**changes):
    """A `PixArtTransformer2DModel` of 50,000 random weights for latents (4, 8, 8) and prompts (L, 32), with a variance."""
    torch.manual_seed(0)
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "cross_attention_dim": WIDTH,
        "sample_size": 8,
        "caption_channels": WIDTH,
    }
    return randomised(PixArtTransformer2DModel(**{**settings, **changes}))


def tiny_pixart(tokenizer_folder=None, kind=PixArtSigmaPipeline, transformer=None, vae=None):
    tokenizer = letters_tokenizer(T5Tokenizer)
    parts = (vae or tiny_vae(), transformer or tiny_pixart_transformer(), dpm_solver())
    return kind(tokenizer, tiny_t5(tokenizer), *parts)


def tiny_pixart_alpha(tokenizer_folder=None):
    """PixArt-alpha for images of 128 latents, whose size is a condition."""
    transformer = tiny_pixart_transformer(sample_size=128, patch_size=32, num_attention_heads=3, cross_attention_dim=48)
    return tiny_pixart(None, PixArtAlphaPipeline, transformer, vae_of(1, mid_block_add_attention=False))


def tiny_dit(tokenizer_folder=None, **changes):
    """A thousand classes, as `DiTPipeline` expects, two of them with labels."""
    torch.manual_seed(0)
    settings = {"num_attention_heads": 2, "attention_head_dim": 8, "out_channels": 8, "num_layers": 2, "sample_size": 8}
    transformer = randomised(DiTTransformer2DModel(**{**settings, **changes}))
    labels = {0: "tench, Tinca tinca", 2: "shark"}
    pipeline = DiTPipeline(transformer, tiny_vae(), DDIMScheduler(clip_sample=False), labels)
    pipeline.register_to_config(id2label=labels)  # as in the published folders
    return pipeline


def tiny_deep_compression_vae():
    torch.manual_seed(2)
    kinds, widths = ("ResBlock", "ResBlock", "EfficientViTBlock"), (8, 8, 16)
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41407,
    ).eval()


def tiny_sana(tokenizer_folder=None, **changes):
    torch.manual_seed(0)
    tokenizer = letters_tokenizer(GemmaTokenizer)
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": WIDTH,
        "sample_size": 8,
    }
    return SanaPipeline(
        tokenizer,
        tiny_gemma(tokenizer),
        tiny_deep_compression_vae(),
        randomised(SanaTransformer2DModel(**{**settings, **changes})),
        dpm_solver(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    )


def tiny_aura_flow(tokenizer_folder=None):
    torch.manual_seed(0)
    tokenizer = letters_tokenizer(T5Tokenizer)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=36,
    )
    encoder = tiny_t5(tokenizer, UMT5EncoderModel, UMT5Config)
    return AuraFlowPipeline(
        tokenizer, encoder, tiny_vae(), randomised(transformer), FlowMatchEulerDiscreteScheduler(shift=1.73)
    )


def tiny_lumina_2(tokenizer_folder=None):
    """Images of 64 pixels, since the pipeline expects a VAE of 8 pixels per latent."""
    torch.manual_seed(0)
    tokenizer = letters_tokenizer(GemmaTokenizer)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 32, 32),
        cap_feat_dim=WIDTH,
    )
    scheduler, vae = FlowMatchEulerDiscreteScheduler(shift=6.0), vae_of(4, shift_factor=0.1)
    return Lumina2Pipeline(randomised(transformer), scheduler, vae, tiny_gemma(tokenizer), tokenizer)


TRANSFORMERS = {
    "pixart-alpha": tiny_pixart_alpha,
    "pixart-sigma": tiny_pixart,
    "dit": tiny_dit,
    "sana": tiny_sana,
    "auraflow": tiny_aura_flow,
    "lumina2": tiny_lumina_2,
}
