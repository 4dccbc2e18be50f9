"""Networks on images: timm, segmentation_models_pytorch, MONAI and diffusers."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.architecture import Architecture, classes, cross_entropy, images

Timm = partial(Architecture, "timm", output=classes, loss=cross_entropy)


def resnet(m: ModuleType) -> nn.Module:
    kind = m.models.resnet
    sizes = {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8), "stem_width": 4, "num_classes": 3}
    return kind.ResNet(kind.BasicBlock, **sizes, drop_path_rate=0.1)


def convnext(m: ModuleType) -> nn.Module:
    return m.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), patch_size=2, drop_path_rate=0.1, num_classes=3)


def vision_transformer(m: ModuleType) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return m.models.VisionTransformer(**sizes, num_classes=3)


def swin(m: ModuleType) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
    return m.models.SwinTransformer(**sizes, drop_path_rate=0.0, num_classes=3)


def mixer(m: ModuleType) -> nn.Module:
    return m.models.MlpMixer(img_size=8, patch_size=4, embed_dim=8, num_blocks=1, num_classes=3)


def efficientnet(m: ModuleType) -> nn.Module:
    return m.create_model("test_efficientnet", num_classes=3)


def segmentation(m: ModuleType) -> nn.Module:
    return m.Unet("tu-test_resnet", encoder_weights=None, encoder_depth=3, decoder_channels=(8, 8, 4), classes=3)


def regions(module: ModuleType, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 3, 16, 16, generator=generator)
    return x, torch.randint(3, (4, 16, 16), generator=generator)


def monai_unet(m: ModuleType) -> nn.Module:
    return m.UNet(2, 1, 3, channels=(4, 8), strides=(2,), num_res_units=1, dropout=0.1)


def medical(module: ModuleType, generator: torch.Generator) -> dict[str, Tensor]:
    image = torch.randn(4, 1, 8, 8, generator=generator)
    return {"image": image, "label": torch.randint(3, (4, 8, 8), generator=generator)}


def diffusion(m: ModuleType) -> nn.Module:
    sizes = {"sample_size": 4, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "attention_head_dim": 4}
    kinds = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (4, 8),
    }
    return m.UNet2DModel(**sizes, **kinds, norm_num_groups=2)


def noised(module: ModuleType, generator: torch.Generator) -> dict[str, Tensor]:
    """Images with noise as of some step of a process, and the noise."""
    noise = torch.randn(4, 1, 4, 4, generator=generator)
    time = torch.randint(1000, (4,), generator=generator)
    return {"sample": torch.randn(4, 1, 4, 4, generator=generator) + noise, "timestep": time, "noise": noise}


def predicted_noise(model: nn.Module, batch: Any) -> Tensor:
    return model(batch["sample"], batch["timestep"]).sample


ROWS = {
    "ResNet": Timm(resnet, images(16), rates=("*.drop_prob",)),
    "ConvNeXt": Timm(convnext, images(32), rates=("*", "*.drop_prob")),
    "vision transformer": Timm(vision_transformer, images(8)),
    "Swin": Timm(swin, images(8)),
    "MLP-Mixer": Timm(mixer, images(8)),
    "EfficientNet": Timm(efficientnet, images(16), rates=()),
    "U-Net of a ResNet": Architecture(
        "segmentation_models_pytorch", segmentation, regions, classes, cross_entropy, rates=()
    ),
    "U-Net of MONAI": Architecture(
        "monai.networks.nets",
        monai_unet,
        medical,
        lambda model, batch: model(batch["image"]),
        lambda model, batch: F.cross_entropy(model(batch["image"]), batch["label"]),
    ),
    "U-Net of a diffusion": Architecture(
        "diffusers",
        diffusion,
        noised,
        predicted_noise,
        lambda model, batch: F.mse_loss(predicted_noise(model, batch), batch["noise"]),
    ),
}
