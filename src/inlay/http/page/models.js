// The list of models: which there are, and which are chosen.

import { byId, make, short } from './dom.js';

/** A browser opens so many connections to one server, and each answer takes one. */
const MOST = 6;

let shown = '';
let list = [];
let chosen = [];
let listen = () => {};

/** The models that are chosen and there, in the order of the list. */
export const choice = () => list.filter((model) => chosen.includes(model.id)).map((model) => model.id);

/** All that are chosen, also those that are not there now. */
export const wanted = () => chosen;

/** Say what is to happen when another choice is made. */
export const onChange = (act) => (listen = act);

/** Choose these, as far as they are there. */
export function choose(ids) {
  chosen = ids.slice(0, MOST);
  draw();
}

/** Show these models; those that are chosen come first. Where the choice of the last visit is of other models, some are chosen. */
export function show(models) {
  if (JSON.stringify(models) === shown) return; // and whoever is in the list stays there
  if (!shown && !models.some((model) => chosen.includes(model.id))) chosen = models.slice(0, 3).map((model) => model.id);
  shown = JSON.stringify(models);
  const isChosen = (model) => chosen.includes(model.id);
  list = [...models.filter(isChosen), ...models.filter((model) => !isChosen(model))];
  draw();
}

function draw() {
  byId('model-list').replaceChildren(...list.map(row));
  filter();
  count();
}

function row(model) {
  const box = make('input', { type: 'checkbox', value: model.id, checked: chosen.includes(model.id) });
  box.addEventListener('change', () => {
    chosen = chosen.filter((id) => id !== model.id);
    if (box.checked) chosen.push(model.id);
    count();
    listen();
  });
  const digest = make('span', { className: 'digest', title: model.digest ?? '' }, short(model.digest));
  return make('li', {}, make('label', {}, box, make('span', { className: 'name' }, model.id), model.parent ? '' : make('i', {}, 'base'), digest));
}

function count() {
  const number = choice().length;
  byId('model-count').textContent = `${number} of ${list.length}${number === MOST ? ', as many as a browser can ask at once' : ''}`;
  for (const box of document.querySelectorAll('#model-list input')) box.disabled = number >= MOST && !box.checked;
}

function filter() {
  const wanted = byId('filter').value.trim().toLowerCase();
  for (const item of byId('model-list').children) item.hidden = !item.querySelector('input').value.toLowerCase().includes(wanted);
}

byId('filter').addEventListener('input', filter);
byId('filter').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter') return;
  event.preventDefault();
  [...byId('model-list').children].find((item) => !item.hidden)?.querySelector('input').click();
});
