"""Changes of bytes and of values, drawn from a generator as `random.Random` is one."""

import copy
import json
import re

NUMBERS = (0, 1, 2, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
NESTED = "x"
for _ in range(100):
    NESTED = [NESTED]
VALUES = (
    None, True, False, 0, -1, 1, 3, 1 << 20, 1 << 31, 1 << 40, 1 << 63, 1 << 200, -0.0, 0.5, 1e308, -1e-320, "", "x",
    "0", "../..", "/etc/passwd", "a/b", "\0", "\x1b[2J", "é💥", "x" * 3000, [], {}, [[]], [0] * 9, {"x": {}}, NESTED,
)  # fmt: skip


def damaged(raw, generator):
    """Bytes flipped, cut off, overwritten, repeated, moved; numbers of a header's width replaced."""
    raw = bytearray(raw)
    for _ in range(generator.choice([1, 1, 2, 5, 50])):
        at = generator.randrange(len(raw) + 1)
        at = min(at, generator.randrange(200)) if generator.random() < 0.5 else at  # where headers are
        size = generator.choice([1, 2, 4, 8, 64])
        match generator.randrange(7):
            case 0 if at < len(raw):
                raw[at] ^= 1 << generator.randrange(8)
            case 1:
                del raw[at:]
            case 2:
                raw[at : at + size] = bytes(generator.randrange(256) for _ in range(size))
            case 3:
                raw[at : at + size] = generator.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * size
            case 4:
                raw[at:at] = raw[at : at + size]
            case 5:
                start = generator.randrange(len(raw) + 1)
                raw[at : at + size] = raw[start : start + size]
            case 6:
                width = min(size, 8)
                number = generator.choice(NUMBERS) % (1 << 8 * width)
                raw[at : at + width] = number.to_bytes(width, generator.choice(["little", "big"]))
    return bytes(raw)


def changed(values, generator):
    """Values as of JSON with some replaced, left out, repeated, renamed or exchanged; the argument is not kept."""
    for _ in range(generator.choice([1, 1, 1, 2, 4])):
        places = list(_places(values))
        if not places:
            return _odd(generator)
        holder, key = generator.choice(places)
        match generator.randrange(8):
            case 0 | 1 | 2:
                holder[key] = _odd(generator)
            case 3:
                del holder[key]
            case 4:
                other, place = generator.choice(places)
                holder[key] = json.loads(json.dumps(other[place])) if _is_there(other, place) else None
            case 5 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case 5 | 6 if isinstance(holder, dict):
                holder[generator.choice(["x", "", "../x", key.upper(), key + "_", "__class__"])] = holder.pop(key)
            case _:
                number = holder[key]
                if isinstance(number, int) and not isinstance(number, bool):
                    holder[key] = generator.choice([number + 1, number - 1, -number, number * 1000, float(number)])
                elif isinstance(number, str):
                    holder[key] = generator.choice([number * 2, number[:-1], number + "/..", number.upper()])
    return values


def written(values, generator):
    """JSON of values; seldom in a form that no writer gives."""
    text = json.dumps(values, indent=generator.choice([None, 1]))
    match generator.randrange(20):
        case 0:
            return re.sub(r"\b\d+\b", "1" * 5000, text, count=1)
        case 1:
            return text.replace("[", "[" * 3000, 1)
        case 2:
            return text.replace("{", '{"x": ' * 3000, 1)
        case 3:
            return re.sub(r"\b\d+\b", generator.choice(["NaN", "Infinity", "1e999", "-", "0x10"]), text, count=1)
        case 4:
            return text.replace('"', '"\\ud800', 1)
    return text


def _odd(generator):
    return copy.deepcopy(generator.choice(VALUES))  # it may be changed in its turn


def _places(values):
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in list(pairs):
        yield values, key
        yield from _places(value)


def _is_there(holder, key):
    return key in holder if isinstance(holder, dict) else key < len(holder)
