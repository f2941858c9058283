// Ask the search of the site as the browser does: the theme's own worker, over the index that mkdocs wrote, and what the site
// makes of a query before.
// node search_site.js WORKER INDEX SCRIPT, queries as a JSON list on stdin; prints a list of pages for each, the best first.
const fs = require("fs"), vm = require("vm");
const [worker, index, script] = process.argv.slice(2);
let hear, answer;
globalThis.self = globalThis;
globalThis.addEventListener = (name, listener) => { hear = listener; };
globalThis.postMessage = (message) => answer(message);
globalThis.Worker = class { postMessage(message) { hear({ data: message }); } };
for (const file of [worker, script]) vm.runInThisContext(fs.readFileSync(file, "utf8"));

const ask = (type, data) => new Promise((resolve) => { answer = resolve; new Worker().postMessage({ type, data }); });
const page = (location) => location.split("#")[0];

(async () => {
  const { config, docs } = JSON.parse(fs.readFileSync(index, "utf8"));
  const fields = { title: { boost: 1e3 }, text: { boost: 1 }, tags: { boost: 1e6 } };
  await ask(0, { config: { ...config, fields }, docs, options: { suggest: false } });
  const found = [];
  for (const query of JSON.parse(fs.readFileSync(0, "utf8")))
    found.push((await ask(2, query)).data.items.map((group) => page(group[0].location)));
  console.log(JSON.stringify(found));
})();
