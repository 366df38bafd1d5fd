"""How a forward is called: by position, by name, in structures; and what is said of calls that do not fit."""

import numpy as np
import pytest
import torch
from torch import nn

from splitter.errors import UsageError
from splitter.graph.signature import bind, identifier


class Taking(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self._call = forward
        self.forward = forward


X, Y = np.ones(2, np.float32), np.ones(3, np.float32)


def test_positions_names_and_the_order_of_the_signature():
    call = bind(Taking(lambda a, b=None, *, c, d=1: a), {"c": Y, "a": X})
    assert ([*call.tensors], len(call.args), list(call.kwargs)) == (["a", "c"], 1, ["c"])
    call = bind(Taking(lambda a, b=None, c=None: a), {"c": Y, "a": X})
    assert ([*call.tensors], len(call.args), list(call.kwargs)) == (["a", "c"], 1, ["c"])


def test_structures_by_path_and_as_they_are():
    by_path = bind(Taking(lambda x, state: x), {"x": X, "state.h": X, "state.c": Y})
    assert [*by_path.tensors] == ["x", "state_h", "state_c"]
    assert set(by_path.args[1]) == {"h", "c"}
    listed = bind(Taking(lambda features: features), {"features.1": Y, "features.0": X})
    assert [*listed.tensors] == ["features_0", "features_1"]
    assert [len(one) for one in listed.args[0]] == [2, 3]
    assert [*bind(Taking(lambda features: features), {"features": (X, [Y])}).tensors] == ["features_0", "features_1_0"]


def test_any_number_of_arguments():
    assert [*bind(Taking(lambda *several: several), {"several": [X, Y]}).tensors] == ["several_0", "several_1"]
    call = bind(Taking(lambda a, **others: a), {"a": X, "b": Y})
    assert ([*call.tensors], list(call.kwargs)) == (["a", "b"], ["b"])


def test_constants_are_no_tensors():
    call = bind(Taking(lambda a, mask, scale: a), {"a": X, "mask": None, "scale": 2.0})
    assert ([*call.tensors], call.args[1:]) == (["a"], (None, 2.0))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"imgae": X}, r"forward needs the argument 'image'; got imgae. Its arguments are image, mask"),
        ({"image": X, "masc": X}, r"forward has no argument 'masc'\. The nearest: mask\."),
        ({"image": np.array(["a"])}, r"'image' is no array of numbers"),
        ({"image": np.ones(2, np.uint32)}, r"'image' has elements of a type that no bundle takes; got uint32"),
        ({"image": torch.ones(2).bfloat16()}, r"'image' has .* no bundle takes; got bfloat16\. .* module\.float\(\)"),
        ({"image": object()}, r"'image' is nothing that a graph takes: expected an array.*found object"),
        ({"image": X, "image.0": X}, r"'image.0' lies within another one"),
    ],
)
def test_what_does_not_fit_is_said(inputs, message):
    with pytest.raises(UsageError, match=message):
        bind(Taking(lambda image, mask=None: image), inputs)


def test_names_are_identifiers_of_their_own():
    taken: set[str] = set()
    for text in ("a.b", "a_b", "class", "torch", "0", "é"):
        taken.add(identifier(text, taken, "input"))
    assert taken == {"a_b", "a_b_2", "input_class", "input_torch", "input_0", "input"}


def test_running_leaves_inputs_and_buffers_as_they_were():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(2))
            self.register_buffer("last", torch.zeros(2))

        def forward(self, x):
            self.count += 1
            self.last = x + self.count
            return x.mul_(self.count)

    model = Counting().eval()
    buffers = dict(model.named_buffers())
    call = bind(model, {"x": np.full(2, 3.0, np.float32)})
    assert [call.run(model).tolist() for _ in range(2)] == [[3.0, 3.0]] * 2
    assert call.tensors["x"].tolist() == [3.0, 3.0]
    assert all(buffer is buffers[name] and not buffer.any() for name, buffer in model.named_buffers())
