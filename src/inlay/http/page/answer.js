// One answer on the page: its text token by token, and what is known of it.

import { button, make, short } from './dom.js';
import { hide, point } from './tip.js';

/** The least probabilities of tokens that are shaded as 0, which is not at all, 1, 2 and 3; what is less likely is 4. */
const LEVELS = [0.5, 0.2, 0.05, 0.01];
const KEYS = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };

/** Over for good: no more of it comes. */
export const isOver = (answer) => !['waiting', 'streams'].includes(answer.state);

/** The element that shows an answer. `copy`: what happens to a text that is to be copied; `asCode`: the request as code, by kind. */
export class AnswerView {
  constructor(answer, copy, asCode) {
    this.answer = answer;
    this.spans = [];
    this.text = make('div', { className: 'text', tabIndex: 0, role: 'group', ariaLabel: `Answer of ${answer.model}; arrow keys go from token to token` });
    this.text.addEventListener('keydown', (event) => this.#step(event));
    for (const name of ['pointerover', 'focusin']) this.text.addEventListener(name, (event) => point(event.target));
    for (const name of ['pointerleave', 'focusout']) this.text.addEventListener(name, hide);
    this.error = make('pre', { className: 'error', hidden: true });
    this.digests = make('span', { className: 'digests' });
    this.facts = make('p', { className: 'facts' });
    this.copy = (kind, text, what = kind, title = '') =>
      button(what, () => copy(text(), kind), { ariaLabel: `Copy ${kind} of ${answer.model}`, title });
    const codes = ['curl', 'Python'].map((kind) => this.copy(kind, () => asCode(kind, answer)));
    const tools = make('p', { className: 'tools' }, 'Copy: ', this.copy('text', () => answer.text), ...codes);
    const head = make('header', {}, make('h3', {}, answer.model), this.digests);
    this.element = make('article', { className: 'answer', ariaLabel: answer.model }, head, this.text, this.error, this.facts, tools);
    this.draw();
  }

  /** Show the answer as it is now. */
  draw() {
    const { answer } = this;
    this.#drawText();
    this.element.dataset.state = answer.state;
    this.error.hidden = !answer.error;
    this.error.textContent = answer.error ?? '';
    this.facts.textContent = facts(answer).map((fact) => fact.replaceAll(' ', '\u00a0')).join(' · ');
    if (answer.base && !this.digests.childElementCount) {
      const known = Object.entries({ base: answer.base, adapter: answer.adapter }).filter(([, digest]) => digest && digest !== 'none');
      this.digests.append(...known.map(([kind, digest]) => this.copy(`${kind} digest`, () => digest, `${kind} ${short(digest)}`, digest)));
    }
  }

  /** Where the characters of the text from `start` to `end` stand in the document. */
  range([start, end]) {
    const range = document.createRange();
    let at = 0;
    for (const { firstChild: node } of this.spans) {
      if (!node) continue;
      if (start >= at && start < at + node.length) range.setStart(node, start - at);
      if (end > at && end <= at + node.length) range.setEnd(node, end - at);
      at += node.length;
    }
    return range;
  }

  /** Write what is new: of the spans that are there, the last alone may still change. */
  #drawText() {
    const characters = Array.from(this.answer.text);
    const groups = grouped(this.answer.tokens);
    for (let at = Math.max(0, this.spans.length - 1); at < groups.length; at += 1) {
      const { start, tokens } = groups[at];
      this.spans[at] ??= this.text.appendChild(make('span', { tabIndex: -1 }));
      this.spans[at].textContent = characters.slice(start, groups[at + 1]?.start).join('');
      this.spans[at].className = tokens.length ? `token level${level(tokens)}` : '';
      this.spans[at].tokens = tokens;
    }
  }

  /** Go from token to token. */
  #step(event) {
    const step = KEYS[event.key];
    if (step === undefined || !this.spans.length || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const now = this.spans.indexOf(document.activeElement);
    const to = now < 0 && step === -1 ? this.spans.length - 1 : now + step;
    this.spans[Math.min(Math.max(to, 0), this.spans.length - 1)].focus();
  }
}

/** Tokens by the character at which they begin: several have one character where each is a part of it. */
function grouped(tokens) {
  const groups = [];
  for (const token of tokens) {
    if (groups.at(-1)?.start === token[2]) groups.at(-1).tokens.push(token);
    else groups.push({ start: token[2], tokens: [token] });
  }
  if (groups[0]?.start !== 0) groups.unshift({ start: 0, tokens: [] });
  return groups;
}

function level(tokens) {
  const probability = Math.exp(tokens.reduce((sum, token) => sum + token[1], 0));
  const found = LEVELS.findIndex((least) => probability >= least);
  return found < 0 ? LEVELS.length : found;
}

/** What is known of an answer, beside its text. */
function facts(answer) {
  const { state, tokens, first, last, usage, reason, body } = answer;
  const found = { waiting: ['waits'], stopped: ['stopped'], failed: ['failed'] }[state] ?? [];
  const number = usage?.completion_tokens ?? tokens.length;
  if (number) found.push(`${number} token${number === 1 ? '' : 's'}`);
  if (last) found.push(`${((1000 * number) / last).toFixed(0)} tokens/s`);
  if (first !== undefined) found.push(`first after ${first.toFixed(0)} ms`);
  if (reason === 'length') found.push('cut off by length');
  if (body.seed !== undefined) found.push(`seed ${body.seed}`);
  if (state === 'done' && !answer.text) found.push('empty');
  return found;
}
