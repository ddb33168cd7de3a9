/* Explorer "clip": the objective of PPO at one step, against the ratio. */

"use strict";

(() => {
  const shared =
    typeof module === "undefined" ? globalThis.explorers : require("./explorers.js");
  const { element, fixed, line, number, scale, slider, svg, text } = shared;

  // Formulas: those of rl_notes.objectives.clipped_surrogate

  /** min(rho A, clip(rho, 1 - low, 1 + high) A) */
  function clippedSurrogate(ratio, advantage, low, high) {
    const near = Math.min(Math.max(ratio, 1 - low), 1 + high);
    return Math.min(ratio * advantage, near * advantage);
  }

  /** Whether the ratio is too far on the side that pays. The advantage is not 0. */
  function clipHolds(ratio, advantage, low, high) {
    return advantage > 0 ? ratio > 1 + high : ratio < 1 - low;
  }

  /** The derivative of the objective in rho; on the corner, on the side that pulls. */
  function gradient(ratio, advantage, low, high) {
    return clipHolds(ratio, advantage, low, high) ? 0 : advantage;
  }

  /** Move a ratio that is a bound but for rounding onto it: 0.3 is below 1 - 0.7. */
  function onBound(ratio, low, high) {
    const bound = [1 - low, 1 + high].find((one) => Math.abs(one - ratio) < 1e-9);
    return bound ?? ratio;
  }

  /** One sentence: does the clip hold here? No number, so that it changes seldom. */
  function verdict(ratio, advantage, low, high) {
    if (advantage === 0) {
      return "The advantage is zero: the step pulls nowhere, with the clip or without.";
    }
    const [good, way] = advantage > 0 ? ["good", "up"] : ["bad", "down"];
    if (clipHolds(ratio, advantage, low, high)) {
      return (
        `The clip holds: the ratio of this ${good} action has gone far enough, ` +
        "and the step no longer pulls."
      );
    }
    if (ratio === (advantage > 0 ? 1 + high : 1 - low)) {
      return (
        `On the corner: the step still pulls the ratio ${way}, ` +
        "and beyond it no longer."
      );
    }
    if (ratio < 1 - low || ratio > 1 + high) {
      const what =
        advantage > 0
          ? "a good action that has become rare"
          : "a bad action that has become frequent";
      return `The step still pulls the ratio ${way}: ${what} is never clipped.`;
    }
    return `The step still pulls the ratio ${way}: the clip has not been reached.`;
  }

  // Drawing

  const [WIDTH, HEIGHT] = [360, 350];
  const [LEFT, RIGHT, TOP, BOTTOM] = [30, 350, 20, 312];
  const x = scale([0, 2.5], [LEFT, RIGHT]);
  const y = scale([-5, 5], [BOTTOM, TOP]);

  function axes() {
    const across = [0, 0.5, 1, 1.5, 2, 2.5].map((ratio) =>
      text(x(ratio), BOTTOM + 15, fixed(ratio, 1), { "text-anchor": "middle" }),
    );
    const up = [-4, -2, 0, 2, 4].map((value) =>
      text(LEFT - 6, y(value) + 4, fixed(value, 0), { "text-anchor": "end" }),
    );
    const name = { "text-anchor": "middle", class: "explorer-axis" };
    return [
      line(LEFT, y(0), RIGHT, y(0), "explorer-zero"),
      line(LEFT, TOP, LEFT, BOTTOM, "explorer-zero"),
      ...across,
      ...up,
      text(0, 11, "objective", { class: "explorer-axis" }),
      text((LEFT + RIGHT) / 2, HEIGHT - 6, "ratio \u03c1", name),
    ];
  }

  /** The two bounds, named in the half that the curve leaves free. */
  function bounds(advantage, low, high) {
    const at = advantage < 0 ? TOP + 12 : BOTTOM - 6;
    const [below, above] = [x(1 - low), x(1 + high)];
    return [
      line(below, TOP, below, BOTTOM, "explorer-bound"),
      line(above, TOP, above, BOTTOM, "explorer-bound"),
      text(below - 4, at, "1\u2212\u03b5", { "text-anchor": "end" }),
      text(above + 4, at, "1+\u03b5"),
    ];
  }

  const points = (pairs) => pairs.map(([a, b]) => `${x(a)},${y(b)}`).join(" ");

  /** Where an ascent would move the ratio: an arrow beside the point, or none. */
  function arrow(at, height, way) {
    if (way === 0) return [];
    const [from, to, back] = [at + 9 * way, at + 34 * way, at + 27 * way];
    const shaft = `M${from} ${height} H${to}`;
    const head = `M${back} ${height - 5} L${to} ${height} L${back} ${height + 5}`;
    return [svg("path", { d: `${shaft} ${head}`, class: "explorer-arrow" })];
  }

  function curves(advantage, low, high, hatch) {
    const ends = [0, 1 - low, 1 + high, 2.5];
    const clipped = ends.map((r) => [r, clippedSurrogate(r, advantage, low, high)]);
    const plain = ends.map((r) => [r, r * advantage]);
    const between = points([...clipped, ...[...plain].reverse()]);
    return [
      svg("polygon", { points: between, fill: hatch.fill }),
      svg("polyline", { points: points(plain), class: "explorer-dashed" }),
      svg("polyline", { points: points(clipped), class: "explorer-curve" }),
    ];
  }

  function legend() {
    const sample = (name) =>
      svg(
        "svg",
        { viewBox: "0 0 28 10", "aria-hidden": "true" },
        line(0, 5, 28, 5, name),
      );
    return element(
      "p",
      { class: "explorer-legend" },
      element("span", {}, sample("explorer-curve"), "with the clip"),
      element("span", {}, sample("explorer-dashed"), "without: \u03c1A"),
    );
  }

  /** A slider for the distance of a bound from 1. */
  const distance = (name, label, value) =>
    slider({ name, label, min: 0.05, max: 0.8, step: 0.05, value, digits: 2 });

  /** The drawing in words. */
  function described({ advantage, low, high, ratio }, value, pull) {
    return (
      `The clipped objective against the ratio, for advantage ${fixed(advantage, 1)} ` +
      `and a clip from ${fixed(1 - low, 2)} to ${fixed(1 + high, 2)}. ` +
      `At ratio ${fixed(ratio, 2)} it is ${fixed(value, 3)}, ` +
      `and its gradient is ${fixed(pull, 3)}.`
    );
  }

  shared.define("clip", {
    title: "Move the ratio, and see where the clip holds",
    attributes: ["advantage", "clipLow", "clipHigh", "ratio"],

    controls: (data) => [
      slider({
        name: "advantage",
        label: "advantage A",
        min: -2,
        max: 2,
        step: 0.1,
        value: number(data.advantage, 1),
        digits: 1,
      }),
      distance("low", "clip below, \u03b5_low", number(data.clipLow, 0.2)),
      distance("high", "clip above, \u03b5_high", number(data.clipHigh, 0.2)),
      slider({
        name: "ratio",
        label: "ratio \u03c1",
        min: 0,
        max: 2.5,
        step: 0.05,
        value: number(data.ratio, 1.5),
        digits: 2,
      }),
    ],

    build(sliders) {
      const drawing = shared.picture(WIDTH, HEIGHT);
      const hatch = shared.hatching();
      const said = shared.sentence();
      const [objective, slope] = [element("dd"), element("dd")];
      const numbers = element(
        "dl",
        { class: "explorer-numbers" },
        element("dt", {}, "objective"),
        objective,
        element("dt", {}, "its gradient in \u03c1"),
        slope,
      );
      const figure = element("div", {}, drawing.node, legend());
      const side = element("div", {}, sliders, numbers, said.node);

      function render(values) {
        const { advantage, low, high } = values;
        const ratio = onBound(values.ratio, low, high);
        const value = clippedSurrogate(ratio, advantage, low, high);
        const pull = gradient(ratio, advantage, low, high);
        objective.textContent = fixed(value, 3, 6);
        slope.textContent = fixed(pull, 3, 6);
        said.say(verdict(ratio, advantage, low, high));
        drawing.draw(
          described(values, value, pull),
          hatch.defs,
          ...axes(),
          ...bounds(advantage, low, high),
          ...curves(advantage, low, high, hatch),
          ...arrow(x(ratio), y(value), Math.sign(pull)),
          svg("circle", { cx: x(ratio), cy: y(value), r: 6, class: "explorer-point" }),
        );
      }

      const both = element("div", { class: "explorer-grid" }, figure, side);
      return { parts: [both], render };
    },
  });

  if (typeof module !== "undefined") {
    module.exports = { clippedSurrogate, gradient, onBound, verdict };
  }
})();
