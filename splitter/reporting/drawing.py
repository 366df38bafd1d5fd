"""Matplotlib's figures as SVG within the page: its fonts, its colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from xml.etree import ElementTree as ET

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Matplotlib takes colours, not variables: each of these stands for the variable of the page that replaces it.
INK, MUTED, RULE, FAINT = "#16181d", "#5c6370", "#c9ced6", "#eef0f3"
ACCENT, SECOND, THIRD, FOURTH = "#2f5d9b", "#b4552d", "#4b7f52", "#7a5195"
GOOD, WARN, BAD = "#2c7a46", "#9a6700", "#b42318"
VARIABLES: Mapping[str, str] = {
    INK: "--ink", MUTED: "--muted", RULE: "--rule", FAINT: "--faint", ACCENT: "--accent", SECOND: "--second",
    THIRD: "--third", FOURTH: "--fourth", GOOD: "--good", WARN: "--warn", BAD: "--bad",
}  # fmt: skip

WIDE, NARROW = 900, 358  # px: on a desktop, on a phone
TEXT, SMALL = 11.5, 10.5  # px
_PER_INCH = 72  # an SVG's unit is a point of a figure, and one px of the page
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"(?:url\(#|^#)([\w.-]+)")
_COLOUR = re.compile("|".join(VARIABLES))
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are names, whatever characters they have
    "font.family": "sans-serif",
    "font.size": TEXT,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.labelsize": SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 1.0,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.6,
}


def styled() -> AbstractContextManager[None]:
    """Figures are drawn and saved within this."""
    return rc_context(_STYLE)  # type: ignore[arg-type]


def canvas(width: float, height: float) -> Figure:
    """A figure of so many px."""
    return Figure(figsize=(width / _PER_INCH, height / _PER_INCH))


def axes(figure: Figure, *, left: float = 0, right: float = 0, top: float = 0, bottom: float = 0) -> Axes:
    """Axes with margins in px."""
    width, height = figure.get_size_inches() * _PER_INCH
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )


def svg(figure: Figure, name: str, label: str = "", *, stretched: bool = False) -> Markup:
    """A figure as an element of the page.

    Args:
        name: Unique on the page.
        label: What it shows, for who cannot see it; without one it is decoration.
        stretched: It takes any width and height, its proportions are nothing to it.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 (Matplotlib's, of a moment ago)
    for unwanted in (root.find(f"{{{_SVG}}}metadata"), root.find(f"{{{_SVG}}}defs")):
        if unwanted is not None:
            root.remove(unwanted)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label} if label else {"aria-hidden": "true"}
    if stretched:
        root.set("preserveAspectRatio", "none")
    used = {
        found for element in root.iter() for value in element.attrib.values() for found in _REFERENCE.findall(value)
    }
    for element in root.iter():
        _adapt(element, name, used)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _LINK)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 (made here, and escaped by ElementTree)


def _adapt(element: ET.Element, name: str, used: set[str]) -> None:
    """Ids of this figure alone, colours and fonts of the page."""
    identity = element.attrib.pop("id", None)
    if identity in used:
        element.set("id", f"{name}-{identity}")
    for key, value in element.attrib.items():
        if key == f"{{{_LINK}}}href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{name}-"))
    style = element.get("style", "")
    if "monospace" in style:
        element.set("class", "mono")
    style = re.sub(r"font-family: [^;]*;?", "", style)
    style = _COLOUR.sub(lambda found: f"var({VARIABLES[found[0]]})", style)
    if style:
        element.set("style", style.strip())
