"""Run every listed operator on random arguments that admission lets through, as a program of its own: it must end.

Every tensor lies between two pages that nobody may touch, so that a kernel which reads or writes beyond one dies.
Prints a line for each operator that died, hung, or gave another type than was inferred.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import random
import signal
import sys
import warnings

import torch
from torch import fx

from splitter.graph import admission, operators
from splitter.graph.shapes import DTYPES, TensorType

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
MOST = 1 << 22  # bytes of a result that is still computed
EXTENTS = (0, 1, 1, 2, 2, 3, 4, 4, 5, 8)
INTEGERS = (-7, -2, -1, -1, 0, 0, 1, 1, 1, 2, 2, 3, 4, 8, 2**31, -(2**31))
TEXTS = ("constant", "reflect", "replicate", "circular", "none", "tanh", "same", "valid", "ij", "ij,jk->ik",
         "bij,bjk->bik", "...i,i->...", "ii->i", "ortho", "backward", "")  # fmt: skip
FLOAT, LONG = "float32", "int64"


def f(*shape):
    return TensorType(shape, FLOAT)


def i(*shape):
    return TensorType(shape, LONG)


_LAYERS = ((f(20, 4), f(20, 5), f(20), f(20)), (f(15, 4), f(15, 5), f(15), f(15)), (f(5, 4), f(5, 5), f(5), f(5)))
_POOL = ([2], [2], [0], [1], False)
# Calls that are right, to be changed in one to three places: random arguments alone are refused all too soon.
EXAMPLES = {
    "aten.conv1d.default": (f(1, 2, 8), f(4, 2, 3), f(4), [1], [1], [1], 1),
    "aten.conv1d.padding": (f(1, 2, 8), f(4, 2, 3), f(4), [1], "same", [1], 1),
    "aten.conv2d.default": (f(1, 2, 8, 8), f(4, 2, 3, 3), f(4), [1, 1], [1, 1], [1, 1], 1),
    "aten.conv2d.padding": (f(1, 2, 8, 8), f(4, 2, 3, 3), f(4), [1, 1], "same", [1, 1], 1),
    "aten.conv3d.default": (f(1, 2, 4, 4, 4), f(4, 2, 3, 3, 3), f(4), [1, 1, 1], [1, 1, 1], [1, 1, 1], 1),
    "aten.conv3d.padding": (f(1, 2, 4, 4, 4), f(4, 2, 3, 3, 3), f(4), [1, 1, 1], "same", [1, 1, 1], 1),
    "aten.conv_transpose1d.default": (f(1, 2, 8), f(2, 4, 3), f(4), [2], [1], [1], 1, [1]),
    "aten.conv_transpose2d.input": (f(1, 2, 8, 8), f(2, 4, 3, 3), f(4), [2, 2], [1, 1], [1, 1], 1, [1, 1]),
    "aten.conv_transpose3d.input": (f(1, 2, 4, 4, 4), f(2, 4, 3, 3, 3), f(4), [2] * 3, [1] * 3, [1] * 3, 1, [1] * 3),
    "aten.convolution.default": (f(1, 2, 8), f(4, 2, 3), f(4), [1], [1], [1], False, [0], 1),
    "aten.batch_norm.default": (f(2, 4, 8), f(4), f(4), f(4), f(4), False, 0.1, 1e-5, True),
    "aten.instance_norm.default": (f(2, 4, 8), f(4), f(4), None, None, True, 0.1, 1e-5, True),
    "aten.group_norm.default": (f(2, 4, 8), 2, f(4), f(4), 1e-5, True),
    "aten.layer_norm.default": (f(2, 4, 8), [8], f(8), f(8), 1e-5, True),
    "aten.rms_norm.default": (f(2, 4, 8), [8], f(8), 1e-5),
    "aten.linear.default": (f(2, 4), f(3, 4), f(3)),
    "aten.matmul.default": (f(2, 4, 3), f(2, 3, 5)),
    "aten.bmm.default": (f(2, 4, 3), f(2, 3, 5)),
    "aten.addmm.default": (f(4, 5), f(4, 3), f(3, 5)),
    "aten.baddbmm.default": (f(2, 4, 5), f(2, 4, 3), f(2, 3, 5)),
    "aten.mm.default": (f(4, 3), f(3, 5)),
    "aten.mv.default": (f(4, 3), f(3)),
    "aten.einsum.default": ("ij,jk->ik", [f(4, 3), f(3, 5)]),
    "aten.prelu.default": (f(2, 4, 8), f(4)),
    "aten.scaled_dot_product_attention.default": (f(1, 2, 8, 4), f(1, 2, 8, 4), f(1, 2, 8, 4), f(8, 8), 0.0, False),
    "aten.lstm.input": (f(3, 2, 4), [f(1, 2, 5), f(1, 2, 5)], list(_LAYERS[0]), True, 1, 0.0, False, False, False),
    "aten.gru.input": (f(3, 2, 4), f(1, 2, 5), list(_LAYERS[1]), True, 1, 0.0, False, False, False),
    "aten.rnn_tanh.input": (f(3, 2, 4), f(1, 2, 5), list(_LAYERS[2]), True, 1, 0.0, False, False, False),
    "aten.rnn_relu.input": (f(3, 2, 4), f(1, 2, 5), list(_LAYERS[2]), True, 1, 0.0, False, False, False),
    "aten.embedding.default": (f(8, 4), i(2, 5)),
    "aten.gather.default": (f(4, 8), 1, i(4, 3)),
    "aten.index.Tensor": (f(4, 8), [i(3), i(3)]),
    "aten.index_select.default": (f(4, 8), 1, i(3)),
    "aten.index_put.default": (f(4, 8), [i(3), i(3)], f(3), False),
    "aten.index_add.default": (f(4, 8), 1, i(3), f(4, 3)),
    "aten.index_copy.default": (f(4, 8), 1, i(3), f(4, 3)),
    "aten.scatter.src": (f(4, 8), 1, i(4, 3), f(4, 3)),
    "aten.scatter.value": (f(4, 8), 1, i(4, 3), 1.0),
    "aten.scatter_add.default": (f(4, 8), 1, i(4, 3), f(4, 3)),
    "aten.stft.default": (f(2, 16), 8, 2, 8, f(8), True, True, True),
    "aten.stft.center": (f(2, 16), 8, 2, 8, f(8), True, "reflect", True, True, True),
    "aten.istft.default": (TensorType((2, 5, 9), "complex64"), 8, 2, 8, f(8), True, True, True, 16),
    "aten.pad.default": (f(1, 2, 8), [3, 2], "reflect", None),
    "aten.constant_pad_nd.default": (f(1, 2, 8), [3, 2], 0.0),
    "aten.im2col.default": (f(1, 2, 8, 8), [3, 3], [1, 1], [1, 1], [2, 2]),
    "aten.col2im.default": (f(1, 18, 16), [8, 8], [3, 3], [1, 1], [1, 1], [2, 2]),
    "aten.avg_pool1d.default": (f(1, 2, 8), [2], [2], [0], False, True),
    "aten.avg_pool2d.default": (f(1, 2, 8, 8), [2, 2], [2, 2], [0, 0], False, True, None),
    "aten.avg_pool3d.default": (f(1, 2, 4, 4, 4), [2] * 3, [2] * 3, [0] * 3, False, True, None),
    "aten.max_pool1d.default": (f(1, 2, 8), *_POOL),
    "aten.max_pool2d.default": (f(1, 2, 8, 8), *(2 * x if isinstance(x, list) else x for x in _POOL)),
    "aten.max_pool2d_with_indices.default": (f(1, 2, 8, 8), *(2 * x if isinstance(x, list) else x for x in _POOL)),
    "aten.max_pool3d.default": (f(1, 2, 4, 4, 4), *(3 * x if isinstance(x, list) else x for x in _POOL)),
    "aten.adaptive_avg_pool1d.default": (f(1, 2, 8), [3]),
    "aten.adaptive_avg_pool2d.default": (f(1, 2, 8, 8), [3, 3]),
    "aten.adaptive_avg_pool3d.default": (f(1, 2, 4, 4, 4), [2, 2, 2]),
    "aten.upsample_nearest1d.vec": (f(1, 2, 8), None, [2.0]),
    "aten.upsample_nearest2d.vec": (f(1, 2, 8, 8), None, [2.0, 2.0]),
    "aten.upsample_linear1d.vec": (f(1, 2, 8), None, False, [2.0]),
    "aten.upsample_bilinear2d.vec": (f(1, 2, 8, 8), None, False, [2.0, 2.0]),
    "aten.upsample_bicubic2d.vec": (f(1, 2, 8, 8), None, False, [2.0, 2.0]),
    "aten.unfold.default": (f(2, 8), 1, 3, 2),
    "aten.slice_scatter.default": (f(4, 8), f(4, 3), 1, 0, 6, 2),
    "aten.topk.default": (f(4, 8), 3, 1, True, True),
    "aten.fft_irfft.default": (TensorType((2, 5), "complex64"), 8, -1, None),
    "aten.fft_irfft2.default": (TensorType((2, 5, 5), "complex64"), [8, 8], [-2, -1], None),
    "aten.where.self": (TensorType((4,), "bool"), f(4), f(4)),
    "aten.linalg_vector_norm.default": (f(4, 8), 2, [1], False),
}


def random_value(kind: str, rng: random.Random, count: int | None = None):
    if kind.startswith("Optional["):
        return None if rng.random() < 0.4 else random_value(kind[9:-1], rng, count)
    if kind.startswith("List["):
        return [random_value(kind[5:-1], rng) for _ in range(count or rng.choice((0, 1, 1, 2, 2, 3)))]
    if kind == "Tensor":
        dtype = FLOAT if rng.random() < 0.7 else rng.choice(list(DTYPES))
        return TensorType(tuple(rng.choice(EXTENTS) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 3, 4)))), dtype)
    if kind == "int":
        return rng.choice(INTEGERS)
    if kind == "number":
        return rng.choice((*INTEGERS, -(2**63), 2**63 - 1, 0.5, -1.0, 1e30, -1e30, math.inf, math.nan, True))
    if kind == "float":
        return rng.choice((0.0, 0.5, 1.0, 2.0, 1e-300, 1e300, -1.0, math.inf, math.nan))
    return {
        "bool": lambda: rng.random() < 0.5,
        "str": lambda: rng.choice(TEXTS),
        "ScalarType": lambda: rng.choice(list(DTYPES.values())),
        "Layout": lambda: torch.strided,
        "MemoryFormat": lambda: torch.contiguous_format,
        "Device": lambda: torch.device("cpu"),
    }[kind]()


def changed(value, kind: str, rng: random.Random):
    """Something like a value, a little off."""
    if isinstance(value, TensorType) and rng.random() < 0.9:
        shape = list(value.shape)
        for _ in range(rng.choice((1, 1, 2))):
            act = rng.random()
            if act < 0.6 and shape:
                shape[rng.randrange(len(shape))] = rng.choice((*EXTENTS, 16, 20))
            elif act < 0.8 and shape:
                del shape[rng.randrange(len(shape))]
            else:
                shape.insert(rng.randrange(len(shape) + 1), rng.choice(EXTENTS))
        return TensorType(tuple(shape), value.dtype if rng.random() < 0.85 else rng.choice(list(DTYPES)))
    if isinstance(value, list) and value and rng.random() < 0.9:
        items, at = list(value), rng.randrange(len(value))
        act = rng.random()
        inner = (kind[9:-1] if kind.startswith("Optional[") else kind)[5:-1] or "int"
        if act < 0.7:
            items[at] = changed(items[at], "Tensor" if isinstance(items[at], TensorType) else inner, rng)
        elif act < 0.85:
            del items[at]
        else:
            items.insert(at, items[at])
        return items
    return random_value(kind, rng)


def call(name: str, rng: random.Random) -> list:
    schema = operators.resolve(name)._schema.arguments
    example = EXAMPLES.get(name)
    if example is None or rng.random() < 0.1:
        values = [random_value(str(argument.real_type), rng, argument.N) for argument in schema]
        if rng.random() < 0.6:  # tensors that are alike
            first = next((value for value in values if isinstance(value, TensorType)), None)
            values = [first if isinstance(value, TensorType) and rng.random() < 0.8 else value for value in values]
        return values
    values = list(example)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        at = rng.randrange(len(values))
        values[at] = changed(values[at], str(schema[at].real_type), rng)
    return values


def guarded(kind: TensorType, rng: random.Random) -> torch.Tensor:
    """A tensor that ends (or, as often, begins) where a page does that nobody may touch."""
    if not kind.bytes:
        return torch.empty(kind.shape, dtype=DTYPES[kind.dtype])
    pages = -(-kind.bytes // PAGE) * PAGE
    memory = mmap.mmap(-1, pages + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = PAGE + (pages - kind.bytes if rng.random() < 0.7 else 0)
    tensor = torch.frombuffer(memory, dtype=DTYPES[kind.dtype], count=math.prod(kind.shape), offset=offset)
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.copy_(torch.tensor([rng.choice((0.0, 1.0, -2.5, 1e30, math.nan, 0.5)) for _ in range(len(tensor))]))
    elif tensor.dtype is torch.bool:
        tensor.copy_(torch.tensor([rng.random() < 0.5 for _ in range(len(tensor))]))
    else:
        low, high = torch.iinfo(tensor.dtype).min, torch.iinfo(tensor.dtype).max
        wild = rng.random() < 0.5
        choices = (low, high, -1, -9, 7, 8, 100) if wild else (0, 1, 2, 3)
        tensor.copy_(torch.tensor([min(max(rng.choice(choices), low), high) for _ in range(len(tensor))]))
    for page in (address, address + PAGE + pages):
        if LIBC.mprotect(ctypes.c_void_p(page), PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    guarded.kept.append((memory, tensor))
    return tensor.view(kind.shape)


guarded.kept = []


def attempt(name: str, seed: int, note) -> str:
    """One program of one operator: "refused", "raised", "computed", or what is wrong."""
    rng = random.Random(f"{name} {seed}")
    values = call(name, rng)
    graph, known = fx.Graph(), {}

    def placed(value):
        if isinstance(value, list):
            return [placed(item) for item in value]
        if isinstance(value, TensorType):
            node = graph.placeholder(f"x{len(known)}")
            known[node] = node.meta["type"] = value
            return node
        return value

    schema = operators.resolve(name)._schema.arguments
    positional = [placed(value) for value, argument in zip(values, schema, strict=False) if not argument.kwarg_only]
    named = {
        argument.name: placed(value) for value, argument in zip(values, schema, strict=False) if argument.kwarg_only
    }
    node = graph.call_function(operators.resolve(name), tuple(positional), named)
    try:
        inferred = admission._call(node, known)
        for kind in inferred if isinstance(inferred, tuple) else [inferred]:
            admission._check_declared("it", kind)
    except admission.RefusedError:
        return "refused"
    if admission._bytes(inferred) + admission._workspace(node, known | {node: inferred}) > MOST:
        return "refused"
    note(f"{seed} {values}")
    tensors = {node: guarded(kind, rng) for node, kind in known.items()}
    try:
        with torch.no_grad():
            result = operators.resolve(name)(
                *fx.node.map_arg(node.args, tensors.__getitem__), **fx.node.map_arg(node.kwargs, tensors.__getitem__)
            )
    except (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError):
        return "raised"
    results = tuple(map(TensorType.of, result)) if isinstance(result, list | tuple) else TensorType.of(result)
    for tensor in result if isinstance(result, list | tuple) else [result]:
        tensor.clone()  # of a view: reads all it shows
    return "computed" if results == inferred else f"gave {results}, inferred {inferred} for {values}"


def in_child(name: str, seeds: range, seconds: int) -> tuple[str, dict[str, int]]:
    """What went wrong with an operator, and how its attempts ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        signal.alarm(seconds)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        counts: dict[str, int] = {}
        for seed in seeds:
            try:
                outcome = attempt(name, seed, lambda text: os.write(writer, f"@{text}\n".encode()))
            except Exception as error:
                outcome = f"raised {error!r} at seed {seed}: {call(name, random.Random(f'{name} {seed}'))}"
            counts[outcome if len(outcome) < 9 else "wrong"] = (
                counts.get(outcome if len(outcome) < 9 else "wrong", 0) + 1
            )
            if len(outcome) > 8:
                os.write(writer, f"!{outcome}\n".encode())
            guarded.kept.clear()
        os.write(writer, f"={counts}\n".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    last = next((line for line in reversed(lines) if line[:1] == "@"), "")
    wrong = next((line for line in lines if line[:1] == "!"), "")
    counts = next((line for line in lines if line[:1] == "="), "")
    if status:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        wrong = f"ended by {signal.Signals(number).name if os.WIFSIGNALED(status) else number} at {last}"
    return wrong, counts


if __name__ == "__main__":
    first, count, *names = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    attempt("aten.add.Tensor", 0, lambda text: None)
    for name in names or sorted(operators.ALLOWED):
        wrong, counts = in_child(name, range(int(first), int(first) + int(count)), 60)
        if wrong:
            sys.stdout.write(f"{name}: {wrong[:500]}\n")
