// Elements, and what a browser keeps. A text becomes text, whatever stands in it: nothing here makes markup.

export const byId = (id) => document.getElementById(id);

/** An element with its properties and what is in it. */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** A button, and what it does. */
export function button(text, act, properties = {}) {
  const made = make('button', { type: 'button', ...properties }, text);
  made.addEventListener('click', act);
  return made;
}

/** The beginning and end of a digest, as the command line writes it. */
export const short = (digest) => (digest ? `${digest.slice(0, 4)}…${digest.slice(-2)}` : '');

/** What this browser kept under a name; `otherwise` where there is nothing, or it may keep nothing. */
export function kept(name, otherwise, store = 'localStorage') {
  try {
    return JSON.parse(window[store].getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keep a value; whether there was room for it. */
export function keep(name, value, store = 'localStorage') {
  try {
    window[store].setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
