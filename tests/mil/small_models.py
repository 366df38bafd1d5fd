"""Small PyTorch modules of many kinds, with seeded weights."""

import math

import torch
from torch import nn
from torch.nn import functional


def randomized(model):
    """Seeded weights, and statistics for batch norms that have seen something."""
    for index, tensor in enumerate(model.state_dict().values()):
        if tensor.is_floating_point():
            with torch.no_grad():
                scale = 0.3 if tensor.ndim < 2 else 1 / math.sqrt(tensor[0].numel())
                values = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)) * scale
                tensor.copy_(values + 1 if tensor.ndim < 2 else values)
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.running_var.abs_().add_(0.5)
    return model.eval()


class Residual(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.way = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.way(x))


class ResNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            Residual(8, 8, 1),
            Residual(8, 16, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers = kind(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        outputs, state = self.layers(x)
        return self.head(outputs), *(state if isinstance(state, tuple) else (state,))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.positions = nn.Parameter(torch.zeros(1, 17, 16))
        self.blocks = nn.Sequential(Block(16, 4), Block(16, 2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 7)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token, x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.down, self.deep = (
            nn.Conv2d(1, 4, 3, 1, 1),
            nn.Conv2d(4, 8, 4, 2, 1),
            nn.Conv2d(8, 16, 4, 2, 1),
        )
        self.up1, self.up2 = nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ConvTranspose2d(16, 4, 3, 2, 1, output_padding=1)
        self.norm, self.out = nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        inside = functional.leaky_relu(self.inside(x), 0.1)
        down = functional.silu(self.down(inside))
        up = torch.cat([self.norm(self.up1(torch.relu(self.deep(down)))), down], 1)
        return torch.sigmoid(self.out(torch.cat([self.up2(up), inside], 1)))


class Whisper(nn.Module):
    """An encoder of spectrograms."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(20, 16, 3, padding=1), nn.Conv1d(16, 16, 3, 2, 1)
        phases = torch.arange(25)[:, None] * torch.exp(-math.log(10_000) / 7 * torch.arange(8))
        self.positions = torch.cat([phases.sin(), phases.cos()], 1)
        self.blocks, self.norm = nn.Sequential(Block(16, 2), Block(16, 2)), nn.LayerNorm(16)

    def forward(self, x):
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(x))))
        return self.norm(self.blocks(x.transpose(1, 2) + self.positions))


class AnyLength(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.block = nn.Conv1d(4, 8, 3, 2, 1), nn.BatchNorm1d(8), Block(8, 2)

    def forward(self, x):
        return functional.interpolate(torch.relu(self.norm(self.conv(x))), scale_factor=2.0).cumsum(-1)


class Scaled(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x * self.by


def mlp():
    return randomized(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)))


class Cached(nn.Module):
    """A step of a language model: one token in, attention to every token so far, kept in buffers.

    Core ML keeps states in half precision; keys and values are quarters here, which that holds exactly.
    """

    def __init__(self, length=6, width=16, heads=4):
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(11, width)
        self.qkv, self.out, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.register_buffer("keys", torch.zeros(1, heads, length, width // heads))
        self.register_buffer("values", torch.zeros(1, heads, length, width // heads))

    def forward(self, token, here, mask):
        x = self.embedding(token)
        q, k, v = self.qkv(x).reshape(1, 1, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        self.keys.mul_(1 - here).add_(k * here)
        length = mask.shape[-1]
        self.values[:, :, length - 1 : length] = v
        y = functional.scaled_dot_product_attention(q, self.keys[:, :, :length], self.values[:, :, :length], mask)
        x = x + self.out(y.transpose(1, 2).reshape(1, 1, -1))
        return functional.linear(self.norm(x), self.embedding.weight)
