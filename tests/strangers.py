"""Small hybrids that splitter knows nothing of: a MobileViT and a Whisper encoder, written as their papers have them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .mil.small_models import randomized


class ConvNorm(nn.Sequential):
    def __init__(self, inner, outer, kernel=3, stride=1, groups=1):
        super().__init__(
            nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outer),
            nn.SiLU(),
        )


class InvertedResidual(nn.Module):
    def __init__(self, inner, outer, stride=1):
        super().__init__()
        self.expand = ConvNorm(inner, 2 * inner, 1)
        self.depthwise = ConvNorm(2 * inner, 2 * inner, 3, stride, groups=2 * inner)
        self.project = nn.Sequential(nn.Conv2d(2 * inner, outer, 1, bias=False), nn.BatchNorm2d(outer))
        self.is_residual = stride == 1 and inner == outer

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attend = nn.Softmax(dim=-1)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.attend(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
        return self.out((weights @ v).transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MobileViTBlock(nn.Module):
    """Convolve, attend among the pixels of the same place in all 2×2 patches, convolve."""

    def __init__(self, channels, width):
        super().__init__()
        self.local = nn.Sequential(ConvNorm(channels, channels), nn.Conv2d(channels, width, 1, bias=False))
        self.transformer = nn.Sequential(Layer(width, 2), Layer(width, 2), nn.LayerNorm(width))
        self.project = ConvNorm(width, channels, 1)
        self.fuse = ConvNorm(2 * channels, channels)

    def forward(self, x):
        y = self.local(x)
        batch, width, height, length = y.shape
        y = y.reshape(batch, width, height // 2, 2, length // 2, 2).permute(0, 3, 5, 2, 4, 1)
        y = self.transformer(y.reshape(batch * 4, -1, width))
        y = y.reshape(batch, 2, 2, height // 2, length // 2, width).permute(0, 5, 3, 1, 4, 2)
        y = self.project(y.reshape(batch, width, height, length))
        return self.fuse(torch.cat([x, y], 1))


class MobileViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = ConvNorm(3, 8, 3, 2)
        self.layers = nn.Sequential(
            InvertedResidual(8, 12, 2), MobileViTBlock(12, 16), InvertedResidual(12, 16, 2), MobileViTBlock(16, 16)
        )
        self.head = nn.Sequential(ConvNorm(16, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, image):
        return self.head(self.layers(self.stem(image)))


class Whisper(nn.Module):
    """Two convolutions over a mel spectrogram, a table of positions, layers of attention with the exact GELU."""

    def __init__(self, mels=16, width=24, frames=40):
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        steps = torch.arange(frames // 2)[:, None] * torch.exp(-torch.arange(width // 2) / 2)[None]
        self.register_buffer("positional_embedding", torch.cat([steps.sin(), steps.cos()], 1))
        self.blocks = nn.ModuleList(WhisperBlock(width, 3) for _ in range(2))
        self.ln_post = nn.LayerNorm(width)

    def forward(self, mel):
        x = functional.gelu(self.conv1(mel))
        x = functional.gelu(self.conv2(x)).permute(0, 2, 1)
        x = (x + self.positional_embedding).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)


class WhisperBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attn_ln, self.mlp_ln = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.attn_ln(x)
        q, k, v = (m(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.mlp(self.mlp_ln(x))


def mobilevit():
    """The factory that a command line names."""
    return randomized(MobileViT())


def whisper():
    model = Whisper()
    table = model.positional_embedding.clone()
    randomized(model)
    model.positional_embedding.copy_(table)
    return model


def image():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mel():
    return torch.randn(1, 16, 40, generator=torch.Generator().manual_seed(0))
