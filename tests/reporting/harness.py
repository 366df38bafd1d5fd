"""A page as its elements."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "input", "img", "br", "link", "base"}


@dataclass
class Element:
    tag: str
    attributes: dict
    text: str = ""
    children: list = field(default_factory=list)

    def walk(self):
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, tag, **attributes):
        return [
            one
            for one in self.walk()
            if one.tag == tag and all(one.attributes.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]

    def words(self):
        """All text in it, spaces folded."""
        return " ".join(" ".join(one.text for one in self.walk()).split())


class _Builder(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"<{self.open[-1].tag}> is closed by </{tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(Element("#text", {}, data))


def parsed(page: str) -> Element:
    """Its elements; fails on tags that do not nest."""
    builder = _Builder()
    builder.feed(page)
    builder.close()
    assert builder.open == [builder.root], f"<{builder.open[-1].tag}> is never closed"
    return builder.root


def rows(page: Element, caption: str) -> list[list[str]]:
    """The body of the table with a caption, cell by cell."""
    (table,) = (one for one in page.all("table") if one.all("caption")[0].words() == caption)
    (body,) = table.all("tbody")
    return [[cell.words() for cell in row.children if cell.tag in ("th", "td")] for row in body.all("tr")]
