"""Damage, drawn at random: to bytes, to JSON, to files of a folder."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What stands where something else is expected. Text: Python's own JSON would not write all of it.
ODD_JSON = (
    *("null", "true", "-1", "0", "1.5", "1e400", "NaN", "9" * 400, "9" * 5000),
    *('""', '"\\u0000"', '"' + "x" * 9999 + '"', "[]", "{}", "[null]", '{"": 1}', "[1", "\ufeff1"),
    *("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000),
)
_MARK = "\0odd"


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """``data`` with something changed: bits, a part removed, doubled, zeroed or drawn; or nothing left."""
    if not data:
        return rng.randbytes(rng.randint(1, 64))
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([1, 1, 4, 64, 4096]))
    head, part, tail = data[:start], data[start:end], data[end:]
    flipped = bytes([part[0] ^ (1 << rng.randrange(8))]) + part[1:]
    middles = (flipped, flipped, b"", part * 2, bytes(len(part)), rng.randbytes(len(part)))
    return rng.choice([*(head + middle + tail for middle in middles), head, b""])


def damaged_json(rng: random.Random, text: str) -> str:
    """JSON with one value, at any depth, exchanged for an odd one or for another of the same text, or removed."""
    content = json.loads(text)
    places: list[tuple[Any, Any]] = []
    pending = [content]
    while pending:
        node = pending.pop()
        inside = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        places += [(node, key) for key, _ in inside]
        pending += [value for _, value in inside if isinstance(value, (dict, list))]
    if not places:
        return rng.choice(ODD_JSON)
    node, key = rng.choice(places)
    kind = rng.choice(["odd", "odd", "remove", "other"])
    if kind == "remove":
        del node[key]
    elif kind == "other":
        other, at = rng.choice(places)
        node[key] = json.loads(json.dumps(other[at]))
    else:
        node[key] = _MARK
    return json.dumps(content).replace(json.dumps(_MARK), rng.choice(ODD_JSON))


def _to_content(rng: random.Random, file: Path) -> None:
    data = file.read_bytes()
    try:
        lines = data.decode().splitlines()
        number = rng.randrange(len(lines))
        lines[number] = damaged_json(rng, lines[number] if file.suffix != ".json" or len(lines) > 1 else data.decode())
        changed = "\n".join(lines).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):  # no JSON, as a whole or by lines, or a deep one
        changed = damaged_bytes(rng, data)
    file.unlink()  # another process may have mapped it
    file.write_bytes(changed)


def _to_bytes(rng: random.Random, file: Path) -> None:
    changed = damaged_bytes(rng, file.read_bytes())
    file.unlink()
    file.write_bytes(changed)


def _to_folder(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def _to_link(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to(rng.choice([file, Path("/dev/zero"), file.with_name("gone"), file.parent]))


def _to_pipe(rng: random.Random, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _to_nothing(rng: random.Random, file: Path) -> None:
    file.unlink()


_ANY: tuple[Callable[[random.Random, Path], None], ...] = (_to_content, _to_content, _to_content, _to_bytes, _to_bytes)
_ANY += (_to_folder, _to_link, _to_pipe, _to_nothing)


def damage_folder(rng: random.Random, folder: Path) -> str:
    """Damage one file below ``folder``, or exchange two or copy one over the other; says what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    file = rng.choice(files)
    like = [other for other in files if other.suffix == file.suffix and other != file]
    if like and rng.random() < 0.2:
        other = rng.choice(like)
        data = other.read_bytes()
        other.unlink()
        other.write_bytes(file.read_bytes())
        if rng.random() < 0.5:
            file.unlink()
            file.write_bytes(data)
        return f"{file.name} over {other.name}"
    how = rng.choice(_ANY)
    how(rng, file)
    return f"{file.relative_to(folder)} {how.__name__.removeprefix('_')}"
