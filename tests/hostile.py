"""Names and paths that a stranger may put into a file, by what is wrong with them."""

NAMES = {
    "upwards": "../../x",
    "parent": "..",
    "itself": ".",
    "absolute": "/tmp/x",
    "roundabout": "a/../../b",
    "below": "a/b",
    "windows": "..\\x",
    "drive": "c:x",
    "NUL": "a\0b",
    "newline": "a\nsplitter: all well",
    "escape": "a\x1b]0;owned\x07",
    "C1 control": "a\x9b2J",
    "bidi": "a\u202evaw.b",
    "invisible": "a\u2066b\ufeff",
    "line separator": "a\u2028b",
    "surrogate": "a\udce9",
    "device": "CON",
    "device with a suffix": "nul.txt",
    "serial port": "Com1",
    "trailing dot": "a.",
    "trailing space": "a ",
    "hidden file": ".separated",
    "wildcard": "a*",
    "empty": "",
    "very long": "x" * 5000,
    "long in bytes": "歌" * 100,
}

PATHS = {kind: f"graph/{name}" for kind, name in NAMES.items() if kind != "below"} | {
    "absolute": "/tmp/x",
    "root": "/",
    "double": "graph//x",
    "trailing": "graph/",
    "home": "./graph",
    "upwards at once": "../x",
}
