// How likely a token was, beside it: the token itself, and the likeliest that could have stood there.

import { byId, make } from './dom.js';

let pointed = null;

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(2)} %`;
const number = (logprob) => logprob.toFixed(4).replace('-', '−');

/** A token as it can be seen: quoted, with its blanks and newlines as escapes where they would vanish. */
const seen = (text) => JSON.stringify(text);

/** Show what is known of a token's element, if it is one. */
export function point(target) {
  hide();
  const span = target.closest('.token');
  if (!span?.tokens.length) return;
  pointed = span;
  span.setAttribute('aria-describedby', 'tip');
  byId('tip').replaceChildren(...span.tokens.flatMap(described));
  byId('tip').hidden = false;
  place();
}

/** Put it below its token, or above where there is no room. */
function place() {
  if (!pointed) return;
  const { top, bottom, left } = pointed.getClientRects()[0] ?? pointed.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height, style } = byId('tip');
  style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - width - 4))}px`;
  style.top = `${bottom + 6 + height < window.innerHeight ? bottom + 6 : Math.max(4, top - height - 6)}px`;
}

document.addEventListener('scroll', place, { capture: true, passive: true });

/** Show nothing. */
export function hide() {
  byId('tip').hidden = true;
  pointed?.removeAttribute('aria-describedby');
  pointed = null;
}

function described([token, logprob, , top]) {
  const title = make('p', {}, make('b', {}, seen(token)), ` log-probability ${number(logprob)}, ${percent(logprob)}`);
  const rows = top.map(([text, value]) =>
    make('tr', { className: text === token ? 'own' : '' }, ...[seen(text), number(value), percent(value)].map((cell) => make('td', {}, cell))),
  );
  return [title, make('table', { ariaLabel: 'The likeliest tokens here' }, make('tbody', {}, ...rows))];
}
