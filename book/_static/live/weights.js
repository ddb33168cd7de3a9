/* What the live parts of a page need, loaded when a reader first asks for it.

   The engine stands beside this file; the build writes the weights of the shipped models
   there and what the stored runs did, one script each (book/_ext/live_weights.py).
   Scripts and not data: a page opened as a file may fetch nothing. Each calls
   live.arrived. Node loads them in the same way, for tests. */

"use strict";

(() => {
  const live = (globalThis.live ??= {});
  const folder = globalThis.document?.currentScript?.src.replace(/[^/]*$/, "") ?? "";
  const arrived = new Map(); // name -> what the script brought
  const asked = new Map(); // file -> promise of it

  /** Called by a script that brings data. */
  live.arrived = (name, packed) => arrived.set(name, packed);

  /** Add a script of this folder to the page; it is asked for once, unless it failed. */
  function script(file, what) {
    return new Promise((resolve, reject) => {
      const node = document.createElement("script");
      node.src = `${folder}${file}`;
      node.onload = () => resolve();
      node.onerror = () => {
        asked.delete(file);
        node.remove();
        reject(new Error(`${what} could not be loaded.`));
      };
      document.head.append(node);
    });
  }

  function once(file, what) {
    if (!asked.has(file)) asked.set(file, script(file, what));
    return asked.get(file);
  }

  async function wanted(name, file, what) {
    if (!arrived.has(name)) await once(file, what);
    return arrived.get(name);
  }

  /** Promise the weights of "base", "sft" or "grpo", as engine.readWeights takes them. */
  live.weights = (name) =>
    wanted(name, `weights_${name}.js`, `The weights of "${name}"`);

  /** Promise what the stored runs of a chapter did: see live_weights.py. */
  live.runs = (chapter) =>
    wanted(`runs_${chapter}`, `runs_${chapter}.js`, "The stored runs");

  /** Promise that live.engine and what is made from it are there. */
  live.ready = async () => {
    for (const name of ["engine", "worlds", "training"]) {
      if (!live[name]) await once(`${name}.js`, "The script of the live parts");
    }
  };

  const models = new Map(); // name -> promise of the model

  /** Promise a shipped model of the book, ready to be run. */
  live.model = (name) => {
    if (!models.has(name)) {
      const made = live
        .ready()
        .then(() => live.weights(name))
        .then((packed) => new live.engine.Llama(live.engine.readWeights(packed)));
      models.set(name, made);
      made.catch(() => models.delete(name)); // to be tried again
    }
    return models.get(name);
  };

  if (typeof module !== "undefined") module.exports = { arrived };
})();
