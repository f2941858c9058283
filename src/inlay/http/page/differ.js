// The first word where answers differ.

/** The words of a text, as [word, where it begins, where it ends]; the last one only where no more of it can come. */
function words(text, isOver) {
  const found = [...text.matchAll(/\S+/g)].map((match) => [match[0], match.index, match.index + match[0].length]);
  if (!isOver && found.length && found.at(-1)[2] === text.length) found.pop();
  return found;
}

/**
 * Where texts differ first: {number, from 1, of that word; places, [start, end] of it in each text, null where there is none}.
 * null: they do not, as far as they have come.
 */
export function firstDifference(texts, areOver) {
  const all = texts.map((text, i) => words(text, areOver[i]));
  for (let at = 0; ; at += 1) {
    const here = all.map((list) => list[at]);
    const known = here.filter((word, i) => word || areOver[i]).map((word) => word?.[0]);
    if (new Set(known).size > 1) {
      return { number: at + 1, places: here.map((word) => (word ? [word[1], word[2]] : null)) };
    }
    if (here.some((word) => !word)) return null;
  }
}

/** What that comes to, in words; nothing while it is not known. */
export function inWords(texts, areOver, found) {
  if (texts.length < 2) return '';
  if (found) return `They differ first at word ${found.number}.`;
  if (!areOver.every(Boolean)) return '';
  if (new Set(texts).size === 1) return 'They are the same.';
  return 'They have the same words; the spaces between them differ.';
}
