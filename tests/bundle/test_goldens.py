import numpy as np
import pytest
import torch

from splitter.bundle import goldens
from splitter.errors import CaptureError
from splitter.graph.capture import capture
from splitter.partition import partition

from ..toys import HYBRID_PLAN, Hybrid


@pytest.fixture(scope="module")
def hybrid():
    model, mix = Hybrid().eval(), {"mix": torch.randn(1, 2, 64)}
    whole = capture(model, mix, ("restored",))
    return model, whole, partition(whole, HYBRID_PLAN), mix


def test_goldens_are_every_boundary_tensor(hybrid):
    model, whole, parts, mix = hybrid
    golden = goldens.record(model, whole, parts, mix)
    assert set(golden) == {spec.name for spec in parts.tensors}
    assert torch.equal(golden["restored"], model(mix["mix"]))
    seen = {}
    handle = model.down.register_forward_hook(lambda module, args, result: seen.update(waveform=args[0], down=result))
    model(mix["mix"])
    handle.remove()
    for name, tensor in seen.items():
        assert torch.equal(golden[name], tensor)


def test_capture_of_another_model_is_caught(hybrid):
    _, whole, parts, mix = hybrid
    other = Hybrid().eval()
    with torch.no_grad():
        other.up.bias += 1
    with pytest.raises(CaptureError, match="the capture gives another 'restored' than the model"):
        goldens.record(other, whole, parts, mix)


def test_boundary_the_model_never_computes_is_caught(hybrid):
    """Same output, but by another way: the intermediate tensors are not the model's."""
    model, whole, parts, mix = hybrid
    detour = whole.copy()
    node = next(n for n in detour.operators if n.name == parts.nodes["waveform"])
    with detour.graph.inserting_after(node):
        double = detour.graph.call_function(torch.ops.aten.mul.Tensor, (node, 2.0))
    with detour.graph.inserting_after(double):
        half = detour.graph.call_function(torch.ops.aten.mul.Tensor, (double, 0.5))
    for new in (double, half):
        new.meta = dict(node.meta)
    node.replace_all_uses_with(half, delete_user_cb=lambda user: user is not double)
    moved = type(parts)(parts.segments, parts.tensors, {**parts.nodes, "waveform": double.name})
    with pytest.raises(CaptureError, match="never computes the boundary tensors waveform"):
        goldens.record(model, detour, moved, mix)


def test_attention_fast_path_is_restored(hybrid):
    goldens.record(*hybrid)
    assert torch.backends.mha.get_fastpath_enabled()


def test_bundle_goldens_are_the_untouched_models(demo_bundle, demo_model):
    golden = demo_bundle.goldens()
    assert np.array_equal(golden["stems"], demo_model(torch.from_numpy(golden["mix"])).detach().numpy())
    seen = {}
    handles = [
        demo_model.crosstransformer.register_forward_hook(
            lambda m, args, out: seen.update(zip(("f", "t"), args, strict=True), F=out[0], T=out[1])
        ),
        demo_model.encoder[0].register_forward_pre_hook(lambda m, args: seen.update(s=args[0])),
        demo_model.encoder[1].register_forward_pre_hook(lambda m, args: seen.update(skip=args[0])),
    ]
    demo_model(torch.from_numpy(golden["mix"]))
    for handle in handles:
        handle.remove()
    names = {"f": "freq_encoded", "t": "time_encoded", "F": "freq_transformed", "T": "time_transformed",
             "s": "spectrogram", "skip": "skip_freq_0"}  # fmt: skip
    for key, name in names.items():
        assert np.array_equal(golden[name], seen[key].detach().numpy()), name


def test_golden_input_is_a_normalised_song(demo_bundle):
    mono = demo_bundle.goldens()["mix"][0].mean(0)
    assert abs(mono.mean()) < 1e-6
    assert mono.std() == pytest.approx(1, abs=1e-3)
    assert np.abs(demo_bundle.goldens()["stems"]).max() > 0.1


def test_machine_is_described():
    assert goldens.machine() == goldens.machine()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert goldens.machine().threads == threads + 1
    finally:
        torch.set_num_threads(threads)
