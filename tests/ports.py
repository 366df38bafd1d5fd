"""A port of the transformer as somebody might write it, and the mistakes they might make.

Written for the tests, without the project's kernels, so that neither can hide the other's faults.
"""

import numpy as np
from scipy.special import erf

MISTAKES = {  # the tap at which each mistake must be found, and what must be said about it
    "tanh gelu": ("layers.0.gelu", "tanh"),
    "layer norm for group norm": ("layers.0.norm_out", "LayerNorm"),
    "new tokens": ("layers_t.1.norm2", "new tokens"),
    "token order": ("norm_in", "(f t)"),
    "no layer scale": ("layers.0.gamma_1", "layer scale left out"),
    "wrong eps": ("layers.0.norm1", "eps 0.001"),
    "transposed linear": ("layers.0.self_attn", "transposed"),
    "no positions": ("embedded_t", "position table left out"),
    "positions swapped": ("embedded_t", "sine and cosine swapped"),
    "q and k swapped": ("layers.0.q", "q and k swapped"),
    "head split": ("layers.0.q", "(d h)"),
    "heads mixed": ("layers.0.heads", "(d h)"),
    "heads swapped": ("layers.0.heads", "10 heads of 8 channels where the model has 8 of 10"),
    "missing barrier": ("norm_in", "lacks a barrier"),
    "half accumulation": ("layers.0.linear1", "half-precision accumulation"),
    "other branch": ("norm_in_t", "other branch's weights"),
    "naive statistics": ("layers.1.norm_out", "two levels"),
    "half statistics": ("layers.0.norm1", "its statistics drift"),
}


class Port:
    """Runs in ``dtype`` and keeps every tap in ``dump``."""

    def __init__(self, config, weights, fault="", dtype=np.float32):
        self.config, self.weights, self.fault, self.dtype = config, weights, fault, dtype
        self.dump = {}

    def keep(self, name, value):
        self.dump[name] = np.ascontiguousarray(value.astype(self.dtype))
        return self.dump[name].astype(np.float32)

    def w(self, name):
        if self.fault == "other branch":
            name = name.replace("layers_t.", "layers.").replace("norm_in_t.", "norm_in.")
        return self.weights[name]

    def run(self, freq, time):
        frames = freq.shape[3]
        self.keep("input", freq)
        order = (0, 2, 3, 1) if self.fault == "token order" else (0, 3, 2, 1)
        x = self.embed(freq.transpose(order).reshape(len(freq), -1, freq.shape[1]), "")
        self.keep("input_t", time)
        y = self.embed(time.transpose(0, 2, 1), "_t")
        for layer in range(self.config.layers):
            cross = self.config.kind(layer) == "cross"
            new = self.layer(x, y if cross else None, f"layers.{layer}")
            source = new if self.fault == "new tokens" else x
            y = self.layer(y, source if cross else None, f"layers_t.{layer}")
            x = new
        x, y = self.keep("norm_out", x), self.keep("norm_out_t", y)
        if self.fault == "token order":
            x = x.reshape(len(freq), -1, frames, x.shape[2]).transpose(0, 3, 1, 2)
        else:
            x = x.reshape(len(freq), frames, -1, x.shape[2]).transpose(0, 3, 2, 1)
        self.keep("output", x)
        self.keep("output_t", y.transpose(0, 2, 1))
        return self.dump

    def embed(self, x, branch):
        normed = self.keep(f"norm_in{branch}", self.norm(x, f"norm_in{branch}", -1))
        table = self.weights[f"positions{branch}"]
        if branch and self.fault == "no positions":
            table = 0 * table
        if branch and self.fault == "positions swapped":
            table = np.roll(table, table.shape[1] // 2, axis=1)
        return self.keep(f"embedded{branch}", normed + table)

    def norm(self, x, name, axes):
        eps = 1e-3 if self.fault == "wrong eps" and name.endswith("norm1") else self.config.eps
        if self.fault == "layer norm for group norm":
            axes = -1
        mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
        if self.fault == "naive statistics" and axes != -1:
            mean = np.cumsum(x.ravel(), dtype=np.float32)[-1] / np.float32(x.size)
            variance = np.cumsum(np.square(x).ravel(), dtype=np.float32)[-1] / np.float32(x.size) - mean**2
        if self.fault == "half statistics" and name.endswith("norm1"):
            mean, variance = (one.astype(np.float16).astype(np.float32) for one in (mean, variance))
        if self.fault == "missing barrier" and name == "norm_in":
            mean, variance = x[..., 1::3].mean(axis=-1, keepdims=True), variance / 3
        return (x - mean) / np.sqrt(variance + eps) * self.w(f"{name}.weight") + self.w(f"{name}.bias")

    def linear(self, x, weight, bias, halves=False):
        if halves:
            terms = x[..., None, :].astype(np.float16) * weight.astype(np.float16)
            return np.add.accumulate(terms, axis=-1, dtype=np.float16)[..., -1].astype(np.float32) + bias
        return x @ weight.T + bias

    def layer(self, x, source, path):
        kind = "self" if source is None else "cross"
        queries = self.keep(f"{path}.norm1", self.norm(x, f"{path}.norm1", -1))
        sources = queries if source is None else self.keep(f"{path}.norm2", self.norm(source, f"{path}.norm2", -1))
        attended = self.attention(queries, sources, path, f"{path}.{kind}_attn")
        scale = 1 if self.fault == "no layer scale" else self.w(f"{path}.gamma_1.scale")
        scaled = self.keep(f"{path}.gamma_1", attended * scale)
        x = self.keep(f"{path}.residual_1", x + scaled)
        norm = "norm2" if source is None else "norm3"
        hidden = self.keep(f"{path}.{norm}", self.norm(x, f"{path}.{norm}", -1))
        halves = self.fault == "half accumulation" and path == "layers.0"
        hidden = self.linear(hidden, self.w(f"{path}.linear1.weight"), self.w(f"{path}.linear1.bias"), halves)
        hidden = self.keep(f"{path}.linear1", hidden)
        hidden = self.keep(f"{path}.gelu", self.gelu(hidden))
        hidden = self.linear(hidden, self.w(f"{path}.linear2.weight"), self.w(f"{path}.linear2.bias"))
        hidden = self.keep(f"{path}.linear2", hidden)
        scaled = self.keep(f"{path}.gamma_2", hidden * self.w(f"{path}.gamma_2.scale"))
        x = self.keep(f"{path}.residual_2", x + scaled)
        return self.keep(f"{path}.norm_out", self.norm(x, f"{path}.norm_out", (-2, -1)))

    def gelu(self, x):
        if self.fault == "tanh gelu":
            return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(x / np.float32(2**0.5)))

    def attention(self, queries, sources, path, name):
        weights, biases = self.w(f"{name}.in_proj_weight"), self.w(f"{name}.in_proj_bias")
        width, heads = self.config.width, self.config.heads
        thirds = [slice(third * width, (third + 1) * width) for third in range(3)]
        if self.fault == "q and k swapped":
            thirds[:2] = thirds[1::-1]
        q, k, v = (
            self.keep(f"{path}.{letter}", self.split(self.linear(x, weights[third], biases[third]), heads))
            for letter, x, third in zip("qkv", (queries, sources, sources), thirds, strict=True)
        )
        logits = q @ k.swapaxes(-1, -2) / np.float32((width // heads) ** 0.5)
        self.keep(f"{path}.logits", logits[:, :, :16])
        if self.fault in ("heads mixed", "heads swapped"):
            q, k, v = (self.resplit(x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], width)) for x in (q, k, v))
            logits = q @ k.swapaxes(-1, -2) / np.float32(q.shape[-1] ** 0.5)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ v
        if self.fault == "heads swapped":
            mixed = mixed.transpose(0, 2, 1, 3).reshape(queries.shape)
            mixed = mixed.reshape(*mixed.shape[:2], heads, -1).transpose(0, 2, 1, 3)
        mixed = self.keep(f"{path}.heads", mixed)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(queries.shape)
        weight = self.w(f"{name}.out_proj.weight")
        weight = weight.T if self.fault == "transposed linear" else weight
        return self.keep(name, self.linear(mixed, weight, self.w(f"{name}.out_proj.bias")))

    def resplit(self, tokens):
        heads = self.config.heads
        if self.fault == "heads mixed":
            return tokens.reshape(*tokens.shape[:2], -1, heads).transpose(0, 3, 1, 2)
        return tokens.reshape(*tokens.shape[:2], -1, heads).transpose(0, 2, 1, 3)  # as many channels as there are heads

    def split(self, x, heads):
        if self.fault == "head split":
            return x.reshape(*x.shape[:2], -1, heads).transpose(0, 3, 1, 2)
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
