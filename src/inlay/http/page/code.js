// A request as a command for a shell, and as Python. The key is no part of either: it is taken from the environment.

/** A text as one word of a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** What is sent to the server that the page came from, by curl. */
export function curl({ path, body }, hasKey) {
  const parts = [`curl -sS ${quoted(new URL(path, document.baseURI).href)}`, "-H 'content-type: application/json'"];
  if (hasKey) parts.push('-H "authorization: Bearer $INLAY_API_KEY"');
  return `${[...parts, `-d ${quoted(JSON.stringify(body, null, 2))}`].join(' \\\n  ')}\n`;
}

/** Settings that OpenAI's client has arguments for, in both kinds of request; the others go beside them. */
const KNOWN = ['temperature', 'top_p', 'max_tokens', 'seed', 'stop', 'presence_penalty', 'frequency_penalty', 'logit_bias'];

/** The same by OpenAI's client for Python. */
export function python({ path, body }, hasKey) {
  const isChat = path.endsWith('chat/completions');
  const { model, messages, prompt, ...settings } = body;
  const given = { model, ...(isChat ? { messages } : { prompt }) };
  const more = {};
  for (const [name, value] of Object.entries(settings)) (KNOWN.includes(name) ? given : more)[name] = value;
  if (Object.keys(more).length) given.extra_body = more;
  const lines = Object.entries(given).map(([name, value]) => `    ${name}=${literal(value, '    ')},\n`);
  const address = literal(new URL('v1', document.baseURI).href);
  return [
    hasKey ? 'import os\n\n' : '',
    'import openai\n\n',
    `client = openai.OpenAI(base_url=${address}, api_key=${hasKey ? 'os.environ["INLAY_API_KEY"]' : '"none"'})\n`,
    `answer = client.${isChat ? 'chat.' : ''}completions.create(\n${lines.join('')})\n`,
    `print(answer.choices[0].${isChat ? 'message.content' : 'text'})\n`,
  ].join('');
}

/** A JSON value as Python writes it: its texts and numbers are Python's too. */
function literal(value, indent = '') {
  if (value === null) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (typeof value !== 'object') return JSON.stringify(value);
  if (!Array.isArray(value)) {
    return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, indent)}`).join(', ')}}`;
  }
  const items = value.map((one) => `\n${indent}    ${literal(one, `${indent}    `)},`);
  return items.length ? `[${items.join('')}\n${indent}]` : '[]';
}
