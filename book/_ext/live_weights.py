"""Write weights and stored runs as scripts, for the live parts of the pages.

A page opened as a file may fetch no data, but it may load a script. So the build writes
one for each language model, in half precision: of 500 greedy answers of "sft" and of
"grpo" that changes none. The book builds without torch and without numpy, so
Python's own `struct` reads and writes them.
"""

import base64
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "rl_notes" / "language" / "checkpoints"
MODELS = ("base", "sft", "grpo")
RUNS = ROOT / "rl_notes" / "results" / "thinking.json"
UPDATES = 24  # of the stored runs that a page shows
MEASURED = ("work", "right", "length")


class Weights(NamedTuple):
    """All weights of a model, one tensor after the other in the order of their names.

    Attributes:
        layout: Name and shape of each tensor.
        numbers: Their numbers.
    """

    layout: list[tuple[str, list[int]]]
    numbers: tuple[float, ...]


def read_safetensors(path: Path) -> Weights:
    """The weights of a file in float32.

    A file is eight bytes that say how long its header is, the header in JSON, and the
    numbers, little-endian.
    """
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    header.pop("__metadata__", None)
    layout, numbers = [], b""
    for name, entry in sorted(header.items()):
        if entry["dtype"] != "F32":
            raise ValueError(f"{path.name}: {name} is {entry['dtype']}, not F32.")
        first, last = entry["data_offsets"]
        layout.append((name, entry["shape"]))
        numbers += data[start + first : start + last]
    return Weights(layout, struct.unpack(f"<{len(numbers) // 4}f", numbers))


def as_script(name: str, weights: Weights) -> str:
    """The script that brings a model's weights to the page: see live/weights.js."""
    half = struct.pack(f"<{len(weights.numbers)}e", *weights.numbers)
    packed = {"layout": weights.layout, "half": base64.b64encode(half).decode("ascii")}
    return f"live.arrived({json.dumps(name)}, {json.dumps(packed)});\n"


def write_weights(folder: Path) -> None:
    """One script for each model, in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        weights = read_safetensors(CHECKPOINTS / f"{name}.safetensors")
        script = folder / f"weights_{name}.js"
        script.write_text(as_script(name, weights), encoding="ascii")


def stored_bands(path: Path) -> dict[str, list[list[float]]]:
    """What each measure was in the stored runs of GRPO, at each of the first updates.

    Returns the smallest and the largest value of all seeds.
    """
    runs = json.loads(path.read_text(encoding="utf-8"))["grpo"]
    found = {}
    for key in MEASURED:
        steps = zip(*(run["updates"][:UPDATES] for run in runs), strict=True)
        values = [[update[key] for update in step] for step in steps]
        found[key] = [[min(one), max(one)] for one in values]
    return found


def write_runs(folder: Path) -> None:
    """The script that brings the stored runs of the chapter "thinking"."""
    text = f'live.arrived("runs_thinking", {json.dumps(stored_bands(RUNS))});\n'
    (folder / "runs_thinking.js").write_text(text, encoding="ascii")


def after_build(app: Sphinx, exception: Exception | None) -> None:
    """Beside the scripts that load them, in the built pages."""
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir, "_static", "live")
        write_weights(folder)
        write_runs(folder)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("build-finished", after_build)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
