"""Pictures of a maze: `draw_maze` for the eyes, `maze_text` for the terminal."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, UInt8

from rl_notes.maze.rules import EAST, NORTH, OFFSETS, SOUTH, WEST, check_whole_number

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

Point = tuple[float, float]

FINER = 4  # drawn this many times larger, then averaged, for smooth edges
PAPER = (255, 255, 255)
FLOOR = (251, 246, 236)
TILE = (245, 238, 223)  # every other cell, so that steps can be counted
WALL = (52, 58, 74)
EXIT_FLOOR = (214, 236, 214)
FLAG = (34, 139, 84)
BODY = (39, 103, 181)
BODY_EDGE = (21, 62, 117)
NOSE = (240, 160, 42)
EYE = (255, 255, 255)
PUPIL = (24, 28, 38)


def maze_text(walls: Bool[np.ndarray, "size size 4"], state: int | None = None) -> str:
    """Draw the maze with +, - and |, the exit as E and the robot as one of ^ > v <."""
    size = len(walls)
    cells = np.full((size, size), " ")
    cells[-1, -1] = "E"
    if state is not None:
        row, column, heading = _place(state, size)
        cells[row, column] = "^>v<"[heading]
    lines = [_fence(walls[0, :, NORTH])]
    for row in range(size):
        sides = ["|" if wall else " " for wall in walls[row, :, EAST]]
        body = [f" {cell} {side}" for cell, side in zip(cells[row], sides, strict=True)]
        lines.append(("|" if walls[row, 0, WEST] else " ") + "".join(body))
        lines.append(_fence(walls[row, :, SOUTH]))
    return "\n".join(lines)


def draw_maze(
    walls: Bool[np.ndarray, "size size 4"], state: int | None = None, *, cell: int = 48
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the maze, the exit's flag and the robot, whose nose points where it looks.

    Args:
        walls: True where a cell has a wall to the north, east, south, west.
        state: Where the robot is and looks; None draws the maze without it.
        cell: The side of a cell in pixels.

    Returns:
        A square picture of `size * cell` pixels and a margin of a quarter of a cell.
    """
    from PIL import Image, ImageDraw

    check_whole_number("cell", cell, least=8)
    size = len(walls)
    unit = cell * FINER
    margin = cell // 4 * FINER
    side = size * unit + 2 * margin
    image = Image.new("RGB", (side, side), PAPER)
    pen = ImageDraw.Draw(image)
    for row, column in np.ndindex(size, size):
        colour = TILE if (row + column) % 2 else FLOOR
        left, top = margin + column * unit, margin + row * unit
        last = (row, column) == (size - 1, size - 1)
        pen.rectangle(
            (left, top, left + unit, top + unit), fill=EXIT_FLOOR if last else colour
        )
    # A robot at the exit looks east or south: beside it, the flag goes top left.
    beside = state is not None and state >= 4 * (size**2 - 1)
    middle = margin + (size - 0.5 - 0.22 * beside) * unit
    flag = unit // 2 if beside else unit
    _draw_flag(pen, _frame(middle, middle, flag, EAST), flag)
    for row, column, way in np.argwhere(walls).tolist():
        _draw_wall(pen, margin + column * unit, margin + row * unit, unit, way)
    if state is not None:
        row, column, heading = _place(state, size)
        x, y = margin + (column + 0.5) * unit, margin + (row + 0.5) * unit
        _draw_robot(pen, _frame(x, y, unit, heading), unit)
    return np.asarray(image.reduce(FINER))


def _place(state: int, size: int) -> tuple[int, int, int]:
    """Split a state into row, column and heading."""
    if not 0 <= state < 4 * size**2:
        raise ValueError(
            f"A maze of size {size} has states 0 to {4 * size**2 - 1}, not {state}."
        )
    return state // (4 * size), state // 4 % size, state % 4


def _fence(walls: Bool[np.ndarray, " size"]) -> str:
    return "+" + "+".join("---" if wall else "   " for wall in walls) + "+"


def _frame(x: float, y: float, unit: int, heading: int) -> Callable[..., Point]:
    """Return the map from (ahead, aside), in cells, to points of the picture."""
    down, right = OFFSETS[heading]

    def point(ahead: float | int, aside: float | int) -> Point:
        return (
            x + unit * (ahead * right - aside * down),
            y + unit * (ahead * down + aside * right),
        )

    return point


def _draw_wall(pen: "ImageDraw", left: int, top: int, unit: int, way: int) -> None:
    """Draw one side of a cell as a bar with round ends."""
    thick = 0.06 * unit
    right = left if way == WEST else left + unit
    bottom = top if way == NORTH else top + unit
    left, top = (right if way == EAST else left), (bottom if way == SOUTH else top)
    box = (left - thick, top - thick, right + thick, bottom + thick)
    pen.rounded_rectangle(box, radius=thick, fill=WALL)


def _draw_flag(pen: "ImageDraw", point: Callable[..., Point], unit: int) -> None:
    """Draw a flag on a pole with a foot."""
    pen.polygon([point(-0.14, -0.3), point(0.3, -0.14), point(-0.14, 0.02)], fill=FLAG)
    pen.line([point(-0.16, -0.32), point(-0.16, 0.3)], fill=WALL, width=unit // 16)
    pen.line([point(-0.28, 0.3), point(-0.04, 0.3)], fill=WALL, width=unit // 16)


def _draw_robot(pen: "ImageDraw", point: Callable[..., Point], unit: int) -> None:
    """Draw a round body with a nose and two eyes in front."""
    pen.polygon([point(0.12, -0.2), point(0.42, 0), point(0.12, 0.2)], fill=NOSE)
    edge = unit // 28
    pen.circle(point(0, 0), 0.27 * unit, fill=BODY, outline=BODY_EDGE, width=edge)
    for aside in (-0.11, 0.11):
        pen.circle(point(0.1, aside), 0.075 * unit, fill=EYE)
        pen.circle(point(0.13, aside), 0.04 * unit, fill=PUPIL)
