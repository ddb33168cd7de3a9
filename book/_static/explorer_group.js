/* Explorer "group": the rewards of a group of answers, and their advantages. */

"use strict";

(() => {
  const shared =
    typeof module === "undefined" ? globalThis.explorers : require("./explorers.js");
  const { bar, element, fixed, line, number, scale, slider, text } = shared;

  // Formulas: those of rl_notes.advantages.group_relative

  const EPSILON = 1e-4;
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const mean = (values) => sum(values) / values.length;

  /** The standard deviation, with Bessel's correction: divided by G - 1. */
  function deviation(rewards) {
    const middle = mean(rewards);
    const squares = rewards.map((reward) => (reward - middle) ** 2);
    return Math.sqrt(sum(squares) / (rewards.length - 1));
  }

  /** Whether the rewards differ by more than rounding. */
  function hasSpread(rewards) {
    const size = Math.max(1, ...rewards.map(Math.abs));
    return Math.max(...rewards) - Math.min(...rewards) > 1e-6 * size;
  }

  /** (r - mean) / (std + epsilon); exactly 0 in a group without spread. */
  function groupAdvantages(rewards) {
    if (!hasSpread(rewards)) return rewards.map(() => 0);
    const [middle, spread] = [mean(rewards), deviation(rewards)];
    return rewards.map((reward) => (reward - middle) / (spread + EPSILON));
  }

  /** One sentence: what the group teaches. No number, so that it changes seldom. */
  function verdict(rewards) {
    if (!hasSpread(rewards)) {
      return (
        "All rewards are equal: no answer is better than another, " +
        "and the group teaches nothing."
      );
    }
    if (rewards.length === 2) {
      return (
        "A group of two: the better answer goes up and the other down, " +
        "about as hard whatever lies between them."
      );
    }
    const signs = groupAdvantages(rewards).map((a) => (Math.abs(a) < 1e-9 ? 0 : a));
    const good = signs.filter((a) => a > 0).length;
    const bad = signs.filter((a) => a < 0).length;
    if (good === 1 && bad > 1) {
      return "One answer is above the mean: it is driven up harder than any goes down.";
    }
    if (bad === 1 && good > 1) {
      return "One answer is below the mean: it is driven down harder than any goes up.";
    }
    return "Answers above the mean are driven up, those below it down.";
  }

  /** Numbers that were typed, with commas or spaces between them; null if unusable. */
  function parsed(typed) {
    const words = typed.split(/[\s,;]+/).filter((word) => word !== "");
    const rewards = words.map(Number);
    const enough = rewards.length >= 2 && rewards.length <= MOST;
    return enough && rewards.every(Number.isFinite) ? rewards : null;
  }

  // Drawing

  const MOST = 8;
  const REWARDS = ["1", "0", "0", "1", "0", "0", "0", "0"];
  const [WIDTH, HEIGHT, LEFT] = [360, 318, 28];
  const [HIGH, LOW] = [30, 112]; // a reward of 1, and of 0
  const height = scale([0, 1], [LOW, HIGH]);
  const depth = scale([-2.5, 2.5], [284, 172]);
  const middle = { "text-anchor": "middle" };
  const solid = { class: "explorer-solid" };

  function axes() {
    const ends = { "text-anchor": "end" };
    const named = { class: "explorer-axis" };
    return [
      text(0, 13, "reward, and the mean of the group", named),
      text(0, 150, "advantage", named),
      line(LEFT, LOW, WIDTH, LOW, "explorer-zero"),
      line(LEFT, depth(0), WIDTH, depth(0), "explorer-zero"),
      text(LEFT - 5, LOW + 4, "0", ends),
      text(LEFT - 5, HIGH + 4, "1", ends),
      ...[-2, 0, 2].map((a) => text(LEFT - 5, depth(a) + 4, fixed(a, 0), ends)),
    ];
  }

  /** For each answer its reward, hatched, and below it its advantage. */
  function columns(rewards, advantages, hatch) {
    const step = (WIDTH - LEFT) / rewards.length;
    const wide = Math.min(30, step - 8);
    const reward = { class: "explorer-hatched", fill: hatch.fill };
    return rewards.flatMap((one, i) => {
      const at = LEFT + (i + 0.5) * step;
      const tip = depth(advantages[i]);
      const above = advantages[i] < 0 ? 13 : -5;
      return [
        bar(at - wide / 2, wide, LOW, height(one), reward),
        text(at, LOW + 15, fixed(one, 2), middle),
        bar(at - wide / 2, wide, depth(0), tip, solid),
        text(at, tip + above, fixed(advantages[i], 2), middle),
      ];
    });
  }

  const list = (values) => values.map((value) => fixed(value, 2)).join(", ");

  /** The drawing in words. */
  function described(rewards, advantages) {
    return (
      `Rewards of ${rewards.length} answers: ${list(rewards)}. ` +
      `Their mean is ${fixed(mean(rewards), 2)}. Advantages: ${list(advantages)}.`
    );
  }

  const score = (index, value) =>
    slider({
      name: `r${index}`,
      label: `answer ${index}`,
      group: "rewards",
      min: 0,
      max: 1,
      step: 0.01,
      value: Number(value),
      digits: 2,
    });

  /** A line of text for the rewards; what is typed moves the sliders. */
  function typedRewards(inputs) {
    const input = element("input", { type: "text", autocomplete: "off" });
    const node = element(
      "label",
      { class: "explorer-typed" },
      "rewards from 0 to 1, to type: ",
      input,
    );
    const show = (rewards) => {
      input.value = rewards.map(String).join(" ");
      input.setAttribute("aria-invalid", "false");
    };
    input.addEventListener("change", () => {
      const rewards = parsed(input.value);
      input.setAttribute("aria-invalid", String(rewards === null));
      if (rewards === null) return;
      const values = [rewards.length, ...rewards];
      values.forEach((value, i) => (inputs[i].value = value));
      inputs.forEach((one) => one.dispatchEvent(new Event("input")));
    });
    return { node, show };
  }

  shared.define("group", {
    title: "Set the rewards of a group, and see the advantages",
    attributes: ["size", "rewards"],

    controls: (data) => [
      slider({
        name: "size",
        label: "answers in the group, G",
        min: 2,
        max: MOST,
        step: 1,
        value: number(data.size, MOST),
        digits: 0,
      }),
      ...shared
        .words(data.rewards, REWARDS)
        .map((value, index) => score(index + 1, value)),
    ],

    build(sliders) {
      const drawing = shared.picture(WIDTH, HEIGHT);
      const hatch = shared.hatching();
      const said = shared.sentence();
      const [baseline, spread] = [element("dd"), element("dd")];
      const numbers = element(
        "dl",
        { class: "explorer-numbers" },
        element("dt", {}, "mean, the baseline"),
        baseline,
        element("dt", {}, "standard deviation"),
        spread,
      );
      const typed = typedRewards([...sliders.querySelectorAll("input")]);
      const rows = [...sliders.querySelectorAll(".explorer-control")].slice(1);
      const figure = element("div", {}, drawing.node, numbers, typed.node);
      const side = element("div", {}, sliders, said.node);

      function render({ size, ...values }) {
        const rewards = Object.values(values).slice(0, size);
        const advantages = groupAdvantages(rewards);
        rows.forEach((row, i) => {
          row.style.display = i < size ? "" : "none";
        });
        baseline.textContent = fixed(mean(rewards), 3, 6);
        spread.textContent = fixed(deviation(rewards), 3, 6);
        typed.show(rewards);
        said.say(verdict(rewards));
        const at = height(mean(rewards));
        drawing.draw(
          described(rewards, advantages),
          hatch.defs,
          ...axes(),
          ...columns(rewards, advantages, hatch),
          line(LEFT, at, WIDTH, at, "explorer-bound"),
        );
      }

      const both = element("div", { class: "explorer-grid" }, figure, side);
      return { parts: [both], render };
    },
  });

  if (typeof module !== "undefined") {
    module.exports = { groupAdvantages, hasSpread, parsed, verdict };
  }
})();
