"""A LoRA and a ControlNet of random weights, as someone may have made them for a pipeline."""

import copy

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection


def save_lora(network, folder, strength=0.3, save=StableDiffusionPipeline.save_lora_weights):
    """A LoRA of random weights for a network."""
    adapted = copy.deepcopy(network)
    targets = ["to_q", "to_k", "to_v", "conv1"]
    adapted.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights="gaussian"))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(strength * torch.randn(parameter.shape, generator=generator))
    save(folder, unet_lora_layers=get_peft_model_state_dict(adapted))
    return folder


def save_control(network, folder):
    """A ControlNet of random weights for a network."""
    torch.manual_seed(6)
    control = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 16, 16))
    for name, parameter in control.named_parameters():
        if any(part in name for part in ("controlnet_down_blocks", "controlnet_mid", "cond_embedding.conv_out")):
            parameter.data.normal_(0, 0.3)
    control.save_pretrained(folder)
    return folder


def load_style_adapter(pipeline):
    """An IP-Adapter of random weights for a pipeline, and the network that looks at its images."""
    torch.manual_seed(7)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**small, image_size=16, patch_size=8, projection_dim=12)
    looking = CLIPVisionModelWithProjection(vision).eval()
    reading = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pipeline.register_modules(image_encoder=looking, feature_extractor=reading)
    config, width = pipeline.unet.config, pipeline.unet.config.cross_attention_dim
    keys = {}
    for number, name in enumerate(of for of in pipeline.unet.attn_processors if of.endswith("attn2.processor")):
        attention = pipeline.unet.get_submodule(name.removesuffix(".processor"))
        for of in ("to_k_ip", "to_v_ip"):
            keys[f"{2 * number + 1}.{of}.weight"] = torch.randn(attention.to_k.out_features, width)
    projected = {
        "proj.weight": torch.randn(4 * width, 12),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    pipeline.load_ip_adapter({"image_proj": projected, "ip_adapter": keys}, subfolder="", weight_name="")
    assert config.encoder_hid_dim_type == "ip_image_proj"
