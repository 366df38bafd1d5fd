"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numbers of a command's help take no NumPy
    from .parity import Parity


def size(count: float) -> str:
    """Bytes in decimal units: ``33.0 MB``."""
    return _scaled(count, "B", ("kB", "MB", "GB"))


def operations(count: float) -> str:
    """A count by thousands: ``895.2 M``."""
    return _scaled(count, "", ("k", "M", "G", "T"))


def _scaled(count: float, unit: str, larger: Sequence[str]) -> str:
    """A number in the largest unit of which there is at least one; each is a thousand of the one before."""
    shown = unit
    for larger_unit in larger:
        if count < 1000:
            break
        count, shown = count / 1000, larger_unit
    return f"{count:.0f} {shown}".rstrip() if shown == unit else f"{count:.1f} {shown}"


def share(part: float | None) -> str:
    """A part of one in per cent; ``n/a`` where there is none."""
    return "n/a" if part is None else f"{100 * part:.1f} %"


def time(*seconds: float | None) -> str:
    """The first of several, in seconds or less; empty where there is none."""
    if not seconds or seconds[0] is None:
        return ""
    value = seconds[0]
    if value < 1e-3:
        return f"{1e6 * value:.0f} µs"
    return f"{1e3 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def duration(bounds: tuple[float, float] | None) -> str:
    """From so long to so long, roughly; ``none`` where nothing takes time."""
    if bounds is None:
        return "none"
    least, most = (f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" for seconds in bounds)
    return f"{least} … {most}"


def snr(parity: Parity | None) -> str:
    """``exact``, ``121.3 dB``, ``n/a`` where the reference is silent, ``not finite``; empty for no comparison."""
    if parity is None:
        return ""
    if not parity.finite:
        return "not finite"
    if parity.snr_db is None:
        return "n/a"
    return "exact" if parity.max_abs == 0.0 else f"{parity.snr_db:.1f} dB"


def deviation(parity: Parity | None) -> str:
    """The largest difference; empty for no comparison."""
    return "" if parity is None else f"{parity.max_abs:.1e}"


def cosine(parity: Parity | None) -> str:
    """``n/a`` where either is silent; empty for no comparison."""
    if parity is None:
        return ""
    return "n/a" if parity.cosine is None else f"{parity.cosine:.8f}"


def limit(parity: Parity | None, snr_db: float | None) -> str:
    """What a comparison must reach; empty for none."""
    if parity is None:
        return ""
    return "exact" if snr_db is None else f"{snr_db:g} dB"
