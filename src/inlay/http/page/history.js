// Conversations that this browser keeps, the newest first.

import { keep, kept } from './dom.js';

const NAME = 'inlay.history.1'; // of this form; another form would have another number
const MOST = 50;
const MOST_CHARACTERS = 2_000_000; // browsers keep about five million for a server

export const all = () => kept(NAME, []);
export const clear = () => keep(NAME, []);
export const remove = (id) => keep(NAME, all().filter((one) => one.id !== id));

/** Keep a conversation in the place of what it was, without the oldest where there is no room; whether it is kept. */
export function put(conversation) {
  const list = [conversation, ...all().filter((one) => one.id !== conversation.id)].slice(0, MOST);
  while (list.length && JSON.stringify(list).length > MOST_CHARACTERS) list.pop();
  return list.length > 0 && keep(NAME, list);
}
