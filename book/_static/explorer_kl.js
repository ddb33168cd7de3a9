/* Explorer "kl": three estimates of KL(p || q) from one token that p sampled. */

"use strict";

(() => {
  const shared =
    typeof module === "undefined" ? globalThis.explorers : require("./explorers.js");
  const { bar, element, fixed, line, numbers, scale, slider, svg, text } = shared;

  // Formulas: those of rl_notes.divergences. p and q come as log-probabilities.

  const sum = (values) => values.reduce((total, value) => total + value, 0);

  /** log softmax */
  function logProbabilities(logits) {
    const top = Math.max(...logits);
    const total = Math.log(sum(logits.map((z) => Math.exp(z - top))));
    return logits.map((z) => z - top - total);
  }

  /** The log-ratio r = log p(a) - log q(a) of each token. */
  const logRatios = (logp, logq) => logp.map((value, a) => value - logq[a]);

  /** The expectation under p of one number per token. */
  const mean = (values, logp) =>
    sum(values.map((value, a) => Math.exp(logp[a]) * value));

  /** The standard deviation of that number, for one sample of p. */
  function deviation(values, logp) {
    const middle = mean(values, logp);
    const squares = values.map((value) => (value - middle) ** 2);
    return Math.sqrt(mean(squares, logp));
  }

  /** KL(p || q), in nats */
  const kl = (logp, logq) => mean(logRatios(logp, logq), logp);

  /** Each estimate and its derivative, as functions of the log-ratio. */
  const ESTIMATES = {
    k1: { value: (r) => r, slope: () => 1 },
    k2: { value: (r) => r ** 2 / 2, slope: (r) => r },
    k3: { value: (r) => Math.expm1(-r) + r, slope: (r) => -Math.expm1(-r) },
  };

  /** What an estimate does in a loss: E_a[ d k(r_a) / d logits of p ], a sampled by p.

      d r_a / d z_b = 1[a = b] - p_b, and so component b is p_b (slope_b - E[slope]). */
  function gradientInLoss({ slope }, logp, logq) {
    const slopes = logRatios(logp, logq).map(slope);
    const middle = mean(slopes, logp);
    return slopes.map((one, b) => Math.exp(logp[b]) * (one - middle));
  }

  /** The gradient of KL(p || q) over the logits of p: p (r - KL). */
  function gradientOfPq(logp, logq) {
    const whole = kl(logp, logq);
    return logRatios(logp, logq).map((r, b) => Math.exp(logp[b]) * (r - whole));
  }

  /** The gradient of KL(q || p) over the logits of p: p - q. */
  function gradientOfQp(logp, logq) {
    return logp.map((value, b) => Math.exp(value) - Math.exp(logq[b]));
  }

  /** All numbers of the explorer at one setting. */
  function study(logitsP, logitsQ) {
    const [logp, logq] = [logProbabilities(logitsP), logProbabilities(logitsQ)];
    const ratios = logRatios(logp, logq);
    const estimates = Object.entries(ESTIMATES).map(([name, estimate]) => {
      const values = ratios.map(estimate.value);
      return {
        name,
        mean: mean(values, logp),
        deviation: deviation(values, logp),
        gradient: gradientInLoss(estimate, logp, logq),
      };
    });
    return {
      p: logp.map(Math.exp),
      q: logq.map(Math.exp),
      pq: { kl: kl(logp, logq), gradient: gradientOfPq(logp, logq) },
      qp: { kl: kl(logq, logp), gradient: gradientOfQp(logp, logq) },
      estimates,
    };
  }

  /** What the means and spreads say, in words that change seldom. */
  function verdict({ p, q, pq, estimates: [k1, k2, k3] }) {
    if (p.every((value, a) => Math.abs(value - q[a]) < 1e-9)) {
      return "p and q are equal: every number is zero, and nothing pulls.";
    }
    const size = k2.mean > pq.kl ? "large" : "small";
    const steady = k3.deviation < k1.deviation ? "less" : "more";
    return (
      `On average k1 and k3 are right, and k2 is too ${size}. ` +
      `Here k3 varies ${steady} than k1.`
    );
  }

  // Drawing

  const TOKENS = ["2", "3", "0", "end"];
  const P = [0.5, 0, 2, -1];
  const Q = [2, 0.5, 0.5, -1];
  const WIDTH = 360;

  /** Which gradient each estimate has in a loss, in the mean. */
  const IN_LOSS = { k1: "zero", k2: "\u2207KL(p\u2016q)", k3: "\u2207KL(q\u2016p)" };

  const quoted = (token) => `\u201c${token}\u201d`;
  const solid = { class: "explorer-solid" };
  const hatched = (hatch) => ({ class: "explorer-hatched", fill: hatch.fill });

  /** A legend with a filled and a hatched square. */
  function legend(first, second) {
    const hatch = shared.hatching();
    const about = { viewBox: "0 0 16 12", "aria-hidden": "true" };
    const sample = (attributes, ...defs) =>
      svg("svg", about, ...defs, bar(1, 14, 11, 1, attributes));
    return element(
      "p",
      { class: "explorer-legend" },
      element("span", {}, sample(solid), first),
      element("span", {}, sample(hatched(hatch), hatch.defs), second),
    );
  }

  /** The two distributions: for each token a bar of p, and a hatched one of q. */
  function distributions(tokens, { p, q }, hatch) {
    const [base, top, step, wide] = [150, 22, WIDTH / tokens.length, 34];
    const y = scale([0, 1], [base, top]);
    const middle = { "text-anchor": "middle" };
    return tokens.flatMap((token, a) => {
      const at = (a + 0.5) * step;
      return [
        bar(at - wide - 2, wide, base, y(p[a]), solid),
        bar(at + 2, wide, base, y(q[a]), hatched(hatch)),
        text(at - wide / 2 - 2, y(p[a]) - 5, fixed(p[a], 2), middle),
        text(at + wide / 2 + 2, y(q[a]) - 5, fixed(q[a], 2), middle),
        text(at, base + 16, quoted(token), { ...middle, class: "explorer-axis" }),
      ];
    });
  }

  /** The smallest of a few heights that holds all bars: it seldom changes. */
  function reach(vectors) {
    const highest = Math.max(...vectors.flat().map(Math.abs));
    const heights = [0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5];
    return heights.find((height) => highest <= height) ?? 2;
  }

  /** One panel: an exact gradient, and beside each bar the estimate's, hatched. */
  function panel({ left, title, exact, found, tokens, y, hatch }) {
    const [width, step] = [96, 96 / tokens.length];
    const middle = { "text-anchor": "middle" };
    const heading = title.map((part, i) =>
      text(left + width / 2, 13 + 15 * i, part, { ...middle, class: "explorer-axis" }),
    );
    const bars = tokens.flatMap((token, b) => {
      const at = left + (b + 0.5) * step;
      return [
        bar(at - 10, 9, y(0), y(exact.gradient[b]), solid),
        bar(at + 1, 9, y(0), y(found.gradient[b]), hatched(hatch)),
        text(at, 178, token, middle),
      ];
    });
    return [...heading, line(left, y(0), left + width, y(0), "explorer-zero"), ...bars];
  }

  function gradients(tokens, { pq, qp, estimates: [k1, k2, k3] }, hatch) {
    const high = reach([pq.gradient, qp.gradient]);
    const y = scale([-high, high], [162, 40]);
    const panels = [
      { title: ["k1: zero, unlike", IN_LOSS.k2], exact: pq, found: k1 },
      { title: ["k2: equal to", IN_LOSS.k2], exact: pq, found: k2 },
      { title: ["k3: equal to", IN_LOSS.k3], exact: qp, found: k3 },
    ];
    const ticks = [high, -high].map((value) =>
      text(38, y(value) + 4, fixed(value, 2), { "text-anchor": "end" }),
    );
    return [
      ...panels.flatMap((one, i) =>
        panel({ ...one, left: 46 + 108 * i, tokens, y, hatch }),
      ),
      ...ticks,
    ];
  }

  // Tables

  const number = (x) => fixed(x, 3, 6);

  function row(head, cells, tag = "td") {
    const first = head ? element("th", { scope: "row" }, head) : element("td");
    const about = tag === "th" ? { scope: "col" } : {};
    return element("tr", {}, first, ...cells.map((cell) => element(tag, about, cell)));
  }

  /** A table whose rows are written anew at each change. */
  function table(head, caption) {
    const body = element("tbody");
    const node = element(
      "table",
      { class: "explorer-table" },
      element("caption", {}, caption),
      element("thead", {}, row("", head, "th")),
      body,
    );
    return { node, write: (rows) => body.replaceChildren(...rows) };
  }

  function valueRows({ pq, qp, estimates }) {
    const exact = (one) => [number(one.kl), "exact", ""];
    return [
      row("KL(p\u2016q)", exact(pq)),
      ...estimates.map((one) =>
        row(one.name, [number(one.mean), number(one.deviation), IN_LOSS[one.name]]),
      ),
      row("KL(q\u2016p)", exact(qp)),
    ];
  }

  function gradientRows({ pq, qp, estimates: [k1, k2, k3] }) {
    const pairs = [
      ["k1", k1],
      ["KL(p\u2016q)", pq],
      ["k2", k2],
      ["KL(q\u2016p)", qp],
      ["k3", k3],
    ];
    return pairs.map(([name, one]) => row(name, one.gradient.map(number)));
  }

  // In words, for those who do not see the drawings

  function heights(tokens, { p, q }) {
    const each = tokens.map(
      (token, a) => `${token} ${fixed(p[a], 2)} and ${fixed(q[a], 2)}`,
    );
    return `Probability of each token under p and under q: ${each.join(", ")}.`;
  }

  const SLOPES =
    "Mean gradients in a loss over the logits of p: " +
    `k1 zero, k2 equal to ${IN_LOSS.k2}, k3 equal to ${IN_LOSS.k3}. ` +
    "The table of gradients holds the numbers.";

  shared.define("kl", {
    title: "Move p and q, and see what k1, k2 and k3 make of it",
    attributes: ["tokens", "p", "q"],

    controls(data) {
      const tokens = shared.words(data.tokens, TOKENS);
      const logits = { p: numbers(data.p, P), q: numbers(data.q, Q) };
      const groups = { p: "logits of p", q: "logits of q" };
      return ["p", "q"].flatMap((which) =>
        tokens.map((token, a) =>
          slider({
            name: `${which}${a}`,
            label: quoted(token),
            group: groups[which],
            min: -3,
            max: 3,
            step: 0.1,
            value: logits[which][a],
            digits: 1,
          }),
        ),
      );
    },

    build(sliders, data) {
      const tokens = shared.words(data.tokens, TOKENS);
      const [bars, slopes] = [shared.picture(WIDTH, 172), shared.picture(WIDTH, 184)];
      const [barHatch, slopeHatch] = [shared.hatching(), shared.hatching()];
      const said = shared.sentence();
      const values = table(
        ["mean", "std of one sample", "gradient in a loss"],
        "Estimates of KL(p\u2016q), in nats",
      );
      const title = "Mean gradients over the logits of p";
      const vectors = table(tokens.map(quoted), title);
      const caption = element("p", { class: "explorer-caption" }, title);
      const pair = legend("exact", "of the estimate, in a loss");
      const blocks = [
        element("div", {}, bars.node, legend("p, the policy", "q, the reference")),
        sliders,
        values.node,
        element("div", {}, caption, slopes.node, pair),
      ];
      const summary = element("summary", {}, "The gradients as numbers");
      const folded = element("details", {}, summary, vectors.node);

      function render(settings) {
        const logits = (which) => tokens.map((_, a) => settings[`${which}${a}`]);
        const found = study(logits("p"), logits("q"));
        bars.draw(
          heights(tokens, found),
          barHatch.defs,
          ...distributions(tokens, found, barHatch),
        );
        slopes.draw(SLOPES, slopeHatch.defs, ...gradients(tokens, found, slopeHatch));
        values.write(valueRows(found));
        vectors.write(gradientRows(found));
        said.say(verdict(found));
      }

      const grid = element("div", { class: "explorer-grid" }, ...blocks);
      return { parts: [grid, said.node, folded], render };
    },
  });

  if (typeof module !== "undefined") {
    module.exports = { study, verdict, IN_LOSS };
  }
})();
