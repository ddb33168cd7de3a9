/* Explorer "drive": the reader drives the robot through the maze of the book.

   The maze is loaded on the first click: live/weights.js. */

"use strict";

(() => {
  const inNode = typeof module !== "undefined";
  const shared = inNode ? require("./explorers.js") : globalThis.explorers;
  const { element, fixed, line, svg, text } = shared;
  const live = (globalThis.live ??= {});

  const [MAZE, SIZE] = ["5/0", 5];
  const HEADINGS = ["north", "east", "south", "west"];
  const MOVES = ["forward", "left turn", "right turn"];
  const KEYS = { ArrowUp: 0, ArrowLeft: 1, ArrowRight: 2 };

  /** A drive: where the robot is, what it did, and which walls it has met. */
  class Drive {
    constructor() {
      const { worlds } = live;
      this.maze = worlds.mazeTables(worlds.bookMaze(MAZE));
      this.state = worlds.START;
      this.steps = []; // {move, reward, wall, state}, the state after it
      this.met = new Set(); // walls, by state: the cell and the side
    }

    get over() {
      return this.maze.isExit(this.state);
    }

    /** The fewest moves from the start to the exit, by breadth-first search. */
    fewest() {
      let [reached, moves] = [new Set([live.worlds.START]), 0];
      while (![...reached].some((state) => this.maze.isExit(state))) {
        const next = [...reached].flatMap((state) =>
          MOVES.map((_, move) => this.maze.next[3 * state + move]),
        );
        reached = new Set([...reached, ...next]);
        moves += 1;
      }
      return moves;
    }

    /** Make one move, 0 forward, 1 left, 2 right; nothing at the exit. */
    go(move) {
      if (this.over) return;
      const at = 3 * this.state + move;
      const wall = move === 0 && this.maze.walls[this.state];
      if (wall) this.met.add(this.state);
      this.state = this.maze.next[at];
      const reward = this.maze.rewards[at];
      this.steps.push({ move, reward, wall, state: this.state });
    }

    /** The sum of the rewards. */
    earned() {
      return this.steps.reduce((sum, { reward }) => sum + reward, 0);
    }

    /** The walls to draw: all, or those that were met. */
    walls(hidden) {
      const all = this.maze.walls.flatMap((wall, at) => (wall ? [at] : []));
      return hidden ? all.filter((at) => this.met.has(at)) : all;
    }
  }

  /** Where a robot is: "row 0, column 0, looking east". */
  function place(state) {
    const cell = state >> 2;
    const [row, column] = [Math.floor(cell / SIZE), cell % SIZE];
    return `row ${row}, column ${column}, looking ${HEADINGS[state & 3]}`;
  }

  /** What a step did, in words. */
  function told({ move, reward, wall, state }, over) {
    const what = `${MOVES[move]}: ${fixed(reward, 2)}`;
    if (over) return `${what}, the exit.`;
    return `${what}${wall ? ", a wall" : ""}. Now at ${place(state)}.`;
  }

  // Drawing

  const [CELL, EDGE] = [58, 4];
  const SIDES = [[0, 0, 1, 0], [1, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]; // north first
  const corner = (k) => EDGE + k * CELL;

  function drawnWall(at) {
    const [cell, side] = [at >> 2, at & 3];
    const [row, column] = [Math.floor(cell / SIZE), cell % SIZE];
    const [x1, y1, x2, y2] = SIDES[side];
    return line(...[column + x1, row + y1, column + x2, row + y2].map(corner), "live-wall");
  }

  function grid() {
    const ends = [corner(0), corner(SIZE)];
    return Array.from({ length: SIZE + 1 }, (_, k) => [
      line(ends[0], corner(k), ends[1], corner(k), "live-grid"),
      line(corner(k), ends[0], corner(k), ends[1], "live-grid"),
    ]).flat();
  }

  /** A triangle whose tip shows where the robot looks. */
  function robot(state) {
    const cell = state >> 2;
    const [x, y] = [cell % SIZE, Math.floor(cell / SIZE)].map((k) => corner(k) + CELL / 2);
    const turn = `translate(${x} ${y}) rotate(${90 * (state & 3)})`;
    const d = "M0 -17 L13 14 L0 7 L-13 14 Z";
    return svg("path", { d, transform: turn, class: "live-robot" });
  }

  const ABOUT =
    "A robot has no map: it knows its cell and where it looks, and gets a number after " +
    "each step. Drive it, with the walls shown or hidden as they are for the robot.";

  class Wheel {
    constructor() {
      const button = (name) => element("button", { type: "button" }, name);
      this.start = button("Start");
      this.start.classList.add("live-go");
      this.moves = ["\u2191 Forward", "\u2190 Turn left", "Turn right \u2192"].map(button);
      this.hidden = element("input", { type: "checkbox" });
      const hide = element("label", { class: "live-check" }, this.hidden, " hide the walls");
      const row = element("div", { class: "live-buttons" });
      row.append(this.start, ...this.moves, hide);
      this.status = element("p", { class: "live-status", "aria-live": "polite" });
      const side = 2 * EDGE + SIZE * CELL;
      this.picture = shared.picture(side, side);
      this.field = element("div", { class: "live-field-of-play", tabindex: 0 });
      this.field.setAttribute("role", "group");
      const keys = "The maze: arrow up goes forward, arrows left and right turn";
      this.field.setAttribute("aria-label", keys);
      this.field.append(this.picture.node);
      this.counts = ["moves", "sum of the rewards"].map((name) => {
        return { name, node: element("dd") };
      });
      const numbers = element("dl", { class: "explorer-numbers" });
      numbers.append(
        ...this.counts.flatMap(({ name, node }) => [element("dt", {}, name), node]),
      );
      this.log = element("ol", { class: "live-log", reversed: "" });
      const caption = element("p", { class: "live-muted" }, `${keys}.`);
      const beside = element("div", {}, numbers, this.log);
      this.results = element(
        "div",
        { class: "explorer-grid" },
        element("div", {}, this.field, caption),
        beside,
      );
      this.parts = [element("p", {}, ABOUT), row, this.status, this.results];
      this.start.addEventListener("click", () => this.begin());
      this.hidden.addEventListener("change", () => this.show());
      this.moves.forEach((one, move) => one.addEventListener("click", () => this.go(move)));
      this.field.addEventListener("keydown", (event) => {
        const move = KEYS[event.key];
        if (move === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
        event.preventDefault();
        this.go(move);
      });
      this.reset();
    }

    reset() {
      this.drive = null;
      this.hidden.checked = false;
      this.status.textContent = "";
      this.show();
    }

    async begin() {
      try {
        await live.ready();
      } catch (fault) {
        this.status.textContent = fault.message;
        return;
      }
      this.drive = new Drive();
      this.status.textContent = `The robot is at ${place(this.drive.state)}.`;
      this.show();
      this.field.focus();
    }

    go(move) {
      const { drive } = this;
      if (drive === null || drive.over) return;
      drive.go(move);
      const said = told(drive.steps.at(-1), drive.over);
      const n = drive.steps.length;
      this.status.textContent = drive.over
        ? `${said} You are out, in ${n} moves. The fewest are ${drive.fewest()}.`
        : said;
      this.show();
    }

    show() {
      const { drive } = this;
      this.results.hidden = drive === null;
      this.start.textContent = drive === null ? "Start" : "Start again";
      const left = this.moves.includes(document.activeElement);
      this.moves.forEach((one) => (one.disabled = drive === null || drive.over));
      if (left && drive?.over) this.start.focus({ preventScroll: true });
      if (drive === null) return;
      const exit = corner(SIZE - 1) + CELL / 2;
      this.picture.draw(
        `The maze. The robot is at ${place(drive.state)}. The exit is at row 4, column 4.`,
        ...grid(),
        text(exit, exit + 4, "exit", { "text-anchor": "middle" }),
        ...drive.walls(this.hidden.checked).map(drawnWall),
        robot(drive.state),
      );
      const [moves, sum] = this.counts;
      moves.node.textContent = String(drive.steps.length);
      sum.node.textContent = fixed(drive.earned(), 2);
      const last = drive.steps.slice(-8).reverse();
      this.log.setAttribute("start", drive.steps.length);
      this.log.replaceChildren(
        ...last.map(({ move, reward, wall }) =>
          element(
            "li",
            {},
            `${MOVES[move]}: ${fixed(reward, 2)}${wall ? " (a wall)" : ""}`,
          ),
        ),
      );
    }
  }

  shared.define("drive", {
    title: "Drive the robot yourself",
    attributes: [],
    controls: () => [],
    build() {
      const wheel = new Wheel();
      return { parts: wheel.parts, render: () => {}, reset: () => wheel.reset() };
    },
  });

  if (inNode) module.exports = { Drive, place, told };
})();
