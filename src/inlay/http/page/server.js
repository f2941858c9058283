// Requests to the server that this page came from, and what they bring.

import { keep, kept } from './dom.js';

const KEY = 'inlay.key';
const TOP = 5; // alternatives that are asked for with each token

/** What the server, or the way to it, says is wrong. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let held = kept(KEY, null, 'sessionStorage');

/** The API key, for as long as this tab is open; where the browser keeps nothing, until the page is loaded again. */
export const key = () => held;

export function useKey(text) {
  held = text;
  keep(KEY, text, 'sessionStorage');
}

async function ask(path, options = {}) {
  const headers = { 'content-type': 'application/json' };
  if (key()) headers.authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refused(0, `the server can't be reached\n  found: ${error.message}`);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = `the server refuses this\n  found: status ${response.status}`;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // something in between answered, in a form of its own
  }
  throw new Refused(response.status, message);
}

/** The base and the adapters, each under one name. */
export async function models() {
  const { data } = await (await ask('v1/models')).json();
  const ids = new Set(data.map((model) => model.id));
  return data.filter((model) => model.parent === null || !ids.has(model.id.slice(model.root.length + 1)));
}

/** An answer before it comes: what it is asked with, and nothing of it. */
export function asked(model, isText, said, settings) {
  const path = isText ? 'v1/completions' : 'v1/chat/completions';
  const body = { model, ...(isText ? { prompt: said } : { messages: said }), ...settings };
  return { model, path, body, text: '', tokens: [], state: 'waiting' };
}

/** Let an answer come; `changed` is called whenever there is more of it. */
export async function answer(answer, signal, changed) {
  const begun = performance.now();
  try {
    const known = answer.path.endsWith('chat/completions') ? { logprobs: true, top_logprobs: TOP } : { logprobs: TOP };
    const body = { ...answer.body, ...known, stream: true, stream_options: { include_usage: true } };
    const response = await ask(answer.path, { method: 'POST', body: JSON.stringify(body), signal });
    for (const name of ['base', 'adapter']) answer[name] = response.headers.get(`inlay-${name}-digest`);
    for await (const event of events(response)) {
      const length = answer.tokens.length + answer.text.length;
      take(answer, event);
      if (answer.tokens.length + answer.text.length > length) {
        answer.last = performance.now() - begun;
        answer.first ??= answer.last;
        answer.state = 'streams';
      }
      changed();
    }
    answer.state = 'done';
  } catch (error) {
    answer.state = error.name === 'AbortError' ? 'stopped' : 'failed';
    if (answer.state === 'failed') answer.error = error.message;
    if (error.status === 401) throw error;
  } finally {
    changed();
  }
}

/** The objects of a stream, until it says that it is over. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === 'AbortError') throw error;
        return { done: true };
      });
      if (done) throw new Refused(0, 'the connection ended before the answer did');
      const parts = (held + value).split('\n\n');
      held = parts.pop();
      for (const part of parts) {
        const text = part.replace(/^data: /, '');
        if (text === '[DONE]') return;
        yield JSON.parse(text);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Put what an event brings into an answer. */
function take(answer, event) {
  if (event.error) throw new Refused(0, event.error.message);
  if (event.usage) answer.usage = event.usage;
  for (const choice of event.choices) {
    answer.text += choice.delta?.content ?? choice.text ?? '';
    answer.reason = choice.finish_reason ?? answer.reason;
    answer.tokens.push(...tokens(choice.logprobs));
  }
}

const rounded = (value) => (value === null ? null : Math.round(value * 1e4) / 1e4);

/** Tokens as [text, log-probability, the character that it begins at, likeliest tokens as [text, log-probability]]. */
function tokens(known) {
  if (!known) return [];
  if (known.content) {
    return known.content.map((one) => [
      one.token,
      rounded(one.logprob),
      one.text_offset,
      one.top_logprobs.map((top) => [top.token, rounded(top.logprob)]),
    ]);
  }
  return known.tokens.map((token, at) => [
    token,
    rounded(known.token_logprobs[at]),
    known.text_offset[at],
    Object.entries(known.top_logprobs[at] ?? {})
      .map(([text, value]) => [text, rounded(value)])
      .sort((a, b) => b[1] - a[1]),
  ]);
}
