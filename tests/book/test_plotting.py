import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation
from PIL import Image

from rl_notes import plotting
from rl_notes.maze.rules import perfect_maze

WALLS = perfect_maze(3, 0)
STATES = 36
NORTH, EAST, SOUTH, WEST = range(4)


@pytest.fixture
def ax():
    with plt.style.context(plotting.STYLE):
        figure, ax = plt.subplots()
        yield ax
        plt.close(figure)


@pytest.fixture
def shown(monkeypatch):
    """What would have been handed to the notebook: (data, metadata) of each display."""
    published = []

    def display(data, *, raw, metadata):
        assert raw
        published.append((data, metadata))

    monkeypatch.setattr("IPython.display.display", display)
    return published


def of_kind(ax, kind):
    return [artist for artist in ax.get_children() if isinstance(artist, kind)]


def segments(ax):
    """The walls that are drawn on top, each as a set of two points (x, y)."""
    lines = of_kind(ax, LineCollection)[-1]
    return {frozenset(map(tuple, ends)) for ends in lines.get_segments()}


def texts(ax):
    return [text for text in ax.texts if text.get_text() != "exit"]


def place(text):
    x, y = text.get_position()
    return round(x, 6), round(y, 6)


# The maze


def test_every_wall_is_drawn_where_it_stands(ax):
    assert plotting.plot_maze(WALLS, ax) is ax
    expected = set()
    for row, column, way in np.argwhere(WALLS).tolist():
        top, bottom = row - 0.5, row + 0.5
        left, right = column - 0.5, column + 0.5
        ends = {
            NORTH: [(left, top), (right, top)],
            EAST: [(right, top), (right, bottom)],
            SOUTH: [(left, bottom), (right, bottom)],
            WEST: [(left, top), (left, bottom)],
        }
        expected.add(frozenset(ends[way]))
    assert segments(ax) == expected
    assert all(
        len(c.get_segments()) == WALLS.sum() for c in of_kind(ax, LineCollection)
    )
    # Rows go down the page.
    bottom, top = ax.get_ylim()
    assert bottom > 2
    assert top < 0


def test_the_exit_is_named_at_the_bottom_right(ax):
    plotting.plot_maze(WALLS, ax)
    (label,) = ax.texts
    assert (label.get_text(), label.get_position()) == ("exit", (2, 2))


def test_a_path_passes_through_its_cells(ax):
    # East, one cell on, then down: states are 4 * cell + heading.
    path = np.array([4 * 0 + EAST, 4 * 1 + EAST, 4 * 1 + SOUTH, 4 * 4 + SOUTH])
    plotting.plot_maze(WALLS, ax, path=path)
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[0, 0], [1, 0], [1, 0], [1, 1]]


# Values


def test_each_triangle_shows_the_value_of_its_state(ax):
    values = np.random.default_rng(0).normal(size=STATES)
    assert plotting.plot_values(values, WALLS, ax) is ax
    (heat,) = [p for p in of_kind(ax, PolyCollection) if p.get_array() is not None]
    np.testing.assert_array_equal(heat.get_array(), values[:-4])
    assert (heat.norm.vmin, heat.norm.vmax) == (values[:-4].min(), values[:-4].max())
    offsets = {NORTH: (0, -1), EAST: (1, 0), SOUTH: (0, 1), WEST: (-1, 0)}
    for state, path in enumerate(heat.get_paths()):
        middle = path.vertices[:3].mean(axis=0)
        cell = np.array([state // 4 % 3, state // 4 // 3])
        np.testing.assert_allclose(middle, cell + np.array(offsets[state % 4]) / 3)
    assert len(segments(ax)) > 0


def test_the_scale_can_be_set_and_named(ax):
    plotting.plot_values(np.zeros(STATES), WALLS, ax, limits=(-1, 2), label="visits")
    (heat,) = [p for p in of_kind(ax, PolyCollection) if p.get_array() is not None]
    assert (heat.norm.vmin, heat.norm.vmax) == (-1, 2)
    assert ax.figure.axes[-1].get_ylabel() == "visits"


@pytest.mark.parametrize("states", [35, 40, 9])
def test_values_of_another_maze_are_refused(ax, states):
    with pytest.raises(ValueError, match="this maze has 36 states"):
        plotting.plot_values(np.zeros(states), WALLS, ax)


# Policies


def test_each_state_shows_its_most_likely_action(ax):
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 3, STATES)
    likely = rng.uniform(0.5, 1, STATES)
    chances = np.repeat((1 - likely)[:, None] / 2, 3, axis=1)
    chances[np.arange(STATES), actions] = likely
    assert plotting.plot_policy(chances, WALLS, ax) is ax
    drawn = texts(ax)
    assert len(drawn) == STATES - 4  # nothing is done at the exit
    offsets = {NORTH: (0, -0.29), EAST: (0.29, 0), SOUTH: (0, 0.29), WEST: (-0.29, 0)}
    for state, text in enumerate(drawn):
        assert text.get_text() == "↑↰↱"[actions[state]]
        # "Forward" points up, turned the way the robot looks: clockwise is negative.
        heading = state % 4
        assert text.get_rotation() % 360 == -90 * heading % 360
        right, down = offsets[heading]
        x, y = state // 4 % 3 + right, state // 4 // 3 + down
        assert place(text) == pytest.approx((x, y))
        forward = actions[state] == plotting.FORWARD
        assert text.get_color() == (plotting.BLUE if forward else plotting.ORANGE)
    strength = [text.get_alpha() for text in drawn]
    assert np.argsort(strength).tolist() == np.argsort(likely[:-4]).tolist()


def test_a_dot_stands_where_no_action_is_ahead(ax):
    plotting.plot_policy(np.full((STATES, 3), 1 / 3), WALLS, ax)
    assert {text.get_text() for text in texts(ax)} == {"·"}


# Curves


def test_a_curve_is_the_median_in_a_band_from_worst_to_best(ax):
    curves = {
        "table": np.array([[0.0, 1.0, 2.0], [3.0, 3.0, 3.0], [1.0, 9.0, 2.5]]),
        "network": np.array([5.0, 6.0, 7.0]),
    }
    plotting.plot_curves(curves, ax, xlabel="updates", ylabel="value")
    table, network = ax.lines
    assert table.get_xydata().tolist() == [[0, 1], [1, 3], [2, 2.5]]
    assert network.get_ydata().tolist() == [5, 6, 7]
    (band, _) = ax.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert corners == {(0, 0), (1, 1), (2, 2), (0, 3), (1, 9), (2, 3)}
    np.testing.assert_allclose(band.get_facecolor()[0, :3], to_rgb(table.get_color()))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("updates", "value")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["table", "network"]
    # Told apart without colour.
    assert table.get_linestyle() != network.get_linestyle()


def test_a_single_curve_needs_no_legend(ax):
    plotting.plot_curves({"one": np.zeros((2, 3))}, ax, xlabel="", ylabel="")
    assert ax.get_legend() is None


# Showing


def opened(data, kind):
    return Image.open(io.BytesIO(data[kind]))


def test_a_diagram_joins_its_boxes_by_labelled_arrows(ax):
    boxes = {"agent": (0, 0, "the agent"), "world": (4, 0, "the world")}
    arrows = {("agent", "world"): "action", ("world", "agent"): "reward"}
    assert plotting.plot_diagram(boxes, arrows, ax, bold=["agent"]) is ax
    ax.figure.draw_without_rendering()
    texts = {text.get_text(): text for text in ax.texts if text.get_text()}
    assert set(texts) == {"the agent", "the world", "action", "reward"}
    extent = {name: text.get_window_extent() for name, text in texts.items()}
    assert extent["action"].y1 < extent["the agent"].y0  # each arrow has its own side
    assert extent["reward"].y0 > extent["the agent"].y1
    thick, thin = (texts[f"the {name}"].get_bbox_patch() for name in boxes)
    assert thick.get_linewidth() > thin.get_linewidth()
    heads = of_kind(ax, Annotation)
    assert [(*head.xyann, *head.xy) for head in heads] == [(0, 0, 4, 0), (4, 0, 0, 0)]


def test_a_figure_is_shown_with_its_alternative_text_and_closed(shown):
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.axis("off")
    axes.axhspan(0, 1, color="#0072B2")
    plotting.show(figure, "A blue box.", width=300)
    ((data, metadata),) = shown
    assert data["text/plain"] == "A blue box."
    assert metadata == {"image/png": {"alt": "A blue box.", "width": 300}}
    image = opened(data, "image/png").convert("RGB")
    assert image.size == (288, 144)
    assert image.getpixel((144, 72)) == (0, 0x72, 0xB2)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert figure.number not in plt.get_fignums()


def test_an_image_is_shown_pixel_by_pixel(shown):
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[1, 2], pixels[3, 5] = (255, 0, 0), (0, 0, 255)
    plotting.show_image(pixels, "Two dots.")
    ((data, metadata),) = shown
    np.testing.assert_array_equal(opened(data, "image/png").convert("RGB"), pixels)
    assert metadata == {"image/png": {"alt": "Two dots.", "width": 320}}


def test_an_animation_has_its_frames_and_rests_on_the_last(shown):
    frames = [np.full((8, 8, 3), shade, dtype=np.uint8) for shade in (0, 90, 180, 255)]
    plotting.show_animation(frames, "It becomes light.", milliseconds=100)
    ((data, metadata),) = shown
    assert metadata == {"image/gif": {"alt": "It becomes light.", "width": 320}}
    with opened(data, "image/gif") as image:
        assert image.n_frames == 4
        assert image.info["loop"] == 0  # for ever
        for frame, (shade, duration) in enumerate(
            [(0, 100), (90, 100), (180, 100), (255, 500)]
        ):
            image.seek(frame)
            assert image.info["duration"] == duration
            assert image.convert("RGB").getpixel((4, 4)) == (shade,) * 3


def test_a_robot_that_stands_still_takes_its_time(shown):
    # Equal frames may become one that stays longer.
    frame = np.zeros((8, 8, 3), dtype=np.uint8)
    plotting.show_animation([frame, frame, frame + 9], "A pause.", milliseconds=100)
    ((data, _),) = shown
    with opened(data, "image/gif") as image:
        total = 0
        for number in range(image.n_frames):
            image.seek(number)
            total += image.info["duration"]
    assert total == 100 + 100 + 500


def test_a_film_without_a_frame_is_refused(shown):
    with pytest.raises(ValueError, match="at least one frame"):
        plotting.show_animation([], "Nothing.")
    assert shown == []


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_what_has_no_alternative_text_is_not_shown(shown, alt):
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    for show in (
        lambda: plotting.show(plt.figure(), alt),
        lambda: plotting.show_image(pixels, alt),
        lambda: plotting.show_animation([pixels], alt),
    ):
        with pytest.raises(ValueError, match="Say in alt what the figure shows"):
            show()
    assert shown == []


def test_a_figure_can_be_saved(tmp_path):
    figure, _ = plt.subplots(figsize=(2, 1))
    plotting.save(figure, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert (image.format, image.size) == ("PNG", (288, 144))
    assert figure.number not in plt.get_fignums()


# Colours


def luminance(colour):
    """Relative luminance as WCAG defines it."""
    shades = np.array(to_rgb(colour))
    linear = np.where(
        shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4
    )
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["BLUE", "ORANGE", "GREEN", "PURPLE", "BLACK"])
def test_lines_and_letters_stand_out_from_paper(name):
    # WCAG asks for 3:1 where colour carries a graphic.
    assert contrast(getattr(plotting, name), "white") >= 3


def test_curves_differ_without_any_colour():
    cycle = list(plotting.STYLE["axes.prop_cycle"])
    assert len({item["linestyle"] for item in cycle}) == len(cycle) == 4
    assert len({item["color"] for item in cycle}) == 4


def test_a_wall_stands_out_from_every_fill():
    for value in np.linspace(0, 1, 21):
        colour = plt.get_cmap("cividis")(value)[:3]
        edge = max(contrast(plotting.BLACK, colour), contrast("white", colour))
        assert edge >= 3
    for colour in (plotting.BLUE, plotting.SKY, "white"):
        assert contrast(plotting.BLACK, colour) > 3
