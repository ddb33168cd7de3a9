/* The two worlds of the live parts: sums in words, and a robot in a maze.

   What rl_notes.language.tokenizer and arithmetic, rl_notes.maze.rules and
   dynamic_programming say, in JavaScript; tests/book/test_live.py compares them, case by
   case. Loaded after engine.js. As there, all of it is one function of what it needs, so
   that a worker can be made from its text. */

"use strict";

(() => {
  function makeWorlds(engine) {
    // Tokens: characters, and a few longer pieces

    const [PAD, BEGIN, END] = [0, 1, 2];
    const [THINK, END_THINK] = ["<think>", "</think>"];
    const VOCABULARY = [
      ...["<pad>", "<bos>", "<eos>"],
      ..."0123456789+=,?\n",
      ...["What is ", " is ", THINK, END_THINK],
    ];
    const SPECIAL = 3;
    const IDS = new Map(VOCABULARY.map((token, id) => [token, id]));
    // The longer pieces come first: a text is cut into as long ones as there are.
    const PIECE = /What is | is |<think>|<\/think>|[^]/gu;

    /** Token ids of a text, after the begin token; refuse what the model cannot read. */
    function encode(text, { begin = true } = {}) {
      const pieces = text.match(PIECE) ?? [];
      const ids = pieces.map((piece) => IDS.get(piece) ?? -1);
      const unknown = pieces.filter((_, i) => ids[i] < SPECIAL);
      if (unknown.length > 0) {
        throw new Error(`The model knows no ${JSON.stringify(unknown.join(""))}.`);
      }
      return begin ? [BEGIN, ...ids] : ids;
    }

    /** The text of sampled tokens up to the end token. Other special ones stay visible:
        a model that writes "<pad>" has not answered. */
    function answerText(ids) {
      const end = ids.indexOf(END);
      const sampled = end < 0 ? ids : ids.slice(0, end);
      return Array.from(sampled, (id) => VOCABULARY[id]).join("");
    }

    // Questions and answers

    const NUMBER = /^(?:0|[1-9][0-9]*)$/;
    const QUESTION = /^What is (0|[1-9][0-9]{0,3})\+(0|[1-9][0-9]{0,3})\?/;
    const MOST_DIGITS = 4;

    const questionOf = (left, right) => `What is ${left}+${right}?`;

    /** The two numbers of a question, [47, 85] for "What is 47+85?", or null. */
    function numbers(question) {
      const match = QUESTION.exec(question);
      if (match === null || match[0] !== question) return null;
      return [Number(match[1]), Number(match[2])];
    }

    function numbersOrRefuse(question) {
      const found = numbers(question);
      if (found) return found;
      throw new Error(`${JSON.stringify(question)} is not like "What is 47+85?".`);
    }

    /** "47+85 is 132" */
    function directAnswer(question) {
      const [left, right] = numbersOrRefuse(question);
      return `${left}+${right} is ${left + right}`;
    }

    /** "<think>7+5=12,4+8+1=13</think>47+85 is 132": a step for each column. */
    function workedAnswer(question) {
      const [left, right] = numbersOrRefuse(question).map((number) =>
        [...String(number)].reverse(),
      );
      const steps = [];
      let carry = 0;
      for (let i = 0; i < Math.max(left.length, right.length); i++) {
        const terms = [left[i], right[i]].filter((digit) => digit !== undefined);
        if (carry) terms.push("1");
        const total = terms.map(Number).reduce((a, b) => a + b);
        steps.push(`${terms.join("+")}=${total}`);
        carry = total >= 10 ? 1 : 0;
      }
      return `${THINK}${steps.join(",")}${END_THINK}${directAnswer(question)}`;
    }

    // The verifier: the same rule as `arithmetic.is_right`, to the letter

    /** Work and sentence of an answer; null where the marks are malformed. */
    function workAndSentence(text) {
      let [work, sentence] = ["", text];
      if (text.startsWith(THINK)) {
        const end = text.indexOf(END_THINK);
        if (end < 0) return null;
        work = text.slice(THINK.length, end);
        sentence = text.slice(end + END_THINK.length);
      }
      const stray = [work, sentence].some((part) => part.includes(THINK));
      return stray || sentence.includes(END_THINK) ? null : { work, sentence };
    }

    /** Whether a text is a right answer: the sentence, at once or after one block. */
    function isRight(text, question) {
      const right = directAnswer(question);
      return workAndSentence(text)?.sentence === right;
    }

    /** Whether a text is an answer to the question, right or wrong. */
    function followsForm(text, question) {
      const [left, right] = numbersOrRefuse(question);
      const start = `${left}+${right} is `;
      const sentence = workAndSentence(text)?.sentence;
      if (!sentence?.startsWith(start)) return false;
      const total = sentence.slice(start.length);
      return NUMBER.test(total);
    }

    /** Whether a text begins with one block of work that holds a step, such as 2=2. */
    const showsWork = (text) => /[0-9]=[0-9]/.test(workAndSentence(text)?.work ?? "");

    /** Whether a continuation begins as base models do: with another question. */
    const asksAgain = (text) => text[0] === "\n" && QUESTION.test(text.slice(1));

    // What is held out: by the SHA-256 of "47+85", as in `arithmetic.is_held_out`

    const PRIMES = [];
    for (let n = 2; PRIMES.length < 64; n++) {
      if (PRIMES.every((prime) => n % prime)) PRIMES.push(n);
    }
    /** The first 32 bits behind the point: where SHA-256 takes its constants from. */
    const behindThePoint = (x) => Math.floor((x % 1) * 2 ** 32) | 0;
    const ROUND_KEYS = PRIMES.map((prime) => behindThePoint(Math.cbrt(prime)));
    const FIRST_STATE = PRIMES.slice(0, 8).map((n) => behindThePoint(Math.sqrt(n)));

    const turn = (x, bits) => (x >>> bits) | (x << (32 - bits));

    /** SHA-256 (FIPS 180-4) of a text of at most 55 ASCII characters: one block.

        As eight whole numbers of 32 bits. The browser's own is not to be had in a page
        that was opened as a file, and answers late. */
    function sha256(text) {
      const words = new Int32Array(64);
      const bytes = [...text].map((one) => one.charCodeAt(0));
      if (bytes.length > 55) throw new Error("This SHA-256 takes one block.");
      [...bytes, 0x80].forEach((byte, i) => (words[i >> 2] |= byte << (24 - 8 * (i & 3))));
      words[15] = 8 * bytes.length;
      for (let i = 16; i < 64; i++) {
        const [x, y] = [words[i - 15], words[i - 2]];
        const near = turn(x, 7) ^ turn(x, 18) ^ (x >>> 3);
        const far = turn(y, 17) ^ turn(y, 19) ^ (y >>> 10);
        words[i] = words[i - 16] + near + words[i - 7] + far;
      }
      let [a, b, c, d, e, f, g, h] = FIRST_STATE;
      for (let i = 0; i < 64; i++) {
        const choice = (e & f) ^ (~e & g);
        const majority = (a & b) ^ (a & c) ^ (b & c);
        const one = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25);
        const two = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22);
        const first = (h + one + choice + ROUND_KEYS[i] + words[i]) | 0;
        [h, g, f, e, d, c, b] = [g, f, e, (d + first) | 0, c, b, a];
        a = (first + two + majority) | 0;
      }
      return [a, b, c, d, e, f, g, h].map((x, i) => (x + FIRST_STATE[i]) >>> 0);
    }

    /** Whether a pair of numbers is kept away from all training: one in ten. */
    function isHeldOut(left, right) {
      const [low, high] = [Math.min(left, right), Math.max(left, right)];
      if (high < 10) return false;
      const [first, second] = sha256(`${low}+${high}`);
      // The first 8 bytes as one number, modulo 10; 2^32 leaves 6.
      return ((first % 10) * 6 + (second % 10)) % 10 === 0;
    }

    /** The number of so many digits that a uniform draw from [0, 1) picks. */
    function numberOf(digits, uniform) {
      const low = digits > 1 ? 10 ** (digits - 1) : 0;
      return low + Math.floor(uniform * (10 ** digits - low));
    }

    /** Draw questions from one side of the split; numbers have `from` to `to` digits. */
    function drawQuestions(n, { heldOut, uniform, from = 1, to = MOST_DIGITS }) {
      const number = () => {
        const digits = from + Math.floor(uniform() * (to - from + 1));
        return numberOf(digits, uniform());
      };
      if (heldOut && to < 2) throw new Error("No sum of two digits is held out.");
      const drawn = [];
      while (drawn.length < n) {
        const [left, right] = [number(), number()];
        if (isHeldOut(left, right) === heldOut) drawn.push(questionOf(left, right));
      }
      return drawn;
    }

    // The maze: rl_notes/maze/rules.py

    const OFFSETS = [[-1, 0], [0, 1], [1, 0], [0, -1]]; // north, east, south, west
    const MOVES = 3; // forward, left, right
    const START = 1; // the top left cell, facing east

    /** The walls of a maze with one path between any two cells, by depth-first search.

        Four truths a cell: north, east, south, west. `choose(n)` says which of n
        neighbours the search walks to. The exit is never walked through. */
    function carve(size, choose) {
      const walls = new Array(4 * size * size).fill(true);
      const unvisited = new Set(Array(size * size).keys());
      const exit = size * size - 1;
      const path = [0];
      unvisited.delete(0);
      while (path.length > 0) {
        const cell = path.at(-1);
        const next = OFFSETS.map((_, way) => neighbour(size, cell, way));
        const choices = next.flatMap((one, way) => (unvisited.has(one) ? [way] : []));
        if (choices.length === 0) {
          path.pop();
          continue;
        }
        const way = choices[choose(choices.length)];
        walls[4 * cell + way] = false;
        walls[4 * next[way] + ((way + 2) % 4)] = false;
        unvisited.delete(next[way]);
        if (next[way] !== exit) path.push(next[way]);
      }
      return walls;
    }

    /** The cell one step that way, or -1 outside. */
    function neighbour(size, cell, way) {
      const row = Math.floor(cell / size) + OFFSETS[way][0];
      const column = (cell % size) + OFFSETS[way][1];
      const inside = row >= 0 && row < size && column >= 0 && column < size;
      return inside ? row * size + column : -1;
    }

    // The walls of the book's mazes, by "size/seed": a digit of base 16 a cell, whose
    // bits are north, east, south, west from the lowest. The seeds are those of numpy.
    const BOOK_MAZES = {
      "4/0": "bb93ac6ac396d447",
      "5/0": "b9553ac17ac3e92bc52ac556e",
    };

    function bookMaze(name) {
      const bits = [...BOOK_MAZES[name]].map((digit) => parseInt(digit, 16));
      return bits.flatMap((cell) => [0, 1, 2, 3].map((way) => ((cell >> way) & 1) === 1));
    }

    const REWARDS = { stepReward: -0.01, bumpReward: -0.05, exitReward: 1 };

    /** A maze as tables: where each move leads, what it earns, where the exit is.

        States and moves are numbered as in the book; next and rewards hold three
        numbers a state. No robot slips here. */
    function mazeTables(walls, options = {}) {
      const { stepReward, bumpReward, exitReward } = { ...REWARDS, ...options };
      const states = walls.length;
      const size = Math.sqrt(states / 4);
      const isExit = (state) => state >= states - 4;
      const next = new Int32Array(states * MOVES);
      const rewards = new Float64Array(states * MOVES);
      for (let state = 0; state < states; state++) {
        const [cell, heading] = [state >> 2, state & 3];
        const ahead = walls[state] ? state : 4 * neighbour(size, cell, heading) + heading;
        const left = 4 * cell + ((heading + 3) % 4);
        const right = 4 * cell + ((heading + 1) % 4);
        [ahead, left, right].forEach((target, move) => {
          const at = state * MOVES + move;
          const bump = move === 0 && walls[state] ? bumpReward : 0;
          next[at] = isExit(state) ? state : target;
          if (isExit(state)) return; // nothing is earned from there
          rewards[at] = stepReward + bump + (isExit(target) ? exitReward : 0);
        });
      }
      return { size, states, walls, next, rewards, isExit };
    }

    // Exact answers: rl_notes/dynamic_programming.py. A policy is given by its
    // probabilities, three numbers a state.

    /** What each move is worth: its reward and the discounted value of where it leads. */
    function actionValues({ next, rewards, isExit }, values, discount) {
      return rewards.map((reward, at) =>
        isExit(next[at]) ? reward : reward + discount * values[next[at]],
      );
    }

    /** One sweep of value iteration: the best action value of every state. */
    function sweep(maze, values, discount) {
      const q = actionValues(maze, values, discount);
      return values.map((_, state) => Math.max(...q.subarray(3 * state, 3 * state + 3)));
    }

    /** Value iteration: sweeps until nothing moves. */
    function valueIteration(maze, { discount, tolerance = 1e-12, most = 100000 }) {
      let values = new Float64Array(maze.states);
      for (let i = 0; i < most; i++) {
        const improved = sweep(maze, values, discount);
        const moved = improved.some((v, s) => Math.abs(v - values[s]) > tolerance);
        values = improved;
        if (!moved) return values;
      }
      throw new Error("Some policy earns without end: take a discount below 1.");
    }

    /** The matrix I - gamma P of a policy, and what it earns in each state. */
    function underPolicy(maze, probabilities, discount) {
      const { states, next, rewards, isExit } = maze;
      const matrix = Array.from({ length: states }, (_, state) => {
        const row = new Float64Array(states);
        row[state] = 1;
        return row;
      });
      const earned = new Float64Array(states);
      for (let at = 0; at < states * MOVES; at++) {
        const state = Math.floor(at / MOVES);
        earned[state] += probabilities[at] * rewards[at];
        const over = isExit(state) || isExit(next[at]);
        if (!over) matrix[state][next[at]] -= discount * probabilities[at];
      }
      return { matrix, earned };
    }

    /** Solve matrix x = right by elimination, with the largest pivot of each column. */
    function solve(matrix, right) {
      const rows = matrix.map((row, i) => Float64Array.of(...row, right[i]));
      const n = rows.length;
      for (let k = 0; k < n; k++) {
        let best = k;
        for (let i = k; i < n; i++) {
          if (Math.abs(rows[i][k]) > Math.abs(rows[best][k])) best = i;
        }
        [rows[k], rows[best]] = [rows[best], rows[k]];
        if (rows[k][k] === 0) throw new Error("There is no single solution.");
        for (let i = k + 1; i < n; i++) {
          const share = rows[i][k] / rows[k][k];
          if (share === 0) continue;
          for (let j = k; j <= n; j++) rows[i][j] -= share * rows[k][j];
        }
      }
      const x = new Float64Array(n);
      for (let i = n - 1; i >= 0; i--) {
        let rest = rows[i][n];
        for (let j = i + 1; j < n; j++) rest -= rows[i][j] * x[j];
        x[i] = rest / rows[i][i];
      }
      return x;
    }

    /** The exact values of a policy: the solution of V = r + gamma P V. */
    function policyEvaluation(maze, probabilities, discount) {
      const { matrix, earned } = underPolicy(maze, probabilities, discount);
      return solve(matrix, earned);
    }

    /** How often, discounted, a policy is in each state; `start` is the first's. */
    function occupancy(maze, probabilities, discount, start) {
      const { matrix } = underPolicy(maze, probabilities, discount);
      const turned = matrix.map((_, i) => Float64Array.from(matrix, (row) => row[i]));
      return solve(
        turned,
        start.map((share, state) => (maze.isExit(state) ? 0 : share)),
      );
    }

    /** The exact gradient of the expected return in the logits of a table.

        d(s) pi(a | s) A(s, a): the policy gradient theorem. */
    function exactGradient(maze, probabilities, discount, start) {
      const visits = occupancy(maze, probabilities, discount, start);
      const values = policyEvaluation(maze, probabilities, discount);
      const q = actionValues(maze, values, discount);
      return q.map((one, at) => {
        const state = Math.floor(at / MOVES);
        return visits[state] * probabilities[at] * (one - values[state]);
      });
    }

    // The robot's policy and its episodes

    /** A policy with one logit for each state and move, as `TabularPolicy`.

        A row has `states`, what the robot saw before each of its actions. The updates
        of engine.js train it as they train a language model. */
    class TablePolicy {
      constructor(states) {
        this.weights = new Float64Array(states * MOVES);
        this.gradient = new Float64Array(states * MOVES);
      }

      run(rows) {
        const places = rows.map(({ states }) => states);
        return { logits: this.weights, places, size: MOVES };
      }

      backward(run, slopes) {
        slopes.forEach((slope, at) => (this.gradient[at] += slope));
      }

      logprobs(state) {
        return engine.logSoftmax(this.weights, state * MOVES, MOVES);
      }

      /** pi(a | s) of all states, three numbers each. */
      probabilities() {
        const states = this.weights.length / MOVES;
        const found = Array.from({ length: states }, (_, s) => [...this.logprobs(s)]);
        return Float64Array.from(found.flat(), Math.exp);
      }
    }

    /** Play episodes side by side, one from each start, until all have ended.

        One uniform number is drawn per episode and step, whether it is over or not.
        After `most` steps an episode is cut. `groups` says which belong together. */
    function playEpisodes(maze, policy, starts, { groups, most, uniform }) {
      const rows = starts.map((state, i) => {
        const group = groups?.[i] ?? i;
        return { group, state, states: [], actions: [], logprobs: [], rewards: [] };
      });
      const going = ({ state, actions }) => !maze.isExit(state) && actions.length < most;
      while (rows.some(going)) {
        for (const row of rows) {
          const u = uniform();
          if (going(row)) playStep(maze, policy, row, u);
        }
      }
      return rows;
    }

    function playStep(maze, policy, row, u) {
      const logprobs = policy.logprobs(row.state);
      const action = engine.sample(logprobs, u);
      const at = row.state * MOVES + action;
      row.states.push(row.state);
      row.actions.push(action);
      row.logprobs.push(logprobs[action]);
      row.rewards.push(maze.rewards[at]);
      row.state = maze.next[at];
    }

    /** The discounted sum of the rewards from each step on. */
    function returnsToGo({ rewards }, discount) {
      const found = new Array(rewards.length);
      let sum = 0;
      for (let t = rewards.length - 1; t >= 0; t--) {
        found[t] = sum = rewards[t] + discount * sum;
      }
      return found;
    }

    return {
      ...{ PAD, BEGIN, END, VOCABULARY, THINK, END_THINK, encode, answerText },
      ...{ questionOf, numbers, directAnswer, workedAnswer },
      ...{ isRight, followsForm, showsWork, asksAgain },
      ...{ sha256, isHeldOut, numberOf, drawQuestions },
      ...{ MOVES, START, BOOK_MAZES, carve, bookMaze, mazeTables },
      ...{ actionValues, sweep, valueIteration, solve, policyEvaluation, occupancy },
      ...{ exactGradient, TablePolicy, playEpisodes, returnsToGo },
    };
  }

  const live = (globalThis.live ??= {});
  live.makeWorlds = makeWorlds;
  live.worlds = makeWorlds(live.engine);
  if (typeof module !== "undefined") module.exports = live.worlds;
})();
