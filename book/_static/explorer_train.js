/* Explorer "train": a fine-tuned model goes on by GRPO in the page.

   What it needs is loaded on the first click: live/weights.js. The run lives in a worker:
   live/training.js. Loaded after explorer_ask.js, with which the model is asked. */

"use strict";

(() => {
  const inNode = typeof module !== "undefined";
  const shared = inNode ? require("./explorers.js") : globalThis.explorers;
  if (inNode) require("./explorer_ask.js");
  const { element, fixed, line, scale, svg, text } = shared;
  const live = (globalThis.live ??= {});
  const { questionFrom, REFUSED, seedFrom, NO_SEED, TITLES } = shared.asking;
  const { desk, enable, field } = shared.asking;

  const FROM = 2; // digits that a number of a training question has at least
  const EXAM = 400; // held-out questions, before and after

  // Each is named for what came of it in runs with the seeds 1 to 5 or 6.
  const RECIPES = [
    {
      ...{ name: "24 \u00d7 8, 2e-4: it turns to its work" },
      ...{ questions: 24, answers: 8, rate: 2e-4, updates: 12 },
    },
    {
      ...{ name: "8 \u00d7 8, 3e-4: quicker, worse at sums" },
      ...{ questions: 8, answers: 8, rate: 3e-4, updates: 12 },
    },
    {
      ...{ name: "24 \u00d7 8, 1e-3: forgets how to add" },
      ...{ questions: 24, answers: 8, rate: 1e-3, updates: 8 },
    },
  ];

  const RECIPE = "recipe: questions \u00d7 answers, learning rate";

  // The curves

  const [WIDTH, HEIGHT] = [340, 174];
  const [LEFT, RIGHT, TOP, BOTTOM] = [30, 332, 26, 140];
  const CURVES = [
    { key: "work", title: "answers that show work", top: 1, digits: 2 },
    { key: "right", title: "right answers", top: 1, digits: 2 },
    { key: "length", title: "tokens in an answer", top: 40, digits: 0 },
    { key: "think", title: "probability of <think> at your sum", top: 1, digits: 2 },
  ];

  /** Where a value lies; what is above the drawing stays at its top. */
  function heights(top) {
    const y = scale([0, top], [BOTTOM, TOP]);
    return (value) => y(Math.min(value, top));
  }

  function axes(title, top, digits, x, updates) {
    const y = heights(top);
    const ends = { "text-anchor": "end" };
    const middle = { "text-anchor": "middle" };
    const across = Array.from({ length: updates / 4 + 1 }, (_, i) => 4 * i);
    return [
      text(0, 13, title, { class: "explorer-axis" }),
      line(LEFT, BOTTOM, RIGHT, BOTTOM, "explorer-zero"),
      line(LEFT, TOP, LEFT, BOTTOM, "explorer-zero"),
      ...[0, top / 2, top].map((value) =>
        text(LEFT - 5, y(value) + 4, fixed(value, digits === 0 ? 0 : 1), ends),
      ),
      ...across.map((n) => text(x(n), BOTTOM + 15, String(n), middle)),
      text((LEFT + RIGHT) / 2, HEIGHT - 4, "updates", middle),
    ];
  }

  /** The band of the stored runs, from the smallest to the largest. */
  function band(ranges, x, y) {
    const low = ranges.map(([least], n) => `${x(n)},${y(least)}`);
    const high = ranges.map(([, most], n) => `${x(n)},${y(most)}`);
    const points = [...low, ...high.reverse()].join(" ");
    return svg("polygon", { points, class: "live-band" });
  }

  /** What one curve shows, in words. */
  function described({ title, digits }, values, ranges) {
    if (values.length === 0) return `An empty drawing for: ${title}.`;
    const [first, last] = [values[0], values.at(-1)].map((x) => fixed(x, digits));
    const n = values.length - 1;
    const said = `Against updates, ${title}: ${first} before the first`;
    const end = n > 0 ? `, ${last} after ${n}` : "";
    const beside = ranges?.[n];
    if (!beside) return `${said}${end}.`;
    const [low, high] = beside.map((x) => fixed(x, digits));
    return `${said}${end}. In the five stored runs there: ${low} to ${high}.`;
  }

  function draw({ drawing, curve }, values, ranges, updates) {
    const x = scale([0, updates], [LEFT, RIGHT]);
    const y = heights(curve.top);
    const points = values.map((value, n) => [x(n), y(value)]);
    drawing.draw(
      described(curve, values, ranges),
      ...axes(curve.title, curve.top, curve.digits, x, updates),
      ...(ranges ? [band(ranges.slice(0, updates + 1), x, y)] : []),
      svg("polyline", { points: points.join(" "), class: "explorer-curve live-thin" }),
      ...points.map(([cx, cy]) => svg("circle", { cx, cy, r: 3, class: "live-dot" })),
    );
  }

  // Tables

  /** A table with a caption, heads and rows of cells, the first of each a head. */
  function table(name, caption, heads, rows) {
    const columns = heads.map((head) => element("th", { scope: "col" }, head));
    const lines = rows.map(([first, ...rest]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, first),
        ...rest.map((cell) => element("td", {}, ...[cell].flat())),
      ),
    );
    return element(
      "table",
      { class: `explorer-table ${name}` },
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...columns)),
      element("tbody", {}, ...lines),
    );
  }

  function numbersOf(run) {
    const rows = run.points.map((point, n) => [
      String(n),
      ...CURVES.map(({ key, digits }) => {
        if (point[key] === undefined) return "";
        const range = run.bands[key]?.[n];
        const beside = range?.map((x) => fixed(x, digits)).join("\u2013");
        const value = fixed(point[key], digits);
        return range ? [value, element("span", {}, beside)] : value;
      }),
    ]);
    const heads = ["updates", "work", "right", "length", "P(\u200b<think>)"];
    const caption = "Below each number, smaller, the range of the five stored runs.";
    return table("live-numbers", caption, heads, rows);
  }

  function groupOf({ question, answers }, after) {
    const caption =
      `Eight answers to \u201c${question}\u201d in update ${after}, what the rule paid ` +
      "for each, and its advantage in the group";
    const rows = answers.map(({ text: said, reward, advantage }) => [
      element("code", {}, said.replace(/\n/g, "\u21b5")),
      String(reward),
      fixed(advantage, 2),
    ]);
    return table("live-group", caption, ["answer", "reward", "advantage"], rows);
  }

  /** What came of a run, in words. */
  function outcome(before, after, updates) {
    const pair = (key) => `${fixed(before[key], 2)} to ${fixed(after[key], 2)}`;
    return (
      `Done. On ${after.n} held-out sums of one to four digits, before and after ` +
      `${updates} updates: ` +
      `with work ${pair("work")}, right ${pair("right")}.`
    );
  }

  const ABOUT =
    "The fine-tuned model, sft, goes on learning here, in your browser: it answers sums, " +
    "and a rule says which answers are right. Nothing else is paid for. A run takes from " +
    "a few seconds to a minute. With the first recipe the work rises fast in that time, " +
    "and the share of right answers little or not at all; with the others it falls. " +
    "grpo, the model of the book, got further by going on: 1,280 updates, the last of " +
    "them with 48 questions \u00d7 32 answers.";

  const BESIDE =
    "The band is the range of the chapter\u2019s five stored runs, which are larger: 64 " +
    "questions \u00d7 8 answers, learning rate 1e-4, two epochs. In the first three " +
    "drawings each dot is what the model did on new questions before it was trained on " +
    "them. Yours have two to four digits, those of the stored runs one to four, so yours " +
    "are harder and longer. The fourth is your sum, on which it is never trained.";

  const LOADING = "Loading the model, and asking it for the first time \u2026";

  /** Promise that the page is seen. */
  function seen() {
    if (!document.hidden) return Promise.resolve();
    return new Promise((resolve) => {
      document.addEventListener("visibilitychange", () => resolve(), { once: true });
    });
  }

  let used = 0;

  function fields(data) {
    const id = `live-train-${(used += 1)}`;
    const sum = field(`${id}-sum`, "your sum", { type: "text", size: 9, value: data.sum });
    const attributes = { type: "number", min: 1, max: 9999, step: 1, value: 1 };
    const seed = field(`${id}-seed`, "seed", attributes);
    const options = RECIPES.map(({ name }, i) => element("option", { value: i }, name));
    const select = element("select", { id: `${id}-recipe` }, ...options);
    const recipe = element("div", { class: "live-field live-wide" });
    recipe.append(element("label", { for: `${id}-recipe` }, RECIPE), select);
    const row = [sum.node, seed.node, recipe];
    const node = element("div", { class: "live-form" }, ...row);
    return { node, sum: sum.input, seed: seed.input, recipe: select };
  }

  function buttons(names) {
    const found = names.map((name) => element("button", { type: "button" }, name));
    found[0].classList.add("live-go");
    return { node: element("div", { class: "live-buttons" }, ...found), found };
  }

  /** The whole explorer: what it shows, and what the buttons do. */
  class Training {
    constructor(data) {
      this.sum = data.sum ?? "2468+1384";
      this.form = fields({ sum: this.sum });
      const { node, found } = buttons(["Train", "Step", "Pause"]);
      this.controls = node;
      [this.trainButton, this.stepButton, this.pauseButton] = found;
      this.progress = element("span", { class: "live-muted" });
      node.append(this.progress);
      const spoken = { class: "live-status", "aria-live": "polite" };
      this.status = element("p", { ...spoken, tabindex: -1 });
      this.charts = CURVES.map((curve) => {
        return { curve, drawing: shared.picture(WIDTH, HEIGHT) };
      });
      this.numbers = element("div");
      this.group = element("div");
      this.asking = element("div", { class: "live-asking" });
      const nodes = this.charts.map(({ drawing }) => drawing.node);
      const details = element("details", { class: "live-details" });
      details.append(element("summary", {}, "The numbers, as a table"), this.numbers);
      this.results = element("div", {});
      this.results.append(
        element("div", { class: "live-charts" }, ...nodes),
        element("p", { class: "live-muted" }, BESIDE),
        ...[details, this.group, this.asking],
      );
      const about = element("p", {}, ABOUT);
      this.parts = [about, this.form.node, node, this.status, this.results];
      this.trainButton.addEventListener("click", () => this.train());
      this.stepButton.addEventListener("click", () => this.step());
      this.pauseButton.addEventListener("click", () => this.pause());
      this.reset();
    }

    reset() {
      this.run?.home?.end();
      this.run = null;
      this.turn = (this.turn ?? 0) + 1; // what is still under way is of no more interest
      [this.going, this.busy, this.single] = [false, false, false];
      [this.form.sum.value, this.form.seed.value, this.form.recipe.value] = [
        ...[this.sum, 1, 0],
      ];
      [this.form.sum, this.form.seed].forEach((one) =>
        one.setAttribute("aria-invalid", "false"),
      );
      [this.status, this.progress, this.numbers, this.group, this.asking].forEach((one) =>
        one.replaceChildren(),
      );
      this.results.hidden = true;
      this.enable();
    }

    /** Which buttons and fields can be used now. */
    enable() {
      const { run, going, busy, single } = this;
      const over = run?.over ?? false;
      const { trainButton, stepButton, pauseButton, status } = this;
      const rules = [
        [trainButton, going || over],
        [stepButton, going || over || (busy && !single)], // a second click does nothing
        [pauseButton, !going],
      ];
      enable(rules, [pauseButton, trainButton, status]);
      const { sum, seed, recipe } = this.form;
      [sum, seed, recipe].forEach((one) => (one.disabled = run !== null || busy));
    }

    /** Load what is needed and begin a run; whether there is one. */
    async begin() {
      const question = questionFrom(this.form.sum.value);
      this.form.sum.setAttribute("aria-invalid", String(question === null));
      const seed = seedFrom(this.form.seed);
      if (question === null || seed === null) {
        this.status.textContent = question === null ? REFUSED : NO_SEED;
        return false;
      }
      const recipe = RECIPES[Number(this.form.recipe.value)];
      this.status.textContent = LOADING;
      const run = { recipe, question, points: [], over: false, told: false };
      const { turn } = this;
      await live.ready();
      const [packed, bands] = await Promise.all([
        ...[live.weights("sft"), live.runs("thinking")],
      ]);
      if (turn !== this.turn) return false;
      Object.assign(run, { bands, home: live.home() });
      this.run = run;
      const weights = live.engine.readWeights(packed);
      const given = { ...recipe, from: FROM, weights, seed, question, exam: EXAM };
      run.before = (await run.home.call("begin", given)).exam;
      return turn === this.turn;
    }

    /** One update, or the end; whether there is more to do. */
    async advance() {
      const { run } = this;
      await seen();
      const { point, group } = await run.home.call("update");
      if (this.run !== run) return false;
      run.points.push(point);
      this.show(group);
      const { updates } = run.recipe;
      this.progress.textContent = `update ${run.points.length} of ${updates}`;
      if (!run.told && this.going && point.work > 0.5) {
        run.told = true;
        this.status.textContent =
          `After ${point.updates} updates more than half of the answers show their work.`;
      }
      return run.points.length < updates || this.finish();
    }

    async finish() {
      const { run } = this;
      const { exam, think } = await run.home.call("finish", { exam: EXAM });
      if (this.run !== run) return false;
      run.points.push({ updates: run.points.length, think });
      run.over = true;
      this.show(null);
      this.status.textContent = outcome(run.before, exam, run.recipe.updates);
      return false;
    }

    show(group) {
      const { run } = this;
      this.results.hidden = false;
      for (const chart of this.charts) {
        const { key } = chart.curve;
        const values = run.points.map((point) => point[key]);
        const known = values.filter((value) => value !== undefined);
        draw(chart, known, run.bands[key], run.recipe.updates);
      }
      this.numbers.replaceChildren(numbersOf(run));
      if (group) this.group.replaceChildren(groupOf(group, run.points.length));
      if (!this.asking.hasChildNodes()) this.askYours(run);
    }

    /** A desk at which the model that is being trained is asked beside two others. */
    askYours(run) {
      const load = async () => {
        await live.ready();
        return new live.engine.Llama(await run.home.call("weights"));
      };
      const models = [
        { title: TITLES.sft, load: () => live.model("sft") },
        { title: "yours, as it is when you ask", load },
        { title: TITLES.grpo, load: () => live.model("grpo") },
      ];
      const sum = run.question.slice("What is ".length, -1);
      const { parts } = desk({ models, sum, first: 3 });
      this.asking.append(element("p", { class: "live-name" }, "Ask your model"), ...parts);
    }

    train() {
      this.going = true;
      if (this.busy) this.status.textContent = this.run?.before ? "Training." : LOADING;
      return this.work();
    }

    step() {
      return this.work();
    }

    pause() {
      this.going = false;
      this.status.textContent = "Paused.";
      this.enable();
    }

    /** Begin where nothing has begun, make one update, and more while the run goes on. */
    async work() {
      this.enable();
      if (this.busy) return; // the loop that is under way will go on
      this.busy = true;
      this.single = !this.going; // Step
      this.enable();
      const { turn } = this;
      try {
        // Pause may have been clicked while the model was loaded.
        if ((this.run || (await this.begin())) && (this.going || this.single)) {
          this.status.textContent = "Training.";
          while ((await this.advance()) && this.going);
        }
      } catch (fault) {
        if (turn !== this.turn) return;
        this.reset();
        this.status.textContent = fault.message;
      }
      if (turn !== this.turn) return;
      [this.busy, this.going, this.single] = [false, false, false];
      if (this.run && !this.run.over) this.status.textContent = "Paused.";
      this.enable();
    }
  }

  shared.define("train", {
    title: "Train it yourself, and see it turn to its work",
    attributes: ["sum"],
    controls: (data) => {
      if (questionFrom(data.sum ?? "2468+1384") === null) {
        throw new Error(`${data.sum} is no sum.`);
      }
      return [];
    },
    build(sliders, data) {
      const training = new Training(data);
      return { parts: training.parts, render: () => {}, reset: () => training.reset() };
    },
  });

  if (inNode) module.exports = { RECIPES, described, outcome };
})();
