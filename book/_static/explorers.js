/* What the explorers of the book share.

   A page holds <div class="explorer" data-explorer="clip"></div>; the script fills it.
   Without scripts it stays empty, and the figure above it says the same at one setting.
   An explorer is a file of its own, loaded after this one, that calls explorers.define.
   These are plain scripts: a page opened as a file may not load modules. Colours are
   those of custom.css. Node loads the same files, for tests/test_explorers.py. */

"use strict";

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const FIGURE_SPACE = "\u2007"; // as wide as a digit
  const definitions = new Map();
  let used = 0; // explorers and patterns on this page, for ids that differ

  // Numbers and words: pure functions

  /** A number with so many digits after the point, padded to a width: nothing jumps. */
  function fixed(x, digits, width = 0) {
    const size = Math.abs(x).toFixed(digits);
    const sign = x < 0 && Number(size) !== 0 ? "\u2212" : "";
    return (sign + size).padStart(width, FIGURE_SPACE);
  }

  /** The function that maps [from, to] to [first, last] along a straight line. */
  function scale([from, to], [first, last]) {
    return (x) => first + ((x - from) / (to - from)) * (last - first);
  }

  /** Describe a slider; refuse an initial value that it cannot show. */
  function slider({ name, label, group = "", min, max, step, value, digits }) {
    if (!(value >= min && value <= max)) {
      throw new Error(`${name} must lie from ${min} to ${max}, but it is ${value}.`);
    }
    return { name, label, group, min, max, step, value, digits };
  }

  /** Read the words of a data- attribute, or take the default. */
  function words(text, otherwise) {
    const found = text === undefined ? otherwise : text.trim().split(/\s+/);
    if (found.length !== otherwise.length) {
      throw new Error(
        `${otherwise.length} values are needed, but "${text}" was given.`,
      );
    }
    return found;
  }

  const numbers = (text, otherwise) => words(text, otherwise).map(Number);
  const number = (text, otherwise) => numbers(text, [otherwise])[0];

  // Elements

  /** Set attributes and children; a child that is a string becomes text. */
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  function element(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  function svg(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }

  /** An empty drawing and the function that draws it anew and says what it shows. */
  function picture(width, height) {
    const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    const draw = (label, ...shapes) => {
      node.setAttribute("aria-label", label);
      node.replaceChildren(...shapes);
    };
    return { node, draw };
  }

  /** Words in a drawing. */
  function text(x, y, content, attributes = {}) {
    return svg("text", { x, y, ...attributes }, content);
  }

  function line(x1, y1, x2, y2, name) {
    return svg("line", { x1, y1, x2, y2, class: name });
  }

  /** A pattern of slanted lines, and the fill that refers to it. */
  function hatching() {
    const id = `explorer-hatching-${(used += 1)}`;
    const attributes = { id, width: 5, height: 5, patternUnits: "userSpaceOnUse" };
    const stripes = svg("path", { d: "M-1 1 L1 -1 M0 5 L5 0 M4 6 L6 4" });
    const pattern = svg("pattern", { ...attributes, class: "explorer-hatch" }, stripes);
    return { defs: svg("defs", {}, pattern), fill: `url(#${id})` };
  }

  /** A rectangle from y = base to y = tip, whichever is higher. */
  function bar(x, width, base, tip, attributes) {
    const [y, height] = [Math.min(base, tip), Math.abs(base - tip)];
    return svg("rect", { x, y, width, height, ...attributes });
  }

  // An explorer on the page

  /** Write a label, where _low makes "low" a subscript. */
  function label(content, attributes) {
    const parts = content.split(/_(\w+)/);
    const nodes = parts.map((part, i) => (i % 2 ? element("sub", {}, part) : part));
    return element("label", attributes, ...nodes);
  }

  /** One slider with its label and its value. */
  function control(spec, id, changed) {
    const { min, max, step } = spec;
    const input = element("input", { type: "range", id, min, max, step });
    // An <output> is read aloud at every change unless it is told not to be.
    const output = element("output", { for: id, "aria-live": "off" });
    const show = () => {
      output.textContent = fixed(input.valueAsNumber, spec.digits, spec.digits + 3);
    };
    const reset = () => {
      input.value = spec.value;
      show();
    };
    input.addEventListener("input", () => {
      show();
      changed();
    });
    reset();
    const name = label(spec.label, { for: id });
    const node = element("div", { class: "explorer-control" }, name, output, input);
    return { name: spec.name, group: spec.group, node, input, reset };
  }

  /** Put controls of one group into a fieldset named after it. */
  function grouped(controls) {
    const groups = [...new Set(controls.map(({ group }) => group))];
    return groups.map((group) => {
      const nodes = controls
        .filter((one) => one.group === group)
        .map((one) => one.node);
      const legend = group ? [element("legend", {}, group)] : [];
      return element("fieldset", {}, ...legend, ...nodes);
    });
  }

  /** The sentence below, a live region: it is read aloud when its words change. */
  function sentence() {
    const node = element("p", { class: "explorer-sentence", "aria-live": "polite" });
    const say = (words) => {
      if (node.textContent !== words) node.textContent = words;
    };
    return { node, say };
  }

  /** Fill one div with the explorer that it names. */
  function mount(host) {
    const definition = definitions.get(host.dataset.explorer);
    if (!definition) throw new Error(`No explorer is called ${host.dataset.explorer}.`);
    const id = `explorer-${(used += 1)}`;
    const render = () => {
      const pairs = controls.map(({ name, input }) => [name, input.valueAsNumber]);
      built.render(Object.fromEntries(pairs));
    };
    const controls = definition
      .controls(host.dataset)
      .map((spec) => control(spec, `${id}-${spec.name}`, render));
    const sliders = element("div", { class: "explorer-sliders" }, ...grouped(controls));
    const built = definition.build(sliders, host.dataset);
    const title = element("p", { class: "explorer-title", id }, definition.title);
    const button = element("button", { type: "button" }, "Reset");
    button.addEventListener("click", () => {
      controls.forEach((one) => one.reset());
      built.reset?.();
      render();
    });
    const head = element("div", { class: "explorer-head" }, title, button);
    fill(host, { role: "group", "aria-labelledby": id }, [head, ...built.parts]);
    render();
  }

  const explorers = {
    definitions,
    /** Name an explorer: {title, attributes, controls, build}.

        attributes: the data- attributes it reads; controls(dataset): its sliders, made
        by slider(); build(sliders, dataset): {parts, render, reset}, what stands on the
        page, what each change calls with the values of the sliders by name, and what
        the button calls besides where there is more to take back. */
    define: (name, definition) => definitions.set(name, definition),
    ...{ fixed, scale, slider, words, numbers, number },
    ...{ element, svg, picture, text, line, hatching, bar, sentence, control },
  };

  globalThis.explorers = explorers;
  if (typeof document !== "undefined") {
    // Deferred scripts have all run by then, and so every explorer is defined.
    document.addEventListener("DOMContentLoaded", () => {
      document.querySelectorAll("div[data-explorer]").forEach(mount);
    });
  }
  if (typeof module !== "undefined") module.exports = explorers;
})();
