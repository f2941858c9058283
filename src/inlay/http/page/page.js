// The page: a conversation with several models at once.

import { AnswerView, isOver } from './answer.js';
import { curl, python } from './code.js';
import { firstDifference, inWords } from './differ.js';
import { button, byId, make } from './dom.js';
import * as history from './history.js';
import * as models from './models.js';
import * as server from './server.js';
import { isText, restore, settings, write, written } from './settings.js';
import { hide } from './tip.js';

const NARROW = '(max-width: 46rem)'; // as page.css has it

let conversation = fresh();
let turns = []; // what is shown of them
let running = null; // what stops the answers that come now

function fresh(before = []) {
  return { id: `${Date.now()} ${Math.random()}`, time: Date.now(), turns: before };
}

// ---- turns

/** The messages that a model is sent: those that it has answered, with its own answers, and the new one. */
function thread(model, said) {
  const messages = byId('system').value ? [{ role: 'system', content: byId('system').value }] : [];
  for (const turn of conversation.turns.filter((one) => !one.isText)) {
    const answer = turn.answers.find((one) => one.model === model);
    if (!answer?.text || answer.error) continue;
    messages.push({ role: 'user', content: turn.said }, { role: 'assistant', content: answer.text });
  }
  return [...messages, { role: 'user', content: said }];
}

/** Show a turn. */
function show(turn) {
  const views = turn.answers.map((answer) => new AnswerView(answer, copy, asCode));
  const note = make('p', { className: 'note difference' });
  const edit = button('Edit', editLast, { className: 'edit', title: 'Edit and ask again (e)' });
  const head = make('div', { className: 'said' }, make('h2', {}, turn.said), edit);
  const answers = make('div', { className: 'answers' }, ...views.map((view) => view.element));
  const element = make('section', { className: turn.isText ? 'turn text' : 'turn' }, head, answers, note);
  byId('turns').append(element);
  byId('empty').hidden = true;
  const shown = { turn, views, note, element, ranges: [] };
  turns.push(shown);
  compare(shown);
  return shown;
}

/** Mark where the answers of a turn differ first. */
function compare(shown) {
  const views = shown.views.filter((view) => !view.answer.error);
  const texts = views.map((view) => view.answer.text);
  const areOver = views.map((view) => isOver(view.answer));
  const found = views.length > 1 ? firstDifference(texts, areOver) : null;
  shown.note.textContent = inWords(texts, areOver, found);
  shown.ranges = found ? views.flatMap((view, at) => (found.places[at] ? [view.range(found.places[at])] : [])) : [];
  CSS.highlights?.set('differs', new Highlight(...turns.flatMap((one) => one.ranges)));
}

function draw(shown) {
  for (const view of shown.views) view.draw();
  compare(shown);
}

/** What does something at most once for each picture of the screen. */
function paced(act) {
  let asked = 0;
  return () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      act();
    });
  };
}

/** Ask every chosen model. */
async function send() {
  if (running) return;
  fault('');
  const said = byId('message').value;
  const chosen = models.choice();
  try {
    if (!chosen.length) throw new server.Refused(0, 'no model is chosen\n  hint:  choose one in the list');
    if (!said.trim()) throw new server.Refused(0, 'there is nothing to answer\n  hint:  write a message');
    const given = settings();
    const answers = chosen.map((model) => server.asked(model, isText(), isText() ? said : thread(model, said), given));
    await run({ said, isText: isText(), answers });
  } catch (error) {
    if (!(error instanceof server.Refused)) throw error;
    fault(error.message);
  }
}

async function run(turn) {
  const own = conversation;
  own.turns.push(turn);
  running = new AbortController();
  byId('message').value = '';
  const shown = show(turn);
  if (window.matchMedia(NARROW).matches) for (const part of ['models', 'settings']) byId(part).open = false;
  shown.element.scrollIntoView({ block: 'start' });
  busy(true);
  say(`${turn.answers.length === 1 ? 'One model answers' : `${turn.answers.length} models answer`}.`);
  const changes = paced(() => draw(shown));
  const done = await Promise.allSettled(turn.answers.map((answer) => server.answer(answer, running.signal, changes)));
  running = null;
  draw(shown);
  busy(false);
  const counts = ['done', 'stopped', 'failed'].map((state) => [turn.answers.filter((answer) => answer.state === state).length, state]);
  const ends = counts.filter(([count]) => count).map(([count, state]) => `${count} ${state}`);
  const isKept = history.put({ ...own, choice: written() });
  say([`${ends.join(', ')}.`, shown.note.textContent, isKept ? '' : 'There is no room to keep this.'].filter(Boolean).join(' '));
  const refused = done.find((one) => one.status === 'rejected');
  if (refused) needKey(refused.reason);
  else load(); // adapters that were read now have digests
}

function busy(isBusy) {
  const { activeElement } = document;
  byId('stop').disabled = !isBusy;
  byId('send').disabled = isBusy;
  if (isBusy && activeElement === byId('send')) byId('stop').focus();
  if (!isBusy && activeElement === byId('stop')) byId('message').focus();
}

/** Take back the last turn, to say it otherwise; the history has it still. */
function editLast() {
  if (!turns.length) return;
  if (byId('message').value.trim()) {
    fault('a message is written already, and would be lost\n  hint:  send it, or clear it');
    return;
  }
  running?.abort();
  const { turn, element } = turns.pop();
  element.remove();
  conversation = fresh(conversation.turns.slice(0, -1));
  byId('empty').hidden = turns.length > 0;
  fault('');
  byId('message').value = turn.said;
  byId('message').focus();
}

/** Leave this conversation for a new one, or for one of before. */
function restart(next = fresh()) {
  running?.abort();
  conversation = next;
  turns = [];
  byId('turns').replaceChildren();
  byId('empty').hidden = false;
  CSS.highlights?.delete('differs');
  say('');
  fault('');
  conversation.turns.forEach(show);
}

const say = (text) => (byId('status').textContent = text);

function fault(text) {
  byId('fault').textContent = text;
  byId('fault').hidden = !text;
}

// ---- copies

const asCode = (kind, answer) => (kind === 'curl' ? curl : python)(answer, Boolean(server.key()));

async function copy(text, kind) {
  try {
    await navigator.clipboard.writeText(text);
    say(`Copied: ${kind}.`);
  } catch {
    byId('copy-text').value = text;
    byId('copy').showModal();
    byId('copy-text').select();
  }
}

// ---- history

function showHistory() {
  const entries = history.all().map(entryOf);
  byId('history-list').replaceChildren(...(entries.length ? entries : [make('li', { className: 'note' }, 'Nothing yet.')]));
  if (!byId('history').open) byId('history').showModal();
}

function entryOf({ choice, ...kept }) {
  const { said } = kept.turns[0];
  const open = () => {
    byId('history').close();
    restart(kept);
    write(choice);
    byId('message').focus();
  };
  const remove = () => {
    history.remove(kept.id);
    showHistory();
  };
  const item = make('li', {}, button(said.slice(0, 80), open, { className: 'entry' }), button('Remove', remove, { ariaLabel: `Remove ${said.slice(0, 40)}` }));
  item.firstChild.append(make('time', {}, new Date(kept.time).toLocaleString()));
  return item;
}

// ---- models and key

async function load() {
  let fault = '';
  try {
    const found = await server.models();
    byId('key').hidden = true;
    models.show(found);
    const [first] = found;
    if (first) byId('base').textContent = document.title = first.root;
    byId('template-note').hidden = first?.chat_template !== 'plain';
    if (!found.length) fault = 'there is no model that may be asked';
    else if (!first.answers.includes('chats')) fault = `${first.root} answers no prompts\n  found: it is served for ${first.answers}`;
  } catch (error) {
    if (!(error instanceof server.Refused)) throw error;
    if (error.status === 401) needKey(error);
    else fault = error.message;
  }
  byId('list-fault').textContent = fault;
}

function needKey(error) {
  byId('key-note').textContent = server.key() ? error.message : '';
  byId('key').hidden = false;
  byId('key-text').focus();
}

byId('key').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = byId('key-text').value.trim();
  if (!/^[!-~]+$/.test(text)) {
    byId('key-note').textContent = 'A key has letters, digits and signs of ASCII, and no blanks.';
    return;
  }
  server.useKey(text);
  byId('key-text').value = '';
  load().then(() => byId('key').hidden && byId('message').focus());
});

// ---- what is pressed

const SHORTCUTS = {
  m: () => byId('message').focus(),
  '/': () => {
    byId('models').open = true;
    byId('filter').focus();
  },
  s: () => {
    byId('settings').open = true;
    byId('as-chat').focus();
  },
  e: editLast,
  n: () => {
    restart();
    byId('message').focus();
  },
  h: showHistory,
  '?': () => byId('help').showModal(),
};

document.addEventListener('keydown', (event) => {
  if (document.querySelector('dialog[open]')) return;
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  } else if (event.key === 'Escape') {
    hide();
    running?.abort();
  } else if (!event.ctrlKey && !event.metaKey && !event.altKey && SHORTCUTS[event.key] && !isField(event.target)) {
    event.preventDefault();
    SHORTCUTS[event.key]();
  }
});

const isField = (element) => element.matches('textarea, select, input:not([type=checkbox], [type=radio])');

byId('compose').addEventListener('submit', (event) => {
  event.preventDefault();
  send();
});
byId('stop').addEventListener('click', () => running?.abort());
byId('new').addEventListener('click', SHORTCUTS.n);
byId('open-history').addEventListener('click', showHistory);
byId('open-help').addEventListener('click', SHORTCUTS['?']);
byId('clear').addEventListener('click', () => {
  history.clear();
  showHistory();
});
for (const button of document.querySelectorAll('dialog .close')) button.addEventListener('click', () => button.closest('dialog').close());
window.addEventListener('focus', () => running || load());

if (window.matchMedia(NARROW).matches) byId('settings').open = false;
restore();
load();
