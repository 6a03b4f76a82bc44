"""A LoRA and a ControlNet of random weights, as someone may have made them for a pipeline."""

import copy

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


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
