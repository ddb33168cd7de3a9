/* Explorer "ask": the reader's own sum, put to models of the book side by side.

   What it needs to run a model is loaded on the first question: live/weights.js. */

"use strict";

(() => {
  const shared =
    typeof module === "undefined" ? globalThis.explorers : require("./explorers.js");
  const { element, fixed, number, slider } = shared;
  const live = (globalThis.live ??= {});

  const MOST = 64; // tokens of an answer, as in rl_notes.language.answers
  const [FEW, MANY, LEAST] = [4, 8, 0.001]; // bars of a token; how likely those after FEW

  // What is typed and what is written

  const SUM = /^(?:What is )?(0|[1-9][0-9]{0,3})\+(0|[1-9][0-9]{0,3})\??$/i;

  /** The question that a typed sum stands for, or null: "47 + 85" is "What is 47+85?". */
  function questionFrom(typed) {
    const tight = typed.trim().replace(/\s*([+?])\s*/g, "$1");
    const match = SUM.exec(tight.replace(/\s+/g, " "));
    return match && `What is ${match[1]}+${match[2]}?`;
  }

  const REFUSED =
    "The models read two whole numbers of at most four digits with a plus between them, " +
    "such as 47+85.";

  /** What a model writes to a question, token by token.

      A step is {token, logprobs}, all log-probabilities of that place. One uniform
      number belongs to each place, so that models that are asked with the same seed
      have the same luck. At temperature 0 the most likely token is taken. */
  class Writing {
    constructor(model, question, { temperature, seed }) {
      const { engine, worlds } = live;
      this.greedy = temperature === 0;
      this.prompt = worlds.encode(question);
      this.question = question;
      const policy = new engine.LanguagePolicy(model, this.greedy ? 1 : temperature);
      this.sampler = new engine.Sampler(policy, [this.prompt], { most: MOST });
      this.uniforms = Array.from({ length: MOST }, engine.uniforms(seed));
      this.steps = [];
      this.from = 0; // the step at which this one parted from another
    }

    get tokens() {
      return this.steps.map(({ token }) => token);
    }

    get ended() {
      const last = this.steps.at(-1)?.token;
      return last === live.worlds.END || this.steps.length === MOST;
    }

    /** The log-probabilities of what may come next. */
    distribution() {
      const { tree, memory, policy } = this.sampler;
      const node = tree.path([...this.prompt, ...this.tokens]).at(-1);
      if (tree.size > memory.nodes) policy.model.forward(tree, memory);
      return this.sampler.distribution(node);
    }

    /** Write one token more; whether there is more to come. */
    next() {
      if (this.ended) return false;
      const logprobs = this.distribution();
      const token = this.greedy
        ? logprobs.indexOf(Math.max(...logprobs))
        : live.engine.sample(logprobs, this.uniforms[this.steps.length]);
      this.steps.push({ token, logprobs });
      return !this.ended;
    }

    /** A second path: as far as a step, and there another token. */
    branch(step, token) {
      const other = Object.assign(Object.create(Writing.prototype), this);
      const { logprobs } = this.steps[step];
      other.steps = [...this.steps.slice(0, step), { token, logprobs, chosen: true }];
      other.from = step;
      return other;
    }

    /** The log-probability of all that was written. */
    get logprob() {
      return this.steps.reduce((sum, { token, logprobs }) => sum + logprobs[token], 0);
    }
  }

  /** What a place might have held: the likeliest tokens, and the rest together. */
  function choices(logprobs) {
    const all = Array.from(logprobs, (logprob, token) => ({ token, logprob }))
      .map((one) => ({ ...one, p: Math.exp(one.logprob) }))
      .sort((a, b) => b.p - a.p);
    const shown = all.filter(({ p }, i) => i < FEW || (i < MANY && p >= LEAST));
    const rest = all.slice(shown.length);
    return { shown, others: rest.length, rest: rest.reduce((sum, { p }) => sum + p, 0) };
  }

  /** The rule's judgement of what was written: a mark and words. */
  function judgement(tokens, question) {
    const { worlds } = live;
    const text = worlds.answerText(tokens);
    const how = worlds.showsWork(text) ? "after work" : "at once";
    if (worlds.isRight(text, question)) return { mark: "\u2713", words: `right, ${how}` };
    const wrong = (words) => ({ mark: "\u2717", words });
    const [left, right] = worlds.numbers(question);
    if (worlds.followsForm(text, question)) {
      return wrong(`wrong, ${how}: the sum is ${left + right}`);
    }
    if (worlds.asksAgain(text)) return wrong("no answer: it goes on with questions");
    if (tokens.length === MOST) return wrong(`no answer in ${MOST} tokens`);
    return wrong("not an answer");
  }

  const NAMES = new Map([
    ["\n", { seen: "\u21b5", heard: "new line" }],
    ["<eos>", { seen: "end", heard: "the end" }],
    ["What is ", { seen: "What\u00a0is\u00a0", heard: "What is" }],
    [" is ", { seen: "\u00a0is\u00a0", heard: "is" }],
  ]);

  /** How a token is written on the page and how it is read aloud. */
  function named(token) {
    const piece = live.worlds.VOCABULARY[token];
    return NAMES.get(piece) ?? { seen: piece, heard: piece };
  }

  /** A probability to three digits: never 0 and never 1, which it is not. */
  function share(p) {
    if (p < 0.001) return "<\u202f0.001";
    return p > 0.9995 ? ">\u202f0.999" : fixed(p, 3);
  }

  // The page

  let used = 0; // desks on this page, for ids that differ

  /** A field with its label. */
  function field(id, words, attributes) {
    const input = element("input", { id, autocomplete: "off", ...attributes });
    const node = element("div", { class: "live-field" });
    node.append(element("label", { for: id }, words), input);
    return { node, input };
  }

  /** The seed in a field, or null where there is none that can be used. */
  function seedFrom(input) {
    const seed = input.valueAsNumber;
    const fits = Number.isInteger(seed) && seed >= 1 && seed <= 9999;
    input.setAttribute("aria-invalid", String(!fits));
    return fits ? seed : null;
  }

  const NO_SEED = "A seed is a whole number from 1 to 9999.";

  /** Disable some buttons and enable others: `rules` are pairs [button, disabled].

      Where that takes the focus from a button, the first of `heirs` that can be used
      has it. */
  function enable(rules, heirs) {
    const before = document.activeElement;
    rules.forEach(([button, disabled]) => (button.disabled = disabled));
    if (!rules.some(([button, disabled]) => disabled && button === before)) return;
    heirs.find((one) => !one.disabled)?.focus({ preventScroll: true });
  }

  /** One tab stop for a row of buttons; arrows, Home and End go from one to another. */
  function arrows(row) {
    const buttons = () => [...row.querySelectorAll("button")];
    row.addEventListener("keydown", (event) => {
      const all = buttons();
      const at = all.indexOf(document.activeElement);
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 };
      const next = all[to[event.key]];
      if (!next) return;
      event.preventDefault();
      all.forEach((one) => (one.tabIndex = one === next ? 0 : -1));
      next.focus();
    });
  }

  /** A token of an answer, to be clicked. Dotted: it was not sure. */
  function tokenButton({ token, logprobs, chosen }, first, past) {
    const p = Math.exp(logprobs[token]);
    const { seen, heard } = named(token);
    const kinds = ["live-token"];
    if (p < 0.9) kinds.push("live-unsure");
    if (chosen) kinds.push("live-chosen");
    if (past) kinds.push("live-past");
    const label = `${heard}, probability ${share(p)}${chosen ? ", your choice" : ""}`;
    const attributes = { type: "button", class: kinds.join(" "), "aria-label": label };
    return element(
      "button",
      { ...attributes, tabindex: first ? 0 : -1, "aria-expanded": false },
      seen,
    );
  }

  /** The bars of one place, as a table. `take(token)` goes on from another token. */
  function bars({ token, logprobs }, title, take) {
    const { shown, others, rest } = choices(logprobs);
    if (!shown.some((one) => one.token === token)) {
      const logprob = logprobs[token];
      shown.push({ token, logprob, p: Math.exp(logprob) });
    }
    const heads = ["token", "probability", "log-probability"];
    const rows = shown.map((one) => {
      const { seen, heard } = named(one.token);
      const here = one.token === token;
      const words = here ? `${heard}, which it is` : `go on with ${heard}`;
      const attributes = { type: "button", class: "live-token", "aria-label": words };
      const button = element("button", attributes, seen);
      button.disabled = here;
      button.addEventListener("click", () => take(one.token));
      const bar = element("span", { class: "live-bar", "aria-hidden": "true" });
      bar.style.width = `${100 * one.p}%`;
      return element(
        "tr",
        here ? { class: "live-here" } : {},
        element("th", { scope: "row" }, button),
        element("td", { class: "live-bars" }, bar, element("span", {}, share(one.p))),
        element("td", {}, fixed(one.logprob, 2)),
      );
    });
    const caption =
      `${title}, and what else it might have been` +
      (others > 0 ? ` (${others} other tokens together: ${share(rest)})` : "");
    const cells = heads.map((head) => element("th", { scope: "col" }, head));
    return element(
      "table",
      { class: "live-choices" },
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...cells)),
      element("tbody", {}, ...rows),
    );
  }

  /** A model on the page: its name, and a line for each path that it has taken. */
  class Card {
    constructor(title, done) {
      this.title = title;
      this.done = done; // called when a path has come to its end
      this.lines = element("div");
      this.panel = element("div");
      const name = element("p", { class: "live-name" }, title);
      this.node = element("div", { class: "live-card" }, name, this.lines, this.panel);
    }

    clear() {
      this.running = null;
      this.lines.replaceChildren();
      this.panel.replaceChildren();
    }

    /** Put a path on the page and write it to its end. */
    begin(writing) {
      const row = element("div", { class: "live-tokens", role: "group" });
      const verdict = element("p", { class: "live-verdict" });
      arrows(row);
      this.lines.append(element("div", { class: "live-line" }, row, verdict));
      const line = { writing, row, verdict };
      writing.steps.forEach((_, i) => this.show(line, i));
      this.running = line;
      return line;
    }

    /** Write one token more on the page. Whether there is more to come. */
    step() {
      const line = this.running;
      if (!line) return false;
      const { writing } = line;
      const before = writing.steps.length;
      const more = writing.next();
      if (writing.steps.length > before) this.show(line, before);
      if (!more) {
        this.running = null;
        this.finish(line);
      }
      return more;
    }

    show(line, i) {
      const { writing, row } = line;
      const button = tokenButton(writing.steps[i], i === 0, i < writing.from);
      button.addEventListener("click", () => this.open(line, i, button));
      row.append(button);
    }

    finish({ writing, row, verdict }) {
      const { mark, words } = judgement(writing.tokens, writing.question);
      const sure = `log-probability in all ${fixed(writing.logprob, 2)}`;
      verdict.append(
        element("span", { class: mark === "\u2713" ? "live-right" : "live-wrong" }, mark),
        ` ${words}`,
        element("span", { class: "live-muted" }, ` (${sure})`),
      );
      row.setAttribute("aria-label", `${this.title}, ${words}. Its tokens`);
      this.done(`${this.title}: ${words}.`);
    }

    /** Open the bars of a token, or close them. */
    open(line, i, button) {
      const opened = button.getAttribute("aria-expanded") === "true";
      const all = this.lines.querySelectorAll("button");
      all.forEach((one) => one.setAttribute("aria-expanded", "false"));
      line.row.querySelectorAll("button").forEach((one) => (one.tabIndex = -1));
      button.tabIndex = 0;
      this.panel.replaceChildren();
      if (opened || this.running) return;
      button.setAttribute("aria-expanded", "true");
      const title = `Token ${i + 1}`;
      const table = bars(line.writing.steps[i], title, (token) => {
        this.panel.replaceChildren();
        button.setAttribute("aria-expanded", "false");
        const { row } = this.begin(line.writing.branch(i, token));
        const taken = row.lastChild;
        row.querySelectorAll("button").forEach((one) => (one.tabIndex = -1));
        taken.tabIndex = 0;
        taken.focus();
        this.go();
      });
      this.panel.append(table);
    }
  }

  const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  /** Call `step` once a few frames until it says that nothing is left.

      At once where motion is to be reduced. A hidden page has no frames. */
  function paced(step, frames = 3) {
    let n = 0;
    const tick = () => {
      n += 1;
      if (n % frames || step()) requestAnimationFrame(tick);
    };
    if (still()) while (step());
    else requestAnimationFrame(tick);
  }

  /** Where models are asked: a form and a card for each.

      `models` is a list of {title, load}, where load() promises the model. */
  function desk({ models, sum, first = 1, button = "Ask" }) {
    const id = `live-desk-${(used += 1)}`;
    const typed = field(`${id}-sum`, "your sum", {
      ...{ type: "text", size: 9, inputmode: "text", value: sum },
      "aria-describedby": `${id}-status`,
    });
    const attributes = { type: "number", min: 1, max: 9999, step: 1, value: first };
    const seed = field(`${id}-seed`, "seed", attributes);
    const spec = { name: "temperature", label: "temperature", min: 0, max: 2 };
    const temperature = shared.control(
      ...[slider({ ...spec, step: 0.1, value: 1, digits: 1 }), `${id}-t`, () => {}],
    );
    const ask = element("button", { type: "submit", class: "live-go" }, button);
    const parts = [typed.node, seed.node, temperature.node, ask];
    const form = element("form", { class: "live-form", novalidate: "" }, ...parts);
    const status = element("p", {
      ...{ class: "live-status", id: `${id}-status`, "aria-live": "polite" },
    });
    // What the cards show when all is written, read aloud at once.
    const heard = element("p", { class: "live-heard", "aria-live": "polite" });
    let said = [];
    const done = (words) => {
      said.push(words);
      if (!cards.some((card) => card.running)) heard.textContent = said.join(" ");
    };
    const cards = models.map(({ title }) => new Card(title, done));
    let [last, turn] = ["", 0];

    const go = () => {
      const mine = (turn += 1);
      said = [];
      paced(() => {
        if (mine !== turn) return false;
        return cards.map((card) => card.step()).some(Boolean);
      });
    };
    cards.forEach((card) => (card.go = go));

    /** What is asked; the same again takes the next seed, where there is any luck. */
    function request() {
      const question = questionFrom(typed.input.value);
      typed.input.setAttribute("aria-invalid", String(question === null));
      let luck = seedFrom(seed.input);
      if (question === null) return { refused: REFUSED };
      if (luck === null) return { refused: NO_SEED };
      const warm = temperature.input.valueAsNumber;
      const again = warm > 0 && `${question} ${warm} ${luck}` === last;
      if (again) luck = (luck % 9999) + 1;
      last = `${question} ${warm} ${luck}`;
      seed.input.value = luck;
      return { question, temperature: warm, seed: luck };
    }

    async function answer() {
      const asked = request();
      const mine = (turn += 1);
      clear();
      if (asked.refused) {
        last = "";
        status.textContent = asked.refused;
        return;
      }
      status.textContent = "Loading the models \u2026";
      try {
        const loaded = await Promise.all(models.map(({ load }) => load()));
        if (mine !== turn) return;
        status.textContent = heldOut(asked.question);
        cards.forEach((card, i) => {
          card.begin(new Writing(loaded[i], asked.question, asked));
        });
        heading.textContent = asked.question;
        answers.hidden = false;
        go();
      } catch (fault) {
        last = "";
        status.textContent = fault.message;
      }
    }

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer();
    });
    const heading = element("p", { class: "live-question" });
    const nodes = cards.map((card) => card.node);
    const answers = element("div", {}, heading, ...nodes, hint());
    answers.hidden = true;

    /** Take away what was written, and stop what is being written. */
    function clear() {
      heard.textContent = "";
      cards.forEach((card) => card.clear());
      answers.hidden = true;
    }

    function reset() {
      [last, turn] = ["", turn + 1];
      typed.input.value = sum;
      typed.input.setAttribute("aria-invalid", "false");
      seed.input.value = first;
      seed.input.setAttribute("aria-invalid", "false");
      temperature.reset();
      status.textContent = "";
      clear();
    }

    return { parts: [form, status, answers, heard], reset, answer };
  }

  /** Whether the models can have met this sum. */
  function heldOut(question) {
    const [left, right] = live.worlds.numbers(question);
    return live.worlds.isHeldOut(left, right)
      ? "This sum was held out: no model was trained on it."
      : "This sum was not held out: the models may have met it in training.";
  }

  function hint() {
    return element(
      "p",
      { class: "live-muted" },
      "Click a token to see what else it might have been, and one of those to go on from " +
        "there. Dotted tokens had a probability below 0.9. All models have the same " +
        "luck: at each place the same random number, by the seed. Ask the same again, " +
        "and the seed is the next. The probabilities are those at the temperature you " +
        "set; at temperature 0 each model takes its likeliest token, and they are those " +
        "at temperature 1.",
    );
  }

  const TITLES = {
    base: "base, only pre-trained",
    sft: "sft, fine-tuned",
    grpo: "grpo, after reinforcement learning",
  };

  /** What stands in the fields at first. */
  const asked = (data) => ({ sum: data.sum ?? "47+85", seed: number(data.seed, 1) });

  shared.asking = {
    ...{ questionFrom, REFUSED, seedFrom, NO_SEED, TITLES },
    ...{ field, enable, desk, paced },
  };

  shared.define("ask", {
    title: "Ask the models a sum of your own",
    attributes: ["models", "sum", "seed"],

    controls: (data) => {
      const names = shared.words(data.models, ["base", "sft", "grpo"]);
      const unknown = names.find((name) => !TITLES[name]);
      if (unknown) throw new Error(`There is no model ${unknown}.`);
      const { sum, seed } = asked(data);
      if (questionFrom(sum) === null) throw new Error(`${sum} is no sum.`);
      if (!Number.isInteger(seed)) throw new Error(`${data.seed} is no seed.`);
      return [];
    },

    build(sliders, data) {
      const names = shared.words(data.models, ["base", "sft", "grpo"]);
      const models = names.map((name) => {
        return { title: TITLES[name], load: () => live.model(name) };
      });
      const { sum, seed } = asked(data);
      const { parts, reset } = desk({ models, sum, first: seed });
      return { parts, reset, render: () => {} };
    },
  });

  if (typeof module !== "undefined") {
    module.exports = { questionFrom, choices, judgement, Writing };
  }
})();
