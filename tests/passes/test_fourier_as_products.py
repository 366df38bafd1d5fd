"""Fourier transforms as products: against PyTorch's own in float64, what is left of them, and what is left alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitter import passes
from splitter.graph.capture import capture
from splitter.passes.dft import MOST_BYTES, Factors

from ..conftest import snr_db
from .harness import applied, captured, moved_db, predicted, targets, types_hold

pytestmark = [
    pytest.mark.filterwarnings("ignore:A window was not provided"),
    pytest.mark.filterwarnings("ignore:The length of signal is shorter"),
]
PASS = "fourier-as-products"
LENGTHS = (2, 8, 30, 64, 210, 256, 400, 480, 512, 1536, 2048, 4096)
WINDOWS = {
    "hann": torch.hann_window,
    "hamming": lambda length: torch.hamming_window(length, periodic=False),
    "none": lambda length: None,
}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tables(before, after):
    return [weight for name, weight in after.weights.items() if name not in before.weights]


def is_free_of_complex_numbers(program):
    kinds = [node.meta["type"].dtype for node in program.operators]
    names = targets(program)
    return not any("complex" in kind for kind in kinds) and not any(
        word in name for name in names for word in ("conv", "stft", "fft", "complex")
    )


@st.composite
def transforms(draw):
    samples = draw(st.sampled_from(LENGTHS))
    shifts = draw(st.sampled_from([number for number in (1, 2, 3, 4, 5, 8) if samples % number == 0]))
    window = draw(st.sampled_from(["hann", "hamming", "none"]))
    width = (
        samples if samples < 8 else draw(st.sampled_from([samples, samples - samples // 8, samples - samples // 8 - 1]))
    )
    return {
        "n_fft": samples,
        "hop_length": samples // shifts,
        "win_length": width,
        "window": WINDOWS[window](width),
        "normalized": draw(st.booleans()),
    }


def in_double(options):
    window = options["window"]
    return options | {"window": None if window is None else window.double()}


@settings(max_examples=25, deadline=None)
@given(
    transforms(),
    st.integers(1, 6),
    st.floats(0, 0.99),
    st.sampled_from([(), (1,), (2,)]),
    st.sampled_from(["constant", "reflect", None]),
)
def test_the_transform_is_pytorchs(options, frames, rest, batch, pad_mode):
    center = {"center": False} if pad_mode is None else {"center": True, "pad_mode": pad_mode}
    length = options["n_fft"] + (frames - 1) * options["hop_length"] + int(rest * options["hop_length"])
    x = random(*batch, length)

    def forward(self, x):
        return torch.view_as_real(torch.stft(x, **options, **center, return_complex=True))

    program, example = captured(forward, x)
    rewritten, changes = applied(PASS, program, example)
    assert changes
    assert is_free_of_complex_numbers(rewritten)
    assert types_hold(rewritten, example)
    assert all(4 * table.numel() <= MOST_BYTES for table in tables(program, rewritten))
    exact = torch.view_as_real(torch.stft(x.double(), **in_double(options), **center, return_complex=True))
    assert snr_db(exact.numpy(), rewritten.run(example)["y"].double().numpy()) >= 130


@settings(max_examples=25, deadline=None)
@given(transforms(), st.integers(1, 24), st.sampled_from([(), (2,)]), st.booleans(), st.sampled_from([None, 0.6, 1.3]))
def test_the_inverse_is_pytorchs(options, frames, batch, center, share):
    samples, hop = options["n_fft"], options["hop_length"]
    most = samples + (frames - 1) * hop - (samples if center else 0)
    length = None if share is None else int(share * most)
    x = random(*batch, samples // 2 + 1, frames, 2)
    options = options | {"center": center, "length": length}
    try:
        exact = torch.istft(torch.view_as_complex(x.double()), **in_double(options)).numpy()
    except RuntimeError:  # a window that leaves samples uncovered; no samples
        return

    def forward(self, x):
        return torch.istft(torch.view_as_complex(x), **options)

    program, example = captured(forward, x)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 2
    assert is_free_of_complex_numbers(rewritten)
    assert types_hold(rewritten, example)
    assert all(4 * table.numel() <= MOST_BYTES for table in tables(program, rewritten))
    assert snr_db(exact, rewritten.run(example)["y"].double().numpy()) >= 125


def masked(self, x):
    """As separators do: the chains on both sides move complex numbers before they hand real ones on."""
    z = torch.stft(x, 64, 16, window=self.window, return_complex=True)[..., :-1, :].unsqueeze(1)
    z = (
        torch.nn.functional.pad(z.transpose(-1, -2), (0, 1))
        .permute(0, 1, 3, 2)
        .clone()
        .squeeze(1)
        .unsqueeze(-1)
        .squeeze(-1)
    )
    y = torch.view_as_real(z) * 0.5
    z = torch.view_as_complex(y).reshape(1, 2, 33, -1).view(2, 33, -1)
    return torch.istft(z, 64, 16, window=self.window, length=x.shape[-1])


def test_chains_of_both_directions_run_as_packages(tmp_path):
    program, example = captured(masked, random(2, 500), window=torch.hann_window(64))
    rewritten, changes = applied(PASS, program, example)
    assert changes >= 10
    assert is_free_of_complex_numbers(rewritten)
    assert types_hold(rewritten, example)
    assert moved_db(program, rewritten, example) > 120
    expected = program.run(example)["y"].numpy()
    assert snr_db(expected, predicted(rewritten, example["x"], tmp_path, "fp32").numpy()) > 120


def test_tables_are_shared_and_have_one_axis():
    """So transforms of one size have them once, and compression, which is about weights of two axes, leaves them alone."""

    def made(forward):
        program, example = captured(forward, random(2, 500), window=torch.hann_window(64))
        rewritten, _ = applied(PASS, program, example)
        return tables(program, rewritten)

    both = made(masked)
    assert all(table.ndim == 1 for table in both)
    assert len(made(lambda self, x: masked(self, x) + masked(self, x * 2))) == len(both) == 4


def test_the_tables_of_the_released_models_take_less_than_a_megabyte():
    def forward(self, x):
        z = torch.stft(x, 4096, 1024, window=self.window, return_complex=True, normalized=True)
        return torch.istft(z, 4096, 1024, window=self.window, normalized=True, length=x.shape[-1])

    program, example = captured(forward, random(1, 20_000), window=torch.hann_window(4096))
    rewritten, _ = applied(PASS, program, example)
    assert sum(4 * table.numel() for table in tables(program, rewritten)) < 700_000


@pytest.mark.parametrize("value", [torch.full((8,), 3.0), torch.ones(8)])  # another one, and the very same
def test_a_table_takes_no_name_that_the_model_has(value):
    def forward(self, x):
        return torch.view_as_real(torch.stft(x, 8, return_complex=True, center=False)) * self.dft_0.sum()

    program, example = captured(forward, random(1, 32), dft_0=value)
    rewritten, _ = applied(PASS, program, example)
    assert torch.equal(rewritten.weights["dft_0"], value)
    assert "dft_1" in rewritten.weights
    assert moved_db(program, rewritten, example) > 120


def test_factors():
    """Small tables, few products; where windows overlap, their number divides the first one if it can."""
    chosen = {(samples, shifts): Factors.of(samples, shifts) for samples, shifts in FACTORS}
    assert {case: factors and factors.digits for case, factors in chosen.items()} == FACTORS


FACTORS = {
    (4096, 4): (8, 8, 8, 8),
    (1536, 3): (12, 8, 16),
    (480, 8): (24, 20),
    (400, 4): (20, 20),
    (31, 1): (31,),
    (2, 2): (2,),
    (509, 1): None,
    (65536, 4): None,
}


STFT = {"n_fft": 32, "hop_length": 8, "return_complex": True, "center": False}
NEAR_MISSES = {
    "hop of 7 does not divide": lambda self, x: torch.stft(x, **STFT | {"hop_length": 7}).real.sum(),
    "hop of 1 is less than 1/32": lambda self, x: torch.view_as_real(torch.stft(x, **STFT | {"n_fft": 64, "hop_length": 1})),
    "not one-sided": lambda self, x: torch.view_as_real(torch.stft(x, **STFT, onesided=False)),
    "window depends on an input": lambda self, x: torch.view_as_real(torch.stft(x, **STFT, window=x[0, :32].exp())),
    "no float32": lambda self, x: torch.view_as_real(torch.stft(x.double(), **STFT)).float(),
    "509 has no factors with tables of at most 500,000 bytes": lambda self, x: torch.view_as_real(torch.stft(x, **STFT | {"n_fft": 509, "hop_length": 509})),
    "aten.abs.default has no form": lambda self, x: torch.stft(x, **STFT).abs(),
    "aten.mul.Tensor has no form": lambda self, x: torch.view_as_real(torch.stft(x, **STFT) * 1j),
    "padded with others than zeros": lambda self, x: torch.view_as_real(
        torch.nn.functional.pad(torch.stft(x, **STFT), (1, 1), value=1.0)
    ),
    "it is not one-sided": lambda self, x: torch.istft(
        torch.view_as_complex(x.view(4, 3, 25, 2).repeat(1, 4, 1, 1)), 12, 3, window=self.w[:12] + 1
    ),
    "gives complex samples": lambda self, x: torch.view_as_real(torch.istft(
        torch.view_as_complex(x.view(2, 2, 75, 2).repeat(1, 1, 2, 2)[..., :2]), 2, 1, window=self.w[:2] + 1,
        return_complex=True, center=False)),
}  # fmt: skip


@pytest.mark.parametrize("reason", NEAR_MISSES)
def test_what_has_no_such_form_is_left_as_a_whole(reason):
    forward = NEAR_MISSES[reason]
    program, example = captured(forward, random(1, 600), w=torch.hann_window(32))
    rewriting = passes.apply(PASS, program, example)
    assert rewriting.changes == 0
    assert targets(rewriting.program) == targets(program)
    assert rewriting.program.weights == program.weights
    assert {reason in skip.reason for skip in rewriting.skipped} == {True}


def test_one_chain_that_is_left_takes_no_other_with_it():
    def forward(self, x):
        z = torch.stft(x, **STFT)
        return torch.view_as_real(z).sum() + torch.stft(x * 2, **STFT | {"n_fft": 16}).abs().sum()

    program, example = captured(forward, random(1, 600))
    rewriting = passes.apply(PASS, program, example)
    assert rewriting.changes == 2
    assert [skip.reason for skip in rewriting.skipped] == ["aten.abs.default has no form without complex numbers here"]
    assert targets(rewriting.program).count("stft.default") == 1
    kept = {name for name in rewriting.program.weights if name.startswith("dft")}
    assert kept == {node.target for node in rewriting.program.graph.nodes if node.op == "get_attr"}


def test_complex_numbers_that_leave_a_segment_are_left():
    class Module(torch.nn.Module):
        def forward(self, x):
            return torch.stft(x, **STFT)

    program = capture(Module().eval(), {"x": random(1, 64)}, ("y",))
    (skip,) = passes.apply(PASS, program, {"x": random(1, 64)}).skipped
    assert skip.reason == "a complex value crosses the segment's boundary or is a weight"


def test_an_inverse_with_gaps_is_left_to_pytorchs_own_message():
    program, _ = captured(
        lambda self, x: torch.istft(torch.view_as_complex(x), 64, 16, window=self.window), random(1, 33, 9, 2),
        window=torch.hann_window(64),
    )  # fmt: skip
    program.weights["window"] = torch.zeros(64)
    (skip,) = passes.parsed(PASS).apply(program).skipped
    assert skip.reason == "its windows leave samples uncovered"


def test_long_products_become_convolutions_of_one_value():
    def forward(self, x):
        z = torch.stft(x, 512, 128, window=self.window, return_complex=True)
        return torch.istft(z, 512, 128, window=self.window, length=x.shape[-1])

    program, example = captured(forward, random(2, 6000), window=torch.hann_window(512))
    rewritten, _ = applied(f"{PASS}(extent=1000)", program, example)
    kernels = [node.args[1].meta["type"].shape[2:] for node in rewritten.operators if "conv2d" in str(node.target)]
    assert kernels
    assert set(kernels) == {(1, 1)}
    products = [node.meta["type"].shape for node in rewritten.operators if "matmul" in str(node.target)]
    assert max(shape[-1] for shape in products) <= 1000
    assert types_hold(rewritten, example)
    assert moved_db(program, rewritten, example) >= 125
