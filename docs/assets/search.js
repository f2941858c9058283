/* A question in words is asked for the words that say something: the theme's search takes "how" and "in" for the beginnings of
   other words, and finds pages that have many of them. */
{
  const EMPTY = new Set((
    "a about an and are as at be by can could do does for from get got had has have how i in into is it its me my no not of on or " +
    "should so than that the their them then there these they this to use used using want was we were what when where which who " +
    "why will with without would you your"
  ).split(" "));
  const QUERY = 2; // the kind of the theme's message to its worker that has a query
  const asked = (query) => {
    const words = query.replace(/[?!.,;]+(?=\s|$)/g, "").split(/\s+/);
    const full = words.filter((word) => !EMPTY.has(word.toLowerCase()));
    return full.some(Boolean) ? full.join(" ") : query;
  };
  const post = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message, ...more) {
    const is_query = message && message.type === QUERY && typeof message.data === "string";
    return post.call(this, is_query ? { ...message, data: asked(message.data) } : message, ...more);
  };
}
