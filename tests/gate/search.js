// What the search of built pages finds: node search.js FOLDER QUERY prints the pages.
"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [folder, query] = process.argv.slice(2);
const page = vm.createContext({
  _: (text) => text,
  _ready: () => {},
  console,
  document: { getElementById: () => null },
  DOCUMENTATION_OPTIONS: {},
  localStorage: { setItem: () => {} },
  window: {},
});
const run = (file, more = "") =>
  vm.runInContext(fs.readFileSync(path.join(folder, file), "utf8") + more, page);
run("_static/language_data.js");
run("_static/sphinx_highlight.js");
run("_static/searchtools.js", "; globalThis.Search = Search;");
run("searchindex.js");
const found = page.Search._performSearch(...page.Search._parseQuery(query));
for (const [name] of found.reverse()) console.log(name); // the best stands last
