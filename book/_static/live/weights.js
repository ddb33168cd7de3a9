/* The weights of the shipped models, loaded when a reader first asks for them.

   The build writes them beside this file, one script a model (book/_ext/live_weights.py).
   A script and not data: a page opened as a file may fetch nothing. Each calls
   live.arrived. Node loads them in the same way, for tests. */

"use strict";

(() => {
  const live = (globalThis.live ??= {});
  const folder = globalThis.document?.currentScript?.src.replace(/[^/]*$/, "") ?? "";
  const arrived = new Map(); // name -> what the script brought
  const asked = new Map(); // name -> promise of it

  /** Called by the script of a model's weights. */
  live.arrived = (name, packed) => arrived.set(name, packed);

  /** Add the script of a model to the page; it is asked for once, unless it failed. */
  function script(name) {
    return new Promise((resolve, reject) => {
      const node = document.createElement("script");
      node.src = `${folder}weights_${name}.js`;
      node.onload = () => resolve(arrived.get(name));
      node.onerror = () => {
        asked.delete(name);
        node.remove();
        reject(new Error(`The weights of "${name}" could not be loaded.`));
      };
      document.head.append(node);
    });
  }

  /** Promise the weights of "base", "sft" or "grpo", as engine.readWeights takes them. */
  live.weights = (name) => {
    if (arrived.has(name)) return Promise.resolve(arrived.get(name));
    if (!asked.has(name)) asked.set(name, script(name));
    return asked.get(name);
  };

  if (typeof module !== "undefined") module.exports = { arrived };
})();
