/* Explorer "robot": a table learns the way through the maze by REINFORCE.

   The loop of the chapter on the policy gradient, in the page. The engine is loaded on
   the first click: live/weights.js. Loaded after explorer_ask.js. */

"use strict";

(() => {
  const inNode = typeof module !== "undefined";
  const shared = inNode ? require("./explorers.js") : globalThis.explorers;
  if (inNode) require("./explorer_ask.js");
  const { element, fixed, line, scale, svg, text } = shared;
  const { enable, field, paced, seedFrom, NO_SEED } = shared.asking;
  const live = (globalThis.live ??= {});

  const [MAZE, SIZE] = ["5/0", 5];
  const [DISCOUNT, MOST] = [0.95, 100]; // and how many steps an episode may have
  const UPDATES = 100;
  const RATES = ["0.03", "0.1", "0.3", "1", "3"];

  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  /** A robot that learns: one episode from each start, one step, and so on. */
  class Learning {
    constructor({ rate, baseline, seed }) {
      const { engine, worlds } = live;
      this.maze = worlds.mazeTables(worlds.bookMaze(MAZE));
      const { states, isExit } = this.maze;
      this.starts = Array.from({ length: states }, (_, s) => s).filter((s) => !isExit(s));
      this.policy = new worlds.TablePolicy(states);
      this.optimizer = new engine.Adam({ rate });
      this.uniform = engine.uniforms(seed);
      this.follows = baseline; // or the baseline stays at 0
      this.baseline = new Float64Array(states);
      this.best = worlds.valueIteration(this.maze, { discount: DISCOUNT });
      this.updates = 0;
    }

    /** What is expected from each state on that counts, on average over the starts. */
    average(values) {
      return mean(this.starts.map((state) => values[state]));
    }

    /** The exact values of the policy. */
    values(probabilities = this.policy.probabilities()) {
      return live.worlds.policyEvaluation(this.maze, probabilities, DISCOUNT);
    }

    /** The returns of an episode. Where it was cut, the baseline stands for the rest. */
    returns({ rewards, state }) {
      const rest = this.maze.isExit(state) ? 0 : DISCOUNT * this.baseline[state];
      const whole = [...rewards.slice(0, -1), rewards.at(-1) + rest];
      return live.worlds.returnsToGo({ rewards: whole }, DISCOUNT);
    }

    update() {
      const { maze, policy, optimizer, starts, uniform, baseline } = this;
      const options = { most: MOST, uniform };
      const rows = live.worlds.playEpisodes(maze, policy, starts, options);
      const advantages = rows.map((row) =>
        this.returns(row).map((value, t) => value - baseline[row.states[t]]),
      );
      live.engine.reinforceUpdate(policy, optimizer, rows, advantages);
      if (this.follows) this.follow(rows, advantages);
      this.updates += 1;
    }

    /** Move each state's baseline halfway to the mean return seen there. */
    follow(rows, advantages) {
      const [errors, visits] = [0, 1].map(() => new Float64Array(this.baseline.length));
      rows.forEach(({ states }, n) => {
        states.forEach((state, t) => {
          errors[state] += advantages[n][t];
          visits[state] += 1;
        });
      });
      this.baseline = this.baseline.map(
        (value, state) => value + (0.5 * errors[state]) / Math.max(1, visits[state]),
      );
    }

    /** The most likely move in each state. */
    choices() {
      return Array.from({ length: this.maze.states }, (_, state) => {
        const logprobs = this.policy.logprobs(state);
        return logprobs.indexOf(Math.max(...logprobs));
      });
    }

    /** From how many starts the most likely way is a shortest one. */
    shortest() {
      const chosen = new Float64Array(3 * this.maze.states);
      this.choices().forEach((move, state) => (chosen[3 * state + move] = 1));
      const values = this.values(chosen);
      return this.starts.filter((s) => Math.abs(values[s] - this.best[s]) < 1e-6).length;
    }

    /** The states of the most likely way from the first start, to the exit or in a ring. */
    way() {
      const choices = this.choices();
      const found = [live.worlds.START];
      while (!this.maze.isExit(found.at(-1))) {
        const state = found.at(-1);
        const next = this.maze.next[3 * state + choices[state]];
        if (found.includes(next)) return { states: found, arrives: false };
        found.push(next);
      }
      return { states: found, arrives: true };
    }
  }

  // Drawing: the maze, with the values and the most likely way

  const CELL = 58;
  const EDGE = 4;
  const SIDES = [[0, 0, 1, 0], [1, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]; // north first
  const corner = (k) => EDGE + k * CELL;
  const middle = { "text-anchor": "middle" };

  function walls(maze) {
    return maze.walls.flatMap((wall, at) => {
      if (!wall) return [];
      const [cell, side] = [at >> 2, at & 3];
      const [row, column] = [Math.floor(cell / SIZE), cell % SIZE];
      const [x1, y1, x2, y2] = SIDES[side];
      const ends = [column + x1, row + y1, column + x2, row + y2].map(corner);
      return [line(...ends, "live-wall")];
    });
  }

  /** A cell with its mean value over the four headings, the darker the better. */
  function cells(values) {
    return Array.from({ length: SIZE * SIZE }, (_, cell) => {
      const [x, y] = [corner(cell % SIZE), corner(Math.floor(cell / SIZE))];
      const exit = cell === SIZE * SIZE - 1;
      const value = mean(values.slice(4 * cell, 4 * cell + 4));
      const shade = exit ? 0 : Math.max(0, Math.min(1, (value + 0.5) / 1.5));
      const box = { x, y, width: CELL, height: CELL, class: "live-cell" };
      const words = exit ? "exit" : fixed(value, 2);
      return svg(
        "g",
        {},
        svg("rect", { ...box, "fill-opacity": 0.45 * shade }),
        text(x + 5, y + CELL - 8, words),
      );
    });
  }

  /** The most likely way; dashed where it ends in a ring. */
  function path({ states, arrives }) {
    const points = states.map((state) => {
      const cell = state >> 2;
      // Above and to the right of the number in the cell.
      const [across, down] = [corner(cell % SIZE), corner(Math.floor(cell / SIZE))];
      return `${across + CELL - 13},${down + CELL / 2 - 9}`;
    });
    const name = arrives ? "live-way" : "explorer-dashed";
    const [x, y] = points[0].split(",");
    return [
      svg("polyline", { points: points.join(" "), class: name }),
      svg("circle", { cx: x, cy: y, r: 5, class: "live-dot" }),
    ];
  }

  const wayInWords = ({ states, arrives }) =>
    arrives
      ? `The most likely way reaches the exit in ${states.length - 1} moves.`
      : "The most likely way does not reach the exit: it turns in a ring or at a wall.";

  const [WIDTH, HEIGHT] = [340, 230];
  const [LEFT, RIGHT, TOP, BOTTOM] = [34, 326, 26, 192];
  const x = scale([0, UPDATES], [LEFT, RIGHT]);
  const y = scale([-0.6, 0.6], [BOTTOM, TOP]);

  function curve(values, name) {
    const points = values.map((value, n) => `${x(n)},${y(value)}`).join(" ");
    return svg("polyline", { points, class: name });
  }

  function chart(drawing, { values, best, earlier }) {
    const ends = { "text-anchor": "end" };
    const [first, last] = [values[0], values.at(-1)].map((value) => fixed(value, 2));
    drawing.draw(
      `Against updates, the exact value, a mean over the 96 starts: ${first} before the ` +
        `first, ${last} after ${values.length - 1}. The best there is: ${fixed(best, 2)}.` +
        (earlier.length > 0 ? " Dashed, the run before." : ""),
      text(0, 13, "exact value, mean over 96 starts", { class: "explorer-axis" }),
      line(LEFT, y(0), RIGHT, y(0), "explorer-zero"),
      line(LEFT, TOP, LEFT, BOTTOM, "explorer-zero"),
      ...[-0.5, 0, 0.5].map((v) => text(LEFT - 5, y(v) + 4, fixed(v, 1), ends)),
      ...[0, 25, 50, 75, 100].map((n) => text(x(n), BOTTOM + 15, String(n), middle)),
      text((LEFT + RIGHT) / 2, HEIGHT - 4, "updates of 96 episodes", middle),
      line(LEFT, y(best), RIGHT, y(best), "explorer-bound"),
      text(RIGHT, y(best) - 5, "the best there is", ends),
      ...(earlier.length > 0 ? [curve(earlier, "explorer-dashed")] : []),
      curve(values, "explorer-curve live-thin"),
    );
  }

  function table(points) {
    const heads = ["updates", "exact value", "starts on a shortest way"];
    const cell = (tag, words, scope) => element(tag, scope ? { scope } : {}, words);
    const rows = points
      .filter(({ updates }) => updates % 10 === 0)
      .map(({ updates, value, shortest }) =>
        element(
          "tr",
          {},
          cell("th", String(updates), "row"),
          cell("td", fixed(value, 2)),
          cell("td", `${shortest} of 96`),
        ),
      );
    return element(
      "table",
      { class: "explorer-table" },
      element("caption", {}, "Every tenth update"),
      element("thead", {}, element("tr", {}, ...heads.map((h) => cell("th", h, "col")))),
      element("tbody", {}, ...rows),
    );
  }

  const ABOUT =
    "In each update the robot starts once from each of the 96 states that are not the " +
    "exit, and takes one step of REINFORCE. The numbers in the cells are exact values of " +
    "its policy; it never sees them. Change one thing and train again: the last run is " +
    "then a dashed line.";

  let used = 0;

  /** The explorer on the page. */
  class Robot {
    constructor() {
      const id = `live-robot-${(used += 1)}`;
      const options = RATES.map((rate) => element("option", { value: rate }, rate));
      this.rate = element("select", { id: `${id}-rate` }, ...options);
      const rate = element("div", { class: "live-field" });
      rate.append(element("label", { for: `${id}-rate` }, "step size of Adam"), this.rate);
      this.baseline = element("select", { id: `${id}-baseline` });
      this.baseline.append(
        element("option", { value: "1" }, "mean return of the state"),
        element("option", { value: "" }, "none"),
      );
      const base = element("div", { class: "live-field" });
      base.append(element("label", { for: `${id}-baseline` }, "baseline"), this.baseline);
      const attributes = { type: "number", min: 1, max: 9999, step: 1, value: 1 };
      const seed = field(`${id}-seed`, "seed", attributes);
      this.seed = seed.input;
      const form = element("div", { class: "live-form" }, rate, base, seed.node);
      this.buttons = ["Train", "Step", "Pause"].map((name) =>
        element("button", { type: "button" }, name),
      );
      this.buttons[0].classList.add("live-go");
      this.progress = element("span", { class: "live-muted" });
      const row = element("div", { class: "live-buttons" }, ...this.buttons, this.progress);
      const spoken = { class: "live-status", "aria-live": "polite" };
      this.status = element("p", { ...spoken, tabindex: -1 });
      const side = 2 * EDGE + SIZE * CELL;
      this.maze = shared.picture(side, side);
      this.chart = shared.picture(WIDTH, HEIGHT);
      this.numbers = element("div");
      const details = element("details", { class: "live-details" });
      details.append(element("summary", {}, "The numbers, as a table"), this.numbers);
      this.results = element(
        "div",
        {},
        element(
          "div",
          { class: "explorer-grid" },
          element("div", {}, this.maze.node),
          element("div", {}, this.chart.node),
        ),
        details,
      );
      this.parts = [element("p", {}, ABOUT), form, row, this.status, this.results];
      const [train, step, pause] = this.buttons;
      train.addEventListener("click", () => this.train());
      step.addEventListener("click", () => this.step());
      pause.addEventListener("click", () => this.pause());
      const again = () => this.fresh();
      [this.rate, this.baseline, this.seed].forEach((one) =>
        one.addEventListener("change", again),
      );
      this.reset();
    }

    reset() {
      this.rate.value = "0.1";
      this.baseline.value = "1";
      this.seed.value = 1;
      this.seed.setAttribute("aria-invalid", "false");
      this.points = null;
      this.fresh();
    }

    /** Back to a robot that knows nothing; what the last one did stays, dashed. */
    fresh() {
      const done = this.points?.length > 1 ? this.points : null;
      this.earlier = done?.map(({ value }) => value) ?? this.earlier ?? [];
      if (this.points === null) this.earlier = [];
      this.turn = (this.turn ?? 0) + 1;
      [this.learning, this.points, this.going] = [null, [], false];
      this.status.textContent = "";
      this.progress.textContent = "";
      this.results.hidden = true;
      this.enable();
    }

    get over() {
      return this.learning?.updates === UPDATES;
    }

    enable() {
      const [train, step, pause] = this.buttons;
      const rules = [
        [train, this.going || this.over],
        [step, this.going || this.over],
        [pause, !this.going],
      ];
      enable(rules, [pause, train, this.status]);
    }

    /** Load what is needed, and make a robot where there is none. */
    async begin() {
      if (this.learning) return true;
      const { turn } = this;
      const seed = seedFrom(this.seed);
      if (seed === null) {
        this.going = false;
        this.status.textContent = NO_SEED;
        this.enable();
        return false;
      }
      try {
        await live.ready();
      } catch (fault) {
        this.going = false;
        this.status.textContent = fault.message;
        this.enable();
        return false;
      }
      if (turn !== this.turn) return false;
      const [rate, baseline] = [Number(this.rate.value), this.baseline.value === "1"];
      this.learning ??= new Learning({ rate, baseline, seed });
      if (this.points.length === 0) this.note();
      return true;
    }

    note() {
      const { learning } = this;
      const values = learning.values();
      const value = learning.average(values);
      const shortest = learning.shortest();
      this.points.push({ updates: learning.updates, value, shortest, values });
    }

    show() {
      const { learning, points } = this;
      const { values, shortest } = points.at(-1);
      const way = learning.way();
      this.results.hidden = false;
      this.maze.draw(
        `The maze with the exact value of each cell. ${wayInWords(way)}`,
        ...cells(values),
        ...walls(learning.maze),
        ...path(way),
      );
      const best = learning.average(learning.best);
      const curveOf = points.map(({ value }) => value);
      chart(this.chart, { values: curveOf, best, earlier: this.earlier });
      this.numbers.replaceChildren(table(points));
      this.progress.textContent =
        `update ${learning.updates} of ${UPDATES}, ` +
        `from ${shortest} of 96 starts on a shortest way`;
    }

    /** One update and what it changed; whether the run goes on. */
    update() {
      const { learning } = this;
      learning.update();
      this.note();
      this.show();
      if (!this.over) return this.going;
      this.going = false;
      const { value, shortest } = this.points.at(-1);
      const best = fixed(learning.average(learning.best), 2);
      this.status.textContent =
        `Done. The policy is worth ${fixed(value, 2)}, and the best there is ${best}. ` +
        `From ${shortest} of 96 starts its most likely way is a shortest one. ` +
        wayInWords(learning.way());
      this.enable();
      return false;
    }

    async train() {
      this.going = true;
      const loop = (this.loop = (this.loop ?? 0) + 1); // only the newest goes on
      this.status.textContent = "";
      this.enable();
      if (!(await this.begin())) return;
      const { turn } = this;
      const mine = () => turn === this.turn && loop === this.loop;
      paced(() => mine() && this.going && this.update());
    }

    async step() {
      if ((await this.begin()) && !this.going && !this.over) {
        this.status.textContent = "";
        this.update();
      }
      this.enable();
    }

    pause() {
      this.going = false;
      this.status.textContent = "Paused.";
      this.enable();
    }
  }

  shared.define("robot", {
    title: "Let the robot learn, and wreck it with a step too large",
    attributes: [],
    controls: () => [],
    build() {
      const robot = new Robot();
      return { parts: robot.parts, render: () => {}, reset: () => robot.reset() };
    },
  });

  if (inNode) module.exports = { Learning, wayInWords };
})();
