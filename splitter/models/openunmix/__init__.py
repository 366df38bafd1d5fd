"""Open-Unmix: the released separators by name, or any `openunmix.model.Separator`."""

from __future__ import annotations

import importlib
import itertools
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from splitter_weights import state_dicts
from torch import nn

from ...bundle.manifest import AudioRecord, Chunking
from ...errors import CheckpointError, UsageError
from ...graph.capture import Patch
from ...patching import replaced
from ...plan import schema as plans
from ...plan.schema import Plan
from .. import Ensemble, Model
from ..separator import SeparatorFamily

# Width of the networks, and the files of their weights as torch.hub keeps them, in the order of the stems.
_RELEASED: dict[str, tuple[int, dict[str, str]]] = {
    "umx": (
        512,
        {
            "vocals": "vocals-c8df74a5.pth",
            "drums": "drums-5a48008b.pth",
            "bass": "bass-646024d3.pth",
            "other": "other-f8e132cc.pth",
        },
    ),
    "umxhq": (
        512,
        {
            "vocals": "vocals-b62c91ce.pth",
            "drums": "drums-9619578f.pth",
            "bass": "bass-8d85a5bd.pth",
            "other": "other-b52fbbf7.pth",
        },
    ),
    "umxl": (
        1024,
        {
            "vocals": "vocals-bccbd9aa.pth",
            "drums": "drums-69e0ebd4.pth",
            "bass": "bass-2ca1ce51.pth",
            "other": "other-c8c5b3e6.pth",
        },
    ),
}
_FFT, _HOP, _SAMPLERATE, _BANDWIDTH = 4096, 1024, 44_100.0, 16_000
_FRAMES = 300  # in one run, where the filter has no window of its own


class OpenUnmixFamily(SeparatorFamily):
    name: ClassVar[str] = "openunmix"
    names: ClassVar[tuple[str, ...]] = tuple(_RELEASED)
    distribution: ClassVar[str] = "openunmix"

    def fits(self, module: nn.Module) -> bool:
        return f"{type(module).__module__}.{type(module).__qualname__}" == "openunmix.model.Separator"

    def load(self, model: str | Path, *, random_init: int | None = None) -> Ensemble:
        """A released separator, from where torch.hub keeps its files; with the filter's one iteration, as released."""
        name = str(model)
        width, files = _RELEASED[name]
        home = package()
        # What `bandwidth_to_max_bin` gives, which needs more of the package than its modules.
        most = int(_BANDWIDTH * _FFT / _SAMPLERATE) + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_init or 0)
            networks = {
                stem: home.OpenUnmix(nb_bins=_FFT // 2 + 1, nb_channels=2, hidden_size=width, max_bin=most)
                for stem in files
            }
        digests = None if random_init is not None else [_filled(networks[stem], files[stem], name) for stem in files]
        module = home.Separator(networks, niter=1, n_fft=_FFT, n_hop=_HOP, sample_rate=_SAMPLERATE).eval()
        arguments = {"hidden_size": width, "niter": 1}
        member = Model(name, module, arguments, state_dicts.digest(digests) if digests else None, random_init)
        return Ensemble(name, (member,), ((1.0,) * len(files),))

    def plans(self) -> Sequence[Plan]:
        text = resources.files(__package__).joinpath("openunmix.toml").read_text(encoding="utf-8")
        return (Plan.model_validate(tomllib.loads(text)),)

    def prepared(self, module: nn.Module, plan: Plan, seconds: float | None) -> Plan:
        """Any length of at least a window; by default what the filter takes at a time."""
        transform: Any = module.stft
        frames: Any = module.wiener_win_len or _FRAMES
        rate = self._rate(module)
        asked = round(seconds * rate) if seconds is not None else plan.segment_samples
        samples = (frames - 1) * transform.n_hop if asked is None else asked
        if samples < transform.n_fft:
            raise UsageError(
                "the model does not run at this length",
                expected=f"at least {transform.n_fft / rate:g} s",
                received=f"{samples / rate:g} s",
            )
        return plans.changed(plan, segment_samples=samples)

    def audio(self, module: nn.Module, plan: Plan) -> AudioRecord:
        assert plan.segment_samples is not None
        networks: Any = module.target_models
        mono: Any = module.complexnorm.mono  # type: ignore[union-attr]
        return AudioRecord(
            stems=(*networks, *(("residual",) if module.residual else ())),
            samplerate=self._rate(module),
            channels=1 if mono else 2,
            samples=plan.segment_samples,
            chunking=Chunking(normalised=False, shifts=0),
        )

    def patches(self) -> Sequence[Patch]:
        return (_places_as_numbers,)

    @staticmethod
    def _rate(module: nn.Module) -> int:
        return round(float(module.sample_rate))  # type: ignore[arg-type]


class _Torch(ModuleType):
    """`torch` as the package's modules see it during a capture."""

    arange = staticmethod(range)

    @staticmethod
    def cartesian_prod(*sequences: Sequence[int]) -> list[tuple[int, ...]]:
        return list(itertools.product(*sequences))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def _places_as_numbers() -> Iterator[None]:
    """`torch.arange` and `torch.cartesian_prod` give Python's numbers, in `openunmix` alone.

    ``int(torch.arange(a, b)[-1])`` asks a tensor for its value, to decide where a loop ends. No capture can take that,
    though both ends are known. The package uses both functions for places in tensors only.
    """
    homes = [sys.modules.get(f"openunmix.{name}") for name in ("model", "filtering")]
    if None in homes:  # the model being captured does not use it
        yield
        return
    seen = _Torch("torch")
    with replaced(homes[0], "torch", seen), replaced(homes[1], "torch", seen):
        yield


def package() -> ModuleType:
    """The module `openunmix.model`, without torchaudio where that cannot be imported.

    The package imports torchaudio to read files and to resample. Its models do neither, and torchaudio's build for one
    kind of hardware cannot be imported beside PyTorch's for another.

    Raises:
        UsageError: The package is not installed.
    """
    absent = "torchaudio" not in sys.modules and not _imports("torchaudio")
    if absent:
        sys.modules["torchaudio"] = ModuleType("torchaudio")
    try:
        return importlib.import_module("openunmix.model")
    except ImportError as error:
        raise UsageError(
            "Open-Unmix needs the package openunmix",
            received=str(error),
            fix="Install the extra: pip install 'splitter[openunmix]'.",
        ) from error
    finally:
        if absent:
            del sys.modules["torchaudio"]


def _imports(name: str) -> bool:
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except (ImportError, OSError):
        for half in [key for key in sys.modules if key not in before and key.partition(".")[0] == name]:
            del sys.modules[half]
        return False
    return True


def _filled(network: nn.Module, file: str, name: str) -> str:
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        raise CheckpointError(
            f"{file} of {name} is not where torch.hub keeps files",
            expected=str(path),
            fix=f"Fetch it there: python -c 'import openunmix; openunmix.{name}()'. Or ask for seeded weights.",
        )
    return state_dicts.fill(network, path, more=True)
