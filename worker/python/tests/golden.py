"""The golden frames and the tables of WIRE.md."""

import pathlib
import re
from typing import Dict, List, Tuple

PROTOCOL = pathlib.Path(__file__).resolve().parents[3] / "protocol"


def frames() -> Dict[str, bytes]:
    """The frames of golden/frames.txt by name."""
    found: Dict[str, bytes] = {}
    name = ""
    for line in (PROTOCOL / "tests/golden/frames.txt").read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            name = line[1:-1]
            found[name] = b""
        else:
            found[name or "comment"] = found.get(name or "comment", b"") + bytes.fromhex(line)
    return found


def tables() -> Dict[str, List[Tuple[str, str]]]:
    """The first two columns of the tables under each heading of WIRE.md."""
    found: Dict[str, List[Tuple[str, str]]] = {}
    heading = ""
    for line in (PROTOCOL / "WIRE.md").read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        row = re.match(r"\| ([^|]+) \| ([^|]+) \|", line)
        if row and not line.startswith("|---") and row[1] not in ("field", "tag"):
            found.setdefault(heading, []).append((row[1].strip("`"), row[2].strip("`")))
    return found
