/* A training run of the live parts: GRPO on sums, with nothing but the rule.

   What the chapter "thinking" does in its half minute, on a smaller scale. Loaded after
   engine.js and worlds.js; as there, all of it is one function of what it needs, so that
   a worker can be made from its text. `home` makes it. */

"use strict";

(() => {
  function makeTraining(engine, worlds) {
    const MOST = 64; // tokens of an answer, as in rl_notes.language.answers
    const EXAM_SEED = 20261128; // the same questions and the same luck, before and after
    const THINK = worlds.VOCABULARY.indexOf(worlds.THINK);
    const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

    /** One run: a fine-tuned model that goes on by GRPO, an update at a time. */
    class Run {
      constructor({ weights, questions, answers, rate, seed, question, from }) {
        const model = new engine.Llama(weights);
        this.policy = new engine.LanguagePolicy(model);
        this.optimizer = new engine.Adam({ rate });
        this.uniform = engine.uniforms(seed);
        Object.assign(this, { questions, answers, question, from, updates: 0 });
      }

      get weights() {
        return this.policy.weights;
      }

      /** Ask each question `size` times: the rows, and each answer judged. */
      ask(questions, size, uniform = this.uniform) {
        const { policy } = this;
        const prompts = questions.map((question) => worlds.encode(question));
        const rows = engine.generate(policy, prompts, { size, most: MOST, uniform });
        const judged = rows.map(({ actions, group }) => {
          const text = worlds.answerText(actions);
          const right = worlds.isRight(text, questions[group]);
          return { text, right, work: worlds.showsWork(text), length: actions.length };
        });
        return { rows, judged };
      }

      /** Questions to train on: none held out, and not the reader's own, either way round.

          Their numbers have `from` to four digits. */
      draw(n) {
        const options = { heldOut: false, uniform: this.uniform, from: this.from };
        const pair = (question) => worlds.numbers(question).sort((a, b) => a - b).join();
        const own = pair(this.question);
        const drawn = [];
        while (drawn.length < n) {
          const [question] = worlds.drawQuestions(1, options);
          if (pair(question) !== own) drawn.push(question);
        }
        return drawn;
      }

      /** The probability that the answer to the reader's own question begins with work. */
      think() {
        const tree = new engine.PrefixTree();
        const node = tree.path(worlds.encode(this.question)).at(-1);
        const { memory } = this.policy.model.forward(tree);
        const size = engine.VOCABULARY;
        return Math.exp(engine.logSoftmax(memory.logits, node * size, size)[THINK]);
      }

      /** Sample a batch, say what the model did, and train it on that. */
      update() {
        const asked = this.draw(this.questions);
        const think = this.think();
        const { rows, judged } = this.ask(asked, this.answers);
        const scores = judged.map(({ right }) => Number(right));
        const advantages = engine.grpoUpdate(this.policy, this.optimizer, rows, scores, {
          minibatches: 2,
          order: (n) => engine.shuffled(n, this.uniform),
        });
        const point = { updates: this.updates, ...summary(judged), think };
        this.updates += 1;
        return { point, group: this.telling(asked, judged, advantages) };
      }

      /** The group whose rewards differ most, and the first where many do. */
      telling(asked, judged, advantages) {
        const size = this.answers;
        const members = (values, k) => values.slice(k * size, (k + 1) * size);
        const spreads = asked.map((_, k) => {
          const right = mean(members(judged, k).map((one) => Number(one.right)));
          return right * (1 - right);
        });
        const k = spreads.indexOf(Math.max(...spreads));
        const answers = members(judged, k).map(({ text, right }, i) => {
          return { text, reward: Number(right), advantage: advantages[k * size + i] };
        });
        return { question: asked[k], answers };
      }

      /** Shares with work and right on held-out questions of the chapter's kind. */
      examine(n) {
        const uniform = engine.uniforms(EXAM_SEED);
        const asked = worlds.drawQuestions(n, { heldOut: true, uniform });
        return { n, ...summary(this.ask(asked, 1, uniform).judged) };
      }
    }

    const summary = (judged) => ({
      work: mean(judged.map(({ work }) => Number(work))),
      right: mean(judged.map(({ right }) => Number(right))),
      length: mean(judged.map(({ length }) => length)),
    });

    /** What a page asks of a run, wherever it lives: a function of {call, given}. */
    function serve() {
      let run = null;
      const calls = {
        begin: (options) => {
          run = new Run(options);
          return { exam: run.examine(options.exam) };
        },
        update: () => run.update(),
        finish: ({ exam }) => ({ exam: run.examine(exam), think: run.think() }),
        weights: () => Float32Array.from(run.weights),
      };
      return ({ call, given }) => calls[call](given);
    }

    return { Run, serve };
  }

  /** Where a run lives: in a worker, so that the page stays quick.

      The worker is made from the text of the scripts, as a page opened as a file may
      load none. Where there are no workers the page computes by itself, in pieces.
      Returns {call, end}: call(name, given) promises an answer. */
  function home() {
    const worker = makeWorker();
    if (worker === null) {
      const answer = live.training.serve();
      const later = (message) =>
        new Promise((resolve) => setTimeout(() => resolve(answer(message)), 0));
      return { call: (call, given) => later({ call, given }), end: () => {} };
    }
    const waiting = []; // answers come in the order of the calls
    worker.onmessage = ({ data }) => waiting.shift().resolve(data);
    worker.onerror = (event) => {
      event.preventDefault();
      waiting.splice(0).forEach(({ reject }) => reject(new Error(event.message)));
    };
    const call = (name, given) =>
      new Promise((resolve, reject) => {
        waiting.push({ resolve, reject });
        worker.postMessage({ call: name, given });
      });
    return { call, end: () => worker.terminate() };
  }

  function makeWorker() {
    const text = [
      '"use strict";',
      `const engine = (${live.makeEngine})();`,
      `const worlds = (${live.makeWorlds})(engine);`,
      `const answer = (${live.makeTraining})(engine, worlds).serve();`,
      "onmessage = ({ data }) => postMessage(answer(data));",
    ].join("\n");
    try {
      const blob = new Blob([text], { type: "text/javascript" });
      const address = URL.createObjectURL(blob);
      const worker = new Worker(address);
      URL.revokeObjectURL(address);
      return worker;
    } catch {
      return null;
    }
  }

  const live = (globalThis.live ??= {});
  live.makeTraining = makeTraining;
  live.home = home;
  live.training = makeTraining(live.engine, live.worlds);
  if (typeof module !== "undefined") module.exports = live.training;
})();
