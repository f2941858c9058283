// How answers are asked for: what stands in the fields, kept from one visit to the next.

import { byId, keep, kept } from './dom.js';
import * as models from './models.js';
import { Refused } from './server.js';

const NAME = 'inlay.choice.1';
const WHOLE = ['max_tokens', 'top_k', 'seed'];
const SEEDS = 2 ** 31;
const numbers = [...document.querySelectorAll('#numbers input')];

export const isText = () => byId('as-text').checked;

/** What is chosen and written, to be kept and put back. */
export const written = () => ({
  isText: isText(),
  models: models.wanted(),
  system: byId('system').value,
  other: byId('other').value,
  shade: byId('shade').checked,
  numbers: Object.fromEntries(numbers.map((field) => [field.name, field.value])),
});

function fill(choice) {
  byId(choice.isText ? 'as-text' : 'as-chat').checked = true;
  models.choose(choice.models);
  byId('system').value = choice.system;
  byId('other').value = choice.other;
  byId('shade').checked = choice.shade;
  for (const field of numbers) field.value = choice.numbers[field.name] ?? '';
  reflect();
}

/** Put back what `written` was. */
export function write(choice) {
  fill(choice);
  changed();
}

function changed() {
  keep(NAME, written());
  reflect();
}

/** Let the page follow what is chosen. */
function reflect() {
  byId('system').disabled = isText();
  byId('message-label').textContent = isText() ? 'Text' : 'Message';
  byId('message').placeholder = isText() ? 'Text to continue' : 'Message';
  byId('max-tokens').placeholder = isText() ? '16' : 'what fits';
  byId('turns').classList.toggle('shaded', byId('shade').checked);
}

/** The fields of a request; a seed is always among them where answers are drawn, so that they can be had again. */
export function settings() {
  const found = {};
  for (const { name, value } of numbers.filter((field) => field.value.trim())) {
    found[name] = Number(value);
    if (!(WHOLE.includes(name) ? Number.isSafeInteger : Number.isFinite)(found[name])) {
      throw new Refused(0, `${name} is no ${WHOLE.includes(name) ? 'whole ' : ''}number\n  found: ${value.trim().slice(0, 40)}`);
    }
  }
  const all = { ...found, ...others(byId('other').value) };
  if (all.temperature !== 0) all.seed ??= Math.floor(Math.random() * SEEDS);
  return all;
}

/** Fields that this page sets itself, or whose answers it could not show. */
const OWN = ['model', 'messages', 'prompt', 'stream', 'stream_options', 'logprobs', 'top_logprobs', 'n', 'echo', 'tools'];

/** Fields that somebody wrote as JSON. */
function others(text) {
  let found = {};
  try {
    found = JSON.parse(text.trim() || '{}');
  } catch (error) {
    throw new Refused(0, `other fields are not JSON\n  found: ${error.message}\n  hint:  {"stop": ["\\n"]}`);
  }
  if (Object.prototype.toString.call(found) !== '[object Object]') {
    throw new Refused(0, `other fields are no JSON object\n  found: ${text.trim().slice(0, 80)}\n  hint:  {"stop": ["\\n"]}`);
  }
  const taken = Object.keys(found).filter((name) => OWN.includes(name));
  if (taken.length) throw new Refused(0, `the page can't send this field for you\n  found: ${taken.join(', ')}`);
  return found;
}

/** Put back what was chosen at the last visit, and follow what is chosen now. */
export function restore() {
  fill(kept(NAME, null) ?? written());
  byId('settings').addEventListener('input', changed);
  models.onChange(changed);
}
