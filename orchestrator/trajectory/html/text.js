// Text from strangers, made visible. Nothing in this page ever parses markup: every string ends in a text node.

const data = JSON.parse(document.getElementById('data').textContent);
const { runs, texts } = data;
// The fields of a sub-call, which is an array (see fold.py).
const CALL = { n: 0, at: 1, end: 2, model: 3, prompt: 4, answer: 5, code: 6, detail: 7, usage: 8, cost: 9, attempts: 10 };

// What hides, reorders or steers: controls, lone surrogates, default-ignorable code points, bidirectional controls, line
// separators, interlinear marks. Tab and newline stay.
const HIDDEN = /(?![\n\t])[\p{Cc}\p{Cs}\p{Default_Ignorable_Code_Point}\p{Bidi_Control}\u2028\u2029\ufff9-\ufffb]/gu;
const NAMES = {
  0xad: 'soft hyphen', 0x61c: 'Arabic letter mark', 0x200b: 'zero width space', 0x200c: 'zero width non-joiner',
  0x200d: 'zero width joiner', 0x200e: 'left-to-right mark', 0x200f: 'right-to-left mark', 0x2028: 'line separator',
  0x2029: 'paragraph separator', 0x202a: 'left-to-right embedding', 0x202b: 'right-to-left embedding',
  0x202c: 'pop directional formatting', 0x202d: 'left-to-right override', 0x202e: 'right-to-left override',
  0x2060: 'word joiner', 0x2066: 'left-to-right isolate', 0x2067: 'right-to-left isolate',
  0x2068: 'first strong isolate', 0x2069: 'pop directional isolate', 0xfeff: 'byte order mark',
};
// The first 32 characters of ASCII, and delete, have names that everybody who knows them knows.
const CONTROLS = 'NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US'.split(' ');
// A text made of hidden characters must not make a page of a million elements.
const MOST_MARKS = 1000;
const EXCERPT = 3000;
const EXCERPT_LINES = 24;

// An element. Every string that goes into it is made visible, so that none can be forgotten.
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'class') node.className = value;
    else if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, '');
    else if (value !== false && value != null) node.setAttribute(key, String(value).replace(HIDDEN, '\u25af'));
  }
  const there = children.filter((child) => child != null && child !== '');
  node.append(...there.map((child) => (typeof child === 'string' ? shown(child) : child)));
  return node;
}

function hex(code) {
  return 'U+' + code.toString(16).toUpperCase().padStart(4, '0');
}

// The text as nodes, what is hidden shown by name. Equal ones in a row are one mark with a count.
function shown(text) {
  const fragment = document.createDocumentFragment();
  let from = 0, marks = 0, mark = null, last = -1, count = 0;
  text = text.replaceAll('\r\n', '\n');
  for (const match of text.matchAll(HIDDEN)) {
    const code = match[0].codePointAt(0);
    if (match.index > from || mark === null || code !== last) {
      fragment.append(text.slice(from, match.index));
      if (++marks > MOST_MARKS) {
        fragment.append(text.slice(match.index).replace(HIDDEN, '\u25af'));
        return fragment;
      }
      mark = el('span', { class: 'hidden-char' });
      fragment.append(mark);
      last = code;
      count = 0;
    }
    count += 1;
    from = match.index + match[0].length;
    const label = CONTROLS[code] ?? hex(code);
    mark.textContent = count > 1 ? `${label} \u00d7${count}` : label;
    mark.title = `${hex(code)}${NAMES[code] ? ' ' + NAMES[code] : ''}`;
  }
  fragment.append(text.slice(from));
  return fragment;
}

// One line for a list; what is hidden becomes a box.
function oneLine(text, most) {
  const line = text.slice(0, most * 4).replace(/\s+/gu, ' ').trim().replace(HIDDEN, '\u25af');
  const cut = [...line.slice(0, most * 2)];
  return cut.length > most || text.length > most * 4 ? cut.slice(0, most - 1).join('') + '\u2026' : line;
}

// How much the texts have in common at their beginnings, back to the end of a word.
function sharedPrefix(indices) {
  if (indices.every((index) => index === indices[0])) return 0;
  const one = texts[indices[0]];
  let length = Math.min(one.length, 2000);
  for (const index of indices) {
    const other = texts[index];
    let n = 0;
    while (n < length && n < other.length && other[n] === one[n]) n += 1;
    length = n;
  }
  const common = one.slice(0, length);
  return Math.max(common.lastIndexOf(' '), common.lastIndexOf('\n')) + 1;
}

function excerpt(text) {
  let end = Math.min(text.length, EXCERPT);
  for (let place = -1, line = 0; line < EXCERPT_LINES; line += 1) {
    place = text.indexOf('\n', place + 1);
    if (place < 0 || place >= end) return end;
    if (line === EXCERPT_LINES - 1) end = place;
  }
  return end;
}

// A block of text, long ones folded. `kind` is code, out or prose.
function block(text, kind, label) {
  text = text.replace(/\n+$/u, '');
  const body = el('pre', { class: `block ${kind}`, dir: kind === 'prose' ? 'auto' : 'ltr', 'aria-label': label });
  const end = excerpt(text);
  if (text.length - end < 200) {
    body.append(shown(text));
    return body;
  }
  const button = el('button', { type: 'button', class: 'more', 'aria-expanded': 'false', onclick: turn });
  function turn() {
    const open = button.getAttribute('aria-expanded') === 'false';
    draw(open);
    if (!open && body.getBoundingClientRect().top < 0) body.scrollIntoView({ block: 'nearest' });
  }
  function draw(open) {
    body.replaceChildren(shown(open ? text : text.slice(0, end)), open ? '' : text[end] === '\n' ? '\n\u2026' : '\u2026');
    button.setAttribute('aria-expanded', String(open));
    button.textContent = open ? 'Show less' : `Show all ${number(text.length)} characters`;
  }
  draw(false);
  return el('div', { class: 'folded' }, body, button);
}

// Numbers --------------------------------------------------------------------------------------------------------------

const grouped = new Intl.NumberFormat('en-US');

function number(value) {
  return grouped.format(value);
}

function compact(value) {
  if (value < 10000) return number(value);
  const [size, unit] = value < 1e6 ? [1e3, 'k'] : [1e6, 'M'];
  return `${(value / size).toFixed(1).replace(/\.0$/u, '')}${unit}`;
}

function counted(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? '' : 's'}`;
}

function seconds(value) {
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  const whole = Math.round(value);
  const minute = Math.floor(whole / 60) % 60;
  const second = String(whole % 60).padStart(2, '0');
  const hour = Math.floor(whole / 3600);
  return hour ? `${hour}:${String(minute).padStart(2, '0')}:${second} h` : `${minute}:${second} min`;
}

function dollars(value) {
  if (value === null || value === undefined) return '\u2013';
  return value && value < 0.01 ? `$${value.toFixed(4)}` : `$${value.toFixed(2)}`;
}

function tokensIn(usage) {
  return usage[0] + usage[2] + usage[3];
}
