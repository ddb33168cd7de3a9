"""Figures: functions that take arrays and an Axes, draw, and return the Axes.

Colours are from Okabe and Ito's palette, which survives colour blindness, and no
meaning hangs on colour alone: curves differ in their dashes, actions in their arrows.
`show` puts a figure into a notebook together with its alternative text.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy import ndarray
from PIL import Image

BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#56B4E9",
    "#222222",
)
STYLE: dict[str, Any] = {
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PURPLE])
    + cycler(linestyle=["-", "--", "-.", ":"]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": BLACK,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "figure.figsize": (6.2, 3.4),
    "font.size": 12,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}
ROWS_COLUMNS = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # north, east, south, west
FORWARD, LEFT, RIGHT = 0, 1, 2
GLYPHS = {FORWARD: "\u2191", LEFT: "\u21b0", RIGHT: "\u21b1"}


def show(figure: Figure, alt: str, *, width: float | int = 640) -> None:
    """Display a figure in a notebook with its alternative text, and close it.

    Args:
        figure: What to show.
        alt: What the figure says, for someone who cannot see it.
        width: Width on the page in CSS pixels.
    """
    show_image(_pixels(figure), alt, width=width, colours=128)


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file, and close it."""
    path.write_bytes(_png(_pixels(figure), colours=128))


def show_image(
    pixels: ndarray, alt: str, *, width: float | int = 320, colours: int = 256
) -> None:
    """Display an image, [H, W, 3] of uint8, with its alternative text."""
    _display("image/png", _png(pixels, colours), alt, width)


def show_animation(
    frames: Sequence[ndarray],
    alt: str,
    *,
    milliseconds: int = 300,
    width: float | int = 320,
) -> None:
    """Display frames (each [H, W, 3], uint8) as a GIF with its alternative text."""
    if len(frames) == 0:
        raise ValueError("An animation needs at least one frame.")
    images = [
        Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE)
        for frame in frames
    ]
    buffer = io.BytesIO()
    # The last frame stays a while, so that the eye can tell the end from the start.
    durations = [milliseconds] * (len(images) - 1) + [5 * milliseconds]
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
    )
    _display("image/gif", buffer.getvalue(), alt, width)


def plot_maze(
    walls: Bool[ndarray, "size size 4"],
    ax: Axes,
    *,
    path: Int[ndarray, " steps"] | None = None,
) -> Axes:
    """Draw the walls, the start, the exit, and the cells of a path of states."""
    size = len(walls)
    segments = []
    for row, column, heading in np.argwhere(walls):
        ahead = ROWS_COLUMNS[heading] / 2
        along = ahead[::-1]
        middle = np.array([row, column]) + ahead
        segments.append([(middle - along)[::-1], (middle + along)[::-1]])
    # A white edge keeps the walls visible on dark colours.
    for colour, width in (("white", 4.4), (BLACK, 2.2)):
        lines = LineCollection(
            segments, colors=colour, linewidths=width, capstyle="round", zorder=4
        )
        ax.add_collection(lines)
    if path is not None:
        cells = np.asarray(path) // 4
        ax.plot(cells % size, cells // size, "-", color=SKY, linewidth=6, alpha=0.7)
    last = size - 1
    ax.text(last, last, "exit", ha="center", va="center", fontweight="bold", zorder=5)
    ax.set(xlim=(-0.6, last + 0.6), ylim=(last + 0.6, -0.6), aspect="equal")
    ax.axis("off")
    return ax


def plot_values(
    values: Float[ndarray, " states"],
    walls: Bool[ndarray, "size size 4"],
    ax: Axes,
    *,
    limits: tuple[float | int, float | int] | None = None,
    label: str = "value",
) -> Axes:
    """Heat map of one number per state: a cell is cut into its four headings.

    The triangle at the top of a cell is the robot in that cell looking north.
    """
    size = len(walls)
    values = np.asarray(values)
    if values.shape != (4 * size * size,):
        raise ValueError(
            f"values has shape {values.shape}, but this maze has {4 * size * size} "
            "states."
        )
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])  # x, y
    triangles, shown = [], []
    for state in range(4 * size * size - 4):
        centre = np.array([state // 4 % size, state // 4 // size])
        heading = state % 4
        ends = corners[[heading, (heading + 1) % 4]]
        triangles.append(np.vstack([centre + ends, centre]))
        shown.append(values[state])
    low, high = limits or (min(shown), max(shown))
    heat = PolyCollection(
        triangles, cmap="cividis", norm=Normalize(low, high), edgecolors="face"
    )
    heat.set_array(np.array(shown))
    ax.add_collection(heat)
    bar = ax.figure.colorbar(heat, ax=ax, shrink=0.8, label=label)
    bar.outline.set_visible(False)
    return plot_maze(walls, ax)


def plot_policy(
    probabilities: Float[ndarray, "states 3"],
    walls: Bool[ndarray, "size size 4"],
    ax: Axes,
) -> Axes:
    """The most likely action of every state, as an arrow in the heading's triangle.

    A straight arrow goes forward, a hooked one turns. The arrow is the stronger, the
    more likely the action; a dot stands where no action is clearly ahead.
    """
    size = len(walls)
    probabilities = np.asarray(probabilities)
    for state in range(4 * size * size - 4):
        row, column, heading = state // 4 // size, state // 4 % size, state % 4
        down, across = ROWS_COLUMNS[heading] * 0.29
        action = int(probabilities[state].argmax())
        likely = float(probabilities[state, action])
        ax.text(
            column + across,
            row + down,
            GLYPHS[action] if likely > 0.45 else "\u00b7",
            rotation=-90 * heading,
            color=BLUE if action == FORWARD else ORANGE,
            alpha=min(1.0, 0.25 + 0.75 * likely),
            fontsize=max(7, 80 / size),
            ha="center",
            va="center",
            zorder=3,
        )
    return plot_maze(walls, ax)


def plot_curves(
    curves: Mapping[str, Float[ndarray, "seeds updates"]],
    ax: Axes,
    *,
    xlabel: str,
    ylabel: str,
) -> Axes:
    """One curve per name: the median over seeds, and a band from worst to best."""
    for name, seeds in curves.items():
        seeds = np.atleast_2d(seeds)
        updates = np.arange(seeds.shape[1])
        (line,) = ax.plot(updates, np.median(seeds, axis=0), label=name)
        ax.fill_between(
            updates,
            seeds.min(axis=0),
            seeds.max(axis=0),
            color=line.get_color(),
            alpha=0.18,
            linewidth=0,
        )
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        ax.legend()
    return ax


def plot_diagram(
    boxes: Mapping[str, tuple[float | int, float | int, str]],
    arrows: Mapping[tuple[str, str], str],
    ax: Axes,
    *,
    bold: Sequence[str] = (),
) -> Axes:
    """Diagram of boxes and arrows: a graph, a loop, a backup diagram.

    Args:
        boxes: By name, where the middle of each box is, x and y, and its text.
        arrows: By the names of the boxes that it joins, the label of each arrow.
            Two arrows between the same boxes bend away from each other.
        ax: Where to draw. It gets a margin of 1 around the middles of the boxes.
        bold: The names of the boxes with a thick edge.
    """
    places = {name: (x, y) for name, (x, y, _) in boxes.items()}
    drawn = {}
    for name, (x, y, text) in boxes.items():
        edge = {"edgecolor": BLACK, "linewidth": 2.5 if name in bold else 1.0}
        style = {"boxstyle": "round,pad=0.5", "facecolor": "white", **edge}
        drawn[name] = ax.text(x, y, text, ha="center", va="center", bbox=style)
    xs, ys = np.array(list(places.values())).T
    ax.set(xlim=(xs.min() - 1, xs.max() + 1), ylim=(ys.min() - 1, ys.max() + 1))
    ax.axis("off")
    for (start, end), label in arrows.items():
        bend = 0.25 if (end, start) in arrows else 0.0
        style = {
            "arrowstyle": "-|>",
            "color": BLACK,
            "linewidth": 1.5,
            "mutation_scale": 16,
            "connectionstyle": f"arc3,rad={bend}",
            "patchA": drawn[start].get_bbox_patch(),
            "patchB": drawn[end].get_bbox_patch(),
        }
        arrow = ax.annotate("", places[end], places[start], arrowprops=style)
        arrow.set_zorder(4)  # after the boxes, since it ends where they are drawn
        if label:
            _label(ax, label, places[start], places[end], bend)
    return ax


def _label(
    ax: Axes,
    text: str,
    start: tuple[float | int, float | int],
    end: tuple[float | int, float | int],
    bend: float,
) -> None:
    """Write on the middle of an arrow, on the arc that matplotlib draws for a bend."""
    to_pixels = ax.transData
    (x0, y0), (x1, y1) = to_pixels.transform([start, end])
    middle = (x0 + x1) / 2 + bend / 2 * (y1 - y0), (y0 + y1) / 2 - bend / 2 * (x1 - x0)
    x, y = to_pixels.inverted().transform(middle)
    ground = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    ax.text(x, y, text, ha="center", va="center", zorder=5, bbox=ground)


def _pixels(figure: Figure) -> ndarray:
    """Draw a figure and close it: [H, W, 3] of uint8 on a white ground."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    plt.close(figure)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def _png(pixels: ndarray, colours: int) -> bytes:
    """Encode with a palette: a third of the bytes, and notebooks live in git."""
    image = Image.fromarray(pixels).quantize(colours, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _display(mime: str, data: bytes, alt: str, width: float | int) -> None:
    """Hand data to the notebook; the alternative text is also its plain text."""
    from IPython.display import display

    if not alt.strip():
        raise ValueError("Say in alt what the figure shows: some cannot see it.")
    display(  # type: ignore[no-untyped-call]
        {mime: data, "text/plain": alt},
        raw=True,
        metadata={mime: {"alt": alt, "width": width}},
    )
