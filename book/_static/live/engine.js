/* The engine of the live parts: the book's little Llama, sampled and trained in a page.

   It computes what `LlamaForCausalLM` of transformers, `generation.generate` and
   `updates.grpo_update` compute, in the same words, and tests/book/test_live.py holds
   it to them. A plain script without dependencies: a page opened as a file may load no
   module. Node loads it, for tests; and a worker is made from the text of makeEngine,
   which uses nothing outside itself. Nothing here knows of a page. */

"use strict";

(() => {
  function makeEngine() {
    // The shape of the model: rl_notes/language/models.py

    const VOCABULARY = 22;
    const WIDTH = 64;
    const HIDDEN = 256; // of the feed-forward layers
    const HEADS = 4;
    const HEAD = WIDTH / HEADS;
    const LAYERS = 2;
    const CONTEXT = 128;
    const THETA = 10000; // of the rotary positions
    const EPSILON = 1e-6; // of the norms
    const END = 2; // the token that ends an answer

    const LAYER_SHAPES = {
      "input_layernorm.weight": [WIDTH],
      "mlp.down_proj.weight": [WIDTH, HIDDEN],
      "mlp.gate_proj.weight": [HIDDEN, WIDTH],
      "mlp.up_proj.weight": [HIDDEN, WIDTH],
      "post_attention_layernorm.weight": [WIDTH],
      "self_attn.k_proj.weight": [WIDTH, WIDTH],
      "self_attn.o_proj.weight": [WIDTH, WIDTH],
      "self_attn.q_proj.weight": [WIDTH, WIDTH],
      "self_attn.v_proj.weight": [WIDTH, WIDTH],
    };

    /** Name and shape of each tensor, in the order of the file. */
    function layout() {
      const found = [
        ["lm_head.weight", [VOCABULARY, WIDTH]],
        ["model.embed_tokens.weight", [VOCABULARY, WIDTH]],
      ];
      for (let layer = 0; layer < LAYERS; layer++) {
        for (const [name, shape] of Object.entries(LAYER_SHAPES)) {
          found.push([`model.layers.${layer}.${name}`, shape]);
        }
      }
      return [...found, ["model.norm.weight", [WIDTH]]];
    }

    const sizeOf = (shape) => shape.reduce((a, b) => a * b, 1);
    const LAYOUT = layout();
    const SIZE = LAYOUT.reduce((sum, [, shape]) => sum + sizeOf(shape), 0);

    /** The tensors of one flat array, by name, as views into it. */
    function tensors(flat) {
      const found = {};
      let from = 0;
      for (const [name, shape] of LAYOUT) {
        found[name] = flat.subarray(from, (from += sizeOf(shape)));
      }
      return found;
    }

    // Weights in half precision, as text

    /** The number that 16 bits stand for: IEEE 754, binary16. */
    function fromHalf(bits) {
      const sign = bits & 0x8000 ? -1 : 1;
      const exponent = (bits >> 10) & 31;
      const fraction = (bits & 1023) / 1024;
      if (exponent === 0) return sign * fraction * 2 ** -14; // subnormal
      if (exponent === 31) return fraction ? NaN : sign * Infinity;
      return sign * (1 + fraction) * 2 ** (exponent - 15);
    }

    /** Base64 of little-endian half precision as float32. */
    function decodeHalf(base64) {
      const bytes = atob(base64);
      const found = new Float32Array(bytes.length / 2);
      for (let i = 0; i < found.length; i++) {
        const [low, high] = [bytes.charCodeAt(2 * i), bytes.charCodeAt(2 * i + 1)];
        found[i] = fromHalf(low | (high << 8));
      }
      return found;
    }

    /** The weights of a shipped model; refuse those of another shape. */
    function readWeights({ layout: given, half }) {
      if (JSON.stringify(given) !== JSON.stringify(LAYOUT)) {
        throw new Error("These are the weights of another model.");
      }
      return decodeHalf(half);
    }

    // Products of matrices, all row after row in Float32Array

    const { fround } = Math;

    /** c[i, j] = sum_k a[i, k] b[j, k]: every row of a with every row of b.

        Nearly all the time goes by here. Two rows of a and four of b are taken at a
        time, so that each number that is read is used several times. */
    function product(a, b, size) {
      const [rows, columns] = [a.length / size, b.length / size];
      const c = new Float32Array(rows * columns);
      for (let i = 0; i < rows; i += 2) {
        const a0 = i * size;
        const a1 = i + 1 < rows ? a0 + size : a0; // the last row may be alone
        const c1 = i + 1 < rows ? columns : 0;
        for (let j = 0; j < columns; j += 4) {
          if (j + 4 > columns) {
            edge(a, b, c, size, i, j, columns);
            if (c1) edge(a, b, c, size, i + 1, j, columns);
            break;
          }
          const b0 = j * size;
          const [b1, b2, b3] = [b0 + size, b0 + 2 * size, b0 + 3 * size];
          let [s00, s01, s02, s03] = [0, 0, 0, 0];
          let [s10, s11, s12, s13] = [0, 0, 0, 0];
          for (let k = 0; k < size; k++) {
            const x = a[a0 + k];
            const y = a[a1 + k];
            const u = b[b0 + k];
            const v = b[b1 + k];
            const w = b[b2 + k];
            const z = b[b3 + k];
            s00 += x * u;
            s01 += x * v;
            s02 += x * w;
            s03 += x * z;
            s10 += y * u;
            s11 += y * v;
            s12 += y * w;
            s13 += y * z;
          }
          const at = i * columns + j;
          // The second row after the first: where it is the same row, so are the sums.
          c[at] = s00;
          c[at + 1] = s01;
          c[at + 2] = s02;
          c[at + 3] = s03;
          c[at + c1] = s10;
          c[at + c1 + 1] = s11;
          c[at + c1 + 2] = s12;
          c[at + c1 + 3] = s13;
        }
      }
      return c;
    }

    /** The last columns of a row of a product, fewer than four. */
    function edge(a, b, c, size, i, from, columns) {
      for (let j = from; j < columns; j++) {
        let sum = 0;
        for (let k = 0; k < size; k++) sum += a[i * size + k] * b[j * size + k];
        c[i * columns + j] = sum;
      }
    }

    function transposed(a, columns) {
      const rows = a.length / columns;
      const t = new Float32Array(a.length);
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) t[j * rows + i] = a[i * columns + j];
      }
      return t;
    }

    function addTo(sum, x) {
      for (let i = 0; i < x.length; i++) sum[i] += x[i];
      return sum;
    }

    // Each part of the model, forwards and backwards. In the names d is for the
    // derivative of the objective in what follows: dx is that in x.

    /** A linear layer without bias: y = W x for each row x. */
    const linear = (x, weight, inputs) => product(x, weight, inputs);

    /** Its derivative in x; that in W is added to dweight. */
    function linearBackward(dy, x, weight, dweight, inputs) {
      const outputs = weight.length / inputs;
      addTo(dweight, outer(dy, x, outputs, inputs));
      return product(dy, transposed(weight, inputs), outputs);
    }

    /** dW = sum_i dy[i] x[i]^T. */
    function outer(dy, x, outputs, inputs) {
      const rows = x.length / inputs;
      return product(transposed(dy, outputs), transposed(x, inputs), rows);
    }

    /** RMSNorm: each row divided by its root mean square, times the weight. */
    function norm(x, weight) {
      const y = new Float32Array(x.length);
      const scales = new Float32Array(x.length / WIDTH);
      for (let i = 0; i < scales.length; i++) {
        const at = i * WIDTH;
        let squares = 0;
        for (let k = 0; k < WIDTH; k++) squares += x[at + k] * x[at + k];
        const scale = 1 / Math.sqrt(squares / WIDTH + EPSILON);
        for (let k = 0; k < WIDTH; k++) y[at + k] = weight[k] * x[at + k] * scale;
        scales[i] = scale;
      }
      return { y, scales };
    }

    function normBackward(dy, x, { scales }, weight, dweight) {
      const dx = new Float32Array(x.length);
      for (let i = 0; i < scales.length; i++) {
        const at = i * WIDTH;
        const scale = scales[i];
        let along = 0; // of the derivative along x itself, which the scale takes away
        for (let k = 0; k < WIDTH; k++) {
          dweight[k] += dy[at + k] * x[at + k] * scale;
          along += dy[at + k] * weight[k] * x[at + k];
        }
        along *= (scale * scale) / WIDTH;
        for (let k = 0; k < WIDTH; k++) {
          dx[at + k] = scale * (dy[at + k] * weight[k] - x[at + k] * along);
        }
      }
      return dx;
    }

    const TURNS = rotations();

    /** Cosine and sine of each place and pair of numbers of a head. */
    function rotations() {
      const half = HEAD / 2;
      const cos = new Float32Array(CONTEXT * half);
      const sin = new Float32Array(CONTEXT * half);
      for (let place = 0; place < CONTEXT; place++) {
        for (let k = 0; k < half; k++) {
          const angle = fround(place * fround(THETA ** (-k / half)));
          cos[place * half + k] = Math.cos(angle);
          sin[place * half + k] = Math.sin(angle);
        }
      }
      return { cos, sin };
    }

    /** Rotary positions: turn the pair (k, k + 8) of each head by the place's angle.

        In place. With direction -1 it turns back, which is the derivative. */
    function rotate(x, depths, from, direction) {
      const half = HEAD / 2;
      for (let i = 0; i < x.length / WIDTH; i++) {
        const turn = depths[from + i] * half;
        for (let head = 0; head < HEADS; head++) {
          const at = i * WIDTH + head * HEAD;
          for (let k = 0; k < half; k++) {
            const u = x[at + k];
            const v = x[at + k + half];
            const cos = TURNS.cos[turn + k];
            const sin = direction * TURNS.sin[turn + k];
            x[at + k] = u * cos - v * sin;
            x[at + k + half] = v * cos + u * sin;
          }
        }
      }
    }

    /** Attention of each node to itself and its ancestors.

        `shares` holds the softmax: for each node and head one number per ancestor, from
        the node itself up to the root, and `starts` where those of a node begin. */
    function attend(q, keys, values, tree, from) {
      const y = new Float32Array(q.length);
      const starts = shareStarts(tree, from);
      const shares = new Float32Array(starts[starts.length - 1]);
      for (let i = 0; i < starts.length - 1; i++) {
        const ancestors = tree.depths[from + i] + 1;
        for (let head = 0; head < HEADS; head++) {
          const at = starts[i] + head * ancestors;
          const inHead = head * HEAD;
          const mine = i * WIDTH + inHead;
          let s = at;
          for (let node = from + i; node >= 0; node = tree.parents[node]) {
            shares[s++] = dot(q, mine, keys, node * WIDTH + inHead) / Math.sqrt(HEAD);
          }
          softmaxInPlace(shares, at, ancestors);
          s = at;
          for (let node = from + i; node >= 0; node = tree.parents[node]) {
            addScaled(y, mine, values, node * WIDTH + inHead, shares[s++]);
          }
        }
      }
      return { y, shares, starts };
    }

    function shareStarts(tree, from) {
      const starts = new Int32Array(tree.size - from + 1);
      for (let i = 1; i < starts.length; i++) {
        starts[i] = starts[i - 1] + HEADS * (tree.depths[from + i - 1] + 1);
      }
      return starts;
    }

    /** One head's part of a vector times that of another. */
    function dot(a, i, b, j) {
      let sum = 0;
      for (let k = 0; k < HEAD; k++) sum += a[i + k] * b[j + k];
      return sum;
    }

    /** One head's part: a += scale b. */
    function addScaled(a, i, b, j, scale) {
      for (let k = 0; k < HEAD; k++) a[i + k] += scale * b[j + k];
    }

    function softmaxInPlace(x, at, size) {
      let [most, sum] = [-Infinity, 0];
      for (let k = at; k < at + size; k++) most = Math.max(most, x[k]);
      for (let k = at; k < at + size; k++) sum += x[k] = Math.exp(x[k] - most);
      for (let k = at; k < at + size; k++) x[k] /= sum;
    }

    /** Derivatives in the queries, keys and values of a whole tree. */
    function attendBackward(dy, q, keys, values, { shares, starts }, tree) {
      const [dq, dk, dv] = [q, q, q].map((x) => new Float32Array(x.length));
      const slopes = new Float32Array(CONTEXT);
      for (let i = 0; i < tree.size; i++) {
        const ancestors = tree.depths[i] + 1;
        for (let head = 0; head < HEADS; head++) {
          const at = starts[i] + head * ancestors;
          const inHead = head * HEAD;
          const mine = i * WIDTH + inHead;
          let [s, mean] = [0, 0];
          for (let node = i; node >= 0; node = tree.parents[node]) {
            const theirs = node * WIDTH + inHead;
            addScaled(dv, theirs, dy, mine, shares[at + s]);
            slopes[s] = dot(dy, mine, values, theirs);
            mean += shares[at + s] * slopes[s++];
          }
          s = 0;
          for (let node = i; node >= 0; node = tree.parents[node]) {
            const theirs = node * WIDTH + inHead;
            // The softmax's derivative: a share times how far its slope is above the mean.
            const slope = (shares[at + s] * (slopes[s++] - mean)) / Math.sqrt(HEAD);
            addScaled(dq, mine, keys, theirs, slope);
            addScaled(dk, theirs, q, mine, slope);
          }
        }
      }
      return { dq, dk, dv };
    }

    /** SwiGLU: gate sigmoid(gate) up. */
    function swiglu(gate, up) {
      const y = new Float32Array(gate.length);
      for (let i = 0; i < y.length; i++) {
        y[i] = (gate[i] / (1 + Math.exp(-gate[i]))) * up[i];
      }
      return y;
    }

    function swigluBackward(dy, gate, up) {
      const [dgate, dup] = [gate, up].map((x) => new Float32Array(x.length));
      for (let i = 0; i < dy.length; i++) {
        const sigmoid = 1 / (1 + Math.exp(-gate[i]));
        dup[i] = dy[i] * gate[i] * sigmoid;
        dgate[i] = dy[i] * up[i] * sigmoid * (1 + gate[i] * (1 - sigmoid));
      }
      return { dgate, dup };
    }

    // The model

    /** Prefixes as a tree: a node is a prefix and holds its last token.

        Prefixes that begin alike share their nodes, so that nothing is run twice, and
        as each node attends to its ancestors alone, nothing is padded. Parents come
        before their children; the parent of a root is -1. */
    class PrefixTree {
      constructor() {
        this.tokens = [];
        this.parents = [];
        this.depths = []; // the token's place in the text
        this.children = new Map();
      }

      get size() {
        return this.tokens.length;
      }

      /** The node of a prefix and one more token; -1 is the empty prefix. */
      child(node, token) {
        const key = (node + 1) * VOCABULARY + token;
        let found = this.children.get(key);
        if (found === undefined) {
          found = this.size;
          this.children.set(key, found);
          this.tokens.push(token);
          this.parents.push(node);
          this.depths.push(node < 0 ? 0 : this.depths[node] + 1);
          if (this.depths[found] >= CONTEXT) {
            throw new Error(`The model reads at most ${CONTEXT} tokens.`);
          }
        }
        return found;
      }

      /** The nodes of all prefixes of a text. */
      path(tokens) {
        let node = -1;
        return tokens.map((token) => (node = this.child(node, token)));
      }
    }

    /** What is kept of the nodes that were run: keys and values, and their logits. */
    class Memory {
      constructor() {
        this.nodes = 0;
        this.keys = Array.from({ length: LAYERS }, () => new Float32Array(0));
        this.values = Array.from({ length: LAYERS }, () => new Float32Array(0));
        this.logits = new Float32Array(0);
      }

      /** Make room for so many nodes. */
      reserve(nodes) {
        const grown = (x, wide) => {
          if (x.length >= nodes * wide) return x;
          const more = new Float32Array(Math.max(nodes * wide, 2 * x.length));
          more.set(x);
          return more;
        };
        this.keys = this.keys.map((x) => grown(x, WIDTH));
        this.values = this.values.map((x) => grown(x, WIDTH));
        this.logits = grown(this.logits, VOCABULARY);
      }
    }

    class Llama {
      constructor(weights = new Float32Array(SIZE)) {
        this.weights = Float32Array.from(weights);
        this.gradient = new Float32Array(SIZE);
        this.tensors = tensors(this.weights);
        this.gradients = tensors(this.gradient);
      }

      /** A layer's tensors under their last names, with the gradients in `d`. */
      layer(index) {
        const of = (found) => (name) =>
          found[`model.layers.${index}.${name}.weight`];
        const parts = (part) => ({
          first: part("input_layernorm"),
          q: part("self_attn.q_proj"),
          k: part("self_attn.k_proj"),
          v: part("self_attn.v_proj"),
          o: part("self_attn.o_proj"),
          second: part("post_attention_layernorm"),
          gate: part("mlp.gate_proj"),
          up: part("mlp.up_proj"),
          down: part("mlp.down_proj"),
        });
        return { ...parts(of(this.tensors)), d: parts(of(this.gradients)) };
      }

      /** Run the nodes of a tree that are not in the memory yet.

          Their logits go into the memory. Returns what `backward` needs. */
      forward(tree, memory = new Memory()) {
        const from = memory.nodes;
        memory.reserve(tree.size);
        let x = this.embed(tree, from);
        const layers = [];
        for (let index = 0; index < LAYERS; index++) {
          layers.push(this.layerForward(index, x, tree, memory));
          x = layers[index].y;
        }
        const last = norm(x, this.tensors["model.norm.weight"]);
        const logits = linear(last.y, this.tensors["lm_head.weight"], WIDTH);
        memory.logits.set(logits, from * VOCABULARY);
        memory.nodes = tree.size;
        return { tree, memory, layers, last };
      }

      embed(tree, from) {
        const table = this.tensors["model.embed_tokens.weight"];
        const x = new Float32Array((tree.size - from) * WIDTH);
        for (let node = from; node < tree.size; node++) {
          const at = tree.tokens[node] * WIDTH;
          x.set(table.subarray(at, at + WIDTH), (node - from) * WIDTH);
        }
        return x;
      }

      layerForward(index, x, tree, memory) {
        const w = this.layer(index);
        const from = memory.nodes;
        const [keys, values] = [memory.keys[index], memory.values[index]];
        const first = norm(x, w.first);
        const [q, k, v] = [w.q, w.k, w.v].map((one) => linear(first.y, one, WIDTH));
        rotate(q, tree.depths, from, 1);
        rotate(k, tree.depths, from, 1);
        keys.set(k, from * WIDTH);
        values.set(v, from * WIDTH);
        const attention = attend(q, keys, values, tree, from);
        const middle = addTo(linear(attention.y, w.o, WIDTH), x);
        const second = norm(middle, w.second);
        const gate = linear(second.y, w.gate, WIDTH);
        const up = linear(second.y, w.up, WIDTH);
        const active = swiglu(gate, up);
        const y = addTo(linear(active, w.down, HIDDEN), middle);
        return { x, first, q, attention, middle, second, gate, up, active, y };
      }

      /** Add to the gradient that of an objective whose slopes in the logits are given.

          `run` is what `forward` returned for a whole tree. */
      backward(run, slopes) {
        const { tree, layers, last } = run;
        const [w, d] = [this.tensors, this.gradients];
        const name = "model.norm.weight";
        const head = [w["lm_head.weight"], d["lm_head.weight"]];
        const dlast = linearBackward(slopes, last.y, ...head, WIDTH);
        let dx = normBackward(dlast, layers[LAYERS - 1].y, last, w[name], d[name]);
        for (let index = LAYERS - 1; index >= 0; index--) {
          dx = this.layerBackward(index, dx, run);
        }
        const dtable = d["model.embed_tokens.weight"];
        for (let node = 0; node < tree.size; node++) {
          const at = tree.tokens[node] * WIDTH;
          for (let k = 0; k < WIDTH; k++) dtable[at + k] += dx[node * WIDTH + k];
        }
      }

      /** The layer's lines, from the last to the first. */
      layerBackward(index, dy, { tree, memory, layers }) {
        const { d, ...w } = this.layer(index);
        const kept = layers[index];
        const [keys, values] = [memory.keys[index], memory.values[index]];
        const dactive = linearBackward(dy, kept.active, w.down, d.down, HIDDEN);
        const { dgate, dup } = swigluBackward(dactive, kept.gate, kept.up);
        const dsecond = linearBackward(dgate, kept.second.y, w.gate, d.gate, WIDTH);
        addTo(dsecond, linearBackward(dup, kept.second.y, w.up, d.up, WIDTH));
        const { middle, second, attention, q, x, first } = kept;
        const dmiddle = addTo(
          normBackward(dsecond, middle, second, w.second, d.second),
          dy,
        );
        const dattended = linearBackward(dmiddle, attention.y, w.o, d.o, WIDTH);
        const { dq, dk, dv } = attendBackward(
          ...[dattended, q, keys, values, attention, tree],
        );
        rotate(dq, tree.depths, 0, -1);
        rotate(dk, tree.depths, 0, -1);
        const dfirst = linearBackward(dq, first.y, w.q, d.q, WIDTH);
        addTo(dfirst, linearBackward(dk, first.y, w.k, d.k, WIDTH));
        addTo(dfirst, linearBackward(dv, first.y, w.v, d.v, WIDTH));
        return addTo(normBackward(dfirst, x, first, w.first, d.first), dmiddle);
      }
    }

    // Distributions and chance

    /** log softmax of the logits of one state, in double precision. */
    function logSoftmax(logits, at = 0, size = logits.length) {
      let [most, sum] = [-Infinity, 0];
      for (let k = 0; k < size; k++) most = Math.max(most, logits[at + k]);
      for (let k = 0; k < size; k++) sum += Math.exp(logits[at + k] - most);
      const whole = most + Math.log(sum);
      const found = new Float64Array(size);
      for (let k = 0; k < size; k++) found[k] = logits[at + k] - whole;
      return found;
    }

    /** Inverse transform sampling: the first action whose cumulative sum exceeds u. */
    function sample(logprobs, u) {
      const cumulative = [];
      let sum = 0;
      for (const logprob of logprobs) cumulative.push((sum += Math.exp(logprob)));
      return cumulative.findIndex((upTo) => upTo / sum > u);
    }

    const largest = (values) => values.indexOf(Math.max(...values));

    /** Uniform numbers in [0, 1) from a seed: Marsaglia's xorshift of 128 bits (2003). */
    function uniforms(seed) {
      let [x, y, z, w] = [123456789 ^ seed, 362436069, 521288629, 88675123];
      const bits = () => {
        const t = x ^ (x << 11);
        [x, y, z] = [y, z, w];
        w = w ^ (w >>> 19) ^ (t ^ (t >>> 8));
        return w >>> 0;
      };
      for (let i = 0; i < 32; i++) bits(); // until the seed is in all of the bits
      return () => ((bits() >>> 5) * 2 ** 26 + (bits() >>> 6)) / 2 ** 53;
    }

    /** The numbers below n in random order (Fisher and Yates). */
    function shuffled(n, uniform) {
      const order = Array.from({ length: n }, (_, i) => i);
      for (let i = n - 1; i > 0; i--) {
        const j = Math.floor(uniform() * (i + 1));
        [order[i], order[j]] = [order[j], order[i]];
      }
      return order;
    }

    // Policies. A row is what a policy did, {actions, logprobs, group}, and what it saw:
    // {prompt} if it is a text. A policy has `weights` and `gradient`, both flat;
    // run(rows) gives the logits of all states and, for each row, the number of the
    // state of each step; backward(run, slopes) adds to the gradient.

    class LanguagePolicy {
      constructor(model, temperature = 1) {
        this.model = model;
        this.temperature = temperature;
        this.weights = model.weights;
        this.gradient = model.gradient;
      }

      run(rows) {
        const tree = new PrefixTree();
        const places = rows.map(({ prompt, actions }) =>
          tree.path([...prompt, ...actions.slice(0, -1)]).slice(prompt.length - 1),
        );
        const run = this.model.forward(tree);
        const logits = run.memory.logits.map((x) => x / this.temperature);
        return { ...run, logits, places, size: VOCABULARY };
      }

      backward(run, slopes) {
        this.model.backward(
          run,
          slopes.map((x) => x / this.temperature),
        );
      }
    }

    /** Sample answers token by token, `size` of them to each prompt.

        One uniform number is drawn per row and step, whether the row has ended or not,
        so that a row's answer does not depend on the other rows. `greedy` takes the
        most likely token instead. Each call of `step` adds a token to every row that
        has not ended, and says whether there is more to do. */
    class Sampler {
      constructor(policy, prompts, { size = 1, most, uniform, greedy = false }) {
        Object.assign(this, { policy, most, uniform, greedy });
        this.tree = new PrefixTree();
        this.memory = new Memory();
        this.rows = prompts.flatMap((prompt, group) =>
          Array.from({ length: size }, () => {
            const node = this.tree.path(prompt).at(-1);
            return { prompt, group, node, actions: [], logprobs: [], ended: false };
          }),
        );
      }

      step() {
        const { policy, tree, memory } = this;
        if (tree.size > memory.nodes) policy.model.forward(tree, memory);
        const going = this.rows.map((row) => this.extend(row));
        return going.some(Boolean);
      }

      extend(row) {
        const u = this.greedy ? 0 : this.uniform();
        if (row.ended) return false;
        const logprobs = this.distribution(row.node);
        const token = this.greedy ? largest(logprobs) : sample(logprobs, u);
        row.actions.push(token);
        row.logprobs.push(logprobs[token]);
        row.ended = token === END || row.actions.length === this.most;
        if (!row.ended) row.node = this.tree.child(row.node, token);
        return !row.ended;
      }

      /** The log-probabilities of what may come after a node. */
      distribution(node) {
        const at = node * VOCABULARY;
        const logits = this.memory.logits.slice(at, at + VOCABULARY);
        return logSoftmax(logits.map((x) => x / this.policy.temperature));
      }
    }

    /** Sample whole answers, as `generation.generate`. */
    function generate(policy, prompts, options) {
      const sampler = new Sampler(policy, prompts, options);
      while (sampler.step());
      return sampler.rows;
    }

    // Advantages: one number per step, a list for each row

    /** GRPO's group advantages: (score - mean) / (standard deviation + 0.0001).

        A group whose scores differ by rounding alone has exactly none, as in
        `group_relative`. Without `scale` they are not divided. */
    function groupRelative(scores, groups, { scale = true, epsilon = 1e-4 } = {}) {
      const found = new Array(scores.length).fill(0);
      for (const group of new Set(groups)) {
        const members = [...groups.keys()].filter((i) => groups[i] === group);
        const own = members.map((i) => scores[i]);
        const mean = own.reduce((a, b) => a + b, 0) / own.length;
        const squares = own.reduce((sum, x) => sum + (x - mean) ** 2, 0);
        const [low, high] = [Math.min(...own), Math.max(...own)];
        const rounding = 1e-6 * Math.max(1, high, -low);
        if (high - low <= rounding) continue;
        const by = scale ? Math.sqrt(squares / (own.length - 1)) + epsilon : 1;
        for (const i of members) found[i] = (scores[i] - mean) / by;
      }
      return found;
    }

    /** The same advantage at every step of a row. */
    const perStep = (advantages, rows) =>
      rows.map(({ actions }, i) => actions.map(() => advantages[i]));

    // Objectives, as their slope in the new log-probability of a step

    /** The clip of each step: min(ratio A, clip(ratio, 1 - low, 1 + high) A). */
    const tokenClip = (low, high) => (logprob, old, advantage) => {
      const ratio = Math.exp(logprob - old);
      const flat = advantage > 0 ? ratio > 1 + high : ratio < 1 - low;
      return flat ? 0 : ratio * advantage;
    };

    /** REINFORCE: the log-probability times its weight. */
    const policyGradient = (logprob, old, advantage) => advantage;

    // Aggregations, as the weight of each row's steps

    const meanOverTokens = (rows) => {
      const steps = rows.reduce((sum, { actions }) => sum + actions.length, 0);
      return rows.map(() => 1 / steps);
    };
    const meanOverSequences = (rows) =>
      rows.map(({ actions }) => 1 / (rows.length * actions.length));
    const meanOverRows = (rows) => rows.map(() => 1 / rows.length);

    // Updates

    /** Adam, up the gradient. */
    class Adam {
      constructor({ rate, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8 }) {
        Object.assign(this, { rate, beta1, beta2, epsilon, steps: 0 });
      }

      step(weights, gradient) {
        const { beta1, beta2, epsilon } = this;
        this.mean ??= new gradient.constructor(gradient.length);
        this.square ??= new gradient.constructor(gradient.length);
        const { mean, square } = this;
        this.steps += 1;
        const rate = this.rate / (1 - beta1 ** this.steps);
        const root = Math.sqrt(1 - beta2 ** this.steps);
        for (let i = 0; i < weights.length; i++) {
          const g = gradient[i];
          mean[i] += (1 - beta1) * (g - mean[i]);
          square[i] = beta2 * square[i] + (1 - beta2) * g * g;
          weights[i] += (rate * mean[i]) / (Math.sqrt(square[i]) / root + epsilon);
        }
      }
    }

    /** Plain gradient ascent. */
    class Sgd {
      constructor({ rate }) {
        this.rate = rate;
      }

      step(weights, gradient) {
        for (let i = 0; i < weights.length; i++) weights[i] += this.rate * gradient[i];
      }
    }

    /** The slope of the aggregated objective in every logit of a run.

        A step's slope in the logits is that in its log-probability, times one for the
        action that was taken less the probabilities of all. */
    function logitSlopes(run, rows, advantages, weights, objective) {
      const { logits, places, size } = run;
      const slopes = new logits.constructor(logits.length);
      rows.forEach(({ actions, logprobs }, n) => {
        actions.forEach((action, t) => {
          const at = places[n][t] * size;
          const all = logSoftmax(logits, at, size);
          const slope =
            weights[n] * objective(all[action], logprobs[t], advantages[n][t]);
          if (slope === 0) return;
          for (let k = 0; k < size; k++) slopes[at + k] -= slope * Math.exp(all[k]);
          slopes[at + action] += slope;
        });
      });
      return slopes;
    }

    /** The gradient of the aggregated objective of some rows, into policy.gradient.

        A row whose advantages are all zero is not run: it counts in the weights alone. */
    function takeGradient(policy, rows, advantages, { objective, aggregate }) {
      policy.gradient.fill(0);
      const weights = aggregate(rows);
      const some = [...rows.keys()].filter((n) => advantages[n].some((a) => a !== 0));
      if (some.length === 0) return;
      const pick = (values) => some.map((n) => values[n]);
      const run = policy.run(pick(rows));
      const given = [rows, advantages, weights].map(pick);
      policy.backward(run, logitSlopes(run, ...given, objective));
    }

    /** Deal the numbers out into so many parts, the first ones longer by one. */
    function split(order, parts) {
      const [least, more] = [Math.floor(order.length / parts), order.length % parts];
      return Array.from({ length: parts }, (_, i) => {
        const from = i * least + Math.min(i, more);
        return order.slice(from, from + least + (i < more ? 1 : 0));
      });
    }

    /** Minibatch gradient ascent: the loop that all updates share.

        `order(n)` says in which order an epoch deals its n rows out. */
    function ascend(policy, optimizer, rows, advantages, options) {
      const { epochs = 1, minibatches = 1, order } = options;
      for (let epoch = 0; epoch < epochs; epoch++) {
        for (const part of split(order(rows.length), minibatches)) {
          const pick = (values) => part.map((n) => values[n]);
          takeGradient(policy, pick(rows), pick(advantages), options);
          optimizer.step(policy.weights, policy.gradient);
        }
      }
    }

    /** GRPO: one update. `scores` has one reward per row. Returns what it did. */
    function grpoUpdate(policy, optimizer, rows, scores, options) {
      const { clipLow = 0.2, clipHigh = 0.2, scale = true } = options;
      const groups = rows.map((row) => row.group);
      const advantages = groupRelative(scores, groups, { scale });
      ascend(policy, optimizer, rows, perStep(advantages, rows), {
        objective: tokenClip(clipLow, clipHigh),
        aggregate: meanOverTokens,
        ...options,
      });
      return advantages;
    }

    /** REINFORCE: one step along the policy gradient; one weight per step. */
    function reinforceUpdate(policy, optimizer, rows, advantages) {
      ascend(policy, optimizer, rows, advantages, {
        objective: policyGradient,
        aggregate: meanOverRows,
        order: (n) => [...Array(n).keys()],
      });
    }

    /** How far a policy has moved from one run over these rows to another.

        KL(old || new) and the entropy of the new are means over the steps. The ratios
        are to the policy that sampled, step by step. */
    function compare(before, after, rows) {
      let [kl, entropy, steps] = [0, 0, 0];
      const { size } = after;
      const ratios = rows.map(({ actions, logprobs }, n) =>
        actions.map((action, t) => {
          const p = logSoftmax(before.logits, before.places[n][t] * size, size);
          const q = logSoftmax(after.logits, after.places[n][t] * size, size);
          steps += 1;
          p.forEach((logprob, k) => {
            kl += Math.exp(logprob) * (logprob - q[k]);
            entropy -= Math.exp(q[k]) * q[k];
          });
          return Math.exp(q[action] - logprobs[t]);
        }),
      );
      return { kl: kl / steps, entropy: entropy / steps, ratios };
    }

    return {
      ...{ VOCABULARY, CONTEXT, END, LAYOUT, SIZE },
      ...{ fromHalf, decodeHalf, readWeights, tensors, product },
      ...{ PrefixTree, Memory, Llama, LanguagePolicy, Sampler, generate },
      ...{ logSoftmax, sample, uniforms, shuffled },
      ...{ groupRelative, perStep, tokenClip, policyGradient },
      ...{ meanOverTokens, meanOverSequences, meanOverRows },
      ...{ Adam, Sgd, takeGradient, split, ascend, grpoUpdate, reinforceUpdate, compare },
    };
  }

  const live = (globalThis.live ??= {});
  live.makeEngine = makeEngine;
  live.engine = makeEngine();
  if (typeof module !== "undefined") module.exports = live.engine;
})();
