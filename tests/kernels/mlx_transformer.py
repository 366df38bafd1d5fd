"""The transformer in MLX, written for the tests from the manifest's record and the exported file alone."""

from __future__ import annotations

import mlx.core as mx


class Transformer:
    """Reads the ``mlx`` layout. The statistics of the last norm are taken in two levels."""

    def __init__(self, path, record):
        self.config = record["config"]
        loaded = mx.load(str(path))
        self.weights = {name: loaded[name] for name, one in record["tensors"].items() if one["role"] == "values"}

    def __call__(self, freq, time):
        x = {"": mx.array(freq).transpose(0, 3, 2, 1), "_t": mx.array(time).transpose(0, 2, 1)}
        batch, frames, bins, width = x[""].shape
        x[""] = x[""].reshape(batch, frames * bins, width)
        x = {b: self.norm(f"norm_in{b}", x[b]) + self.weights[f"positions{b}"] for b in x}
        for index in range(self.config["layers"]):
            cross = (index % 2 == 0) == self.config["cross_first"]
            x = {
                "": self.layer(f"layers.{index}", x[""], x["_t"] if cross else None),
                "_t": self.layer(f"layers_t.{index}", x["_t"], x[""] if cross else None),
            }
        return x[""].reshape(batch, frames, bins, width).transpose(0, 3, 2, 1), x["_t"].transpose(0, 2, 1)

    def layer(self, prefix, x, other):
        normed = self.norm(f"{prefix}.norm1", x)
        source = normed if other is None else self.norm(f"{prefix}.norm2", other)
        attended = self.attention(f"{prefix}.{'self' if other is None else 'cross'}_attn", normed, source)
        y = x + self.weights[f"{prefix}.gamma_1.scale"] * attended
        hidden = self.linear(f"{prefix}.linear1", self.norm(f"{prefix}.norm{2 if other is None else 3}", y))
        hidden = hidden * (1 + mx.erf(hidden / 2**0.5)) / 2
        z = y + self.weights[f"{prefix}.gamma_2.scale"] * self.linear(f"{prefix}.linear2", hidden)
        return self.norm(f"{prefix}.norm_out", z, axes=(-1, -2))

    def attention(self, prefix, x, source):
        q, k, v = (
            mx.unflatten(self.linear(f"{prefix}.{name}_proj", of), -1, (self.config["heads"], -1)).swapaxes(1, 2)
            for name, of in (("query", x), ("key", source), ("value", source))
        )
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
        return self.linear(f"{prefix}.out_proj", mx.flatten(mixed.swapaxes(1, 2), 2))

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, x, axes=(-1,)):
        def mean(value):
            for axis in axes:
                value = value.mean(axis, keepdims=True)
            return value

        centred = x - mean(x)
        scaled = centred / mx.sqrt(mean(centred**2) + self.config["eps"])
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
