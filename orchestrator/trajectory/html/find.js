// Finding: words and filters over everything the run holds.

const KINDS = { all: 'everything', turn: 'replies', cell: 'cells', call: 'sub-calls', problem: 'problems', child: 'child runs' };
const ORDERS = { order: 'as they came', took: 'slowest first', cost: 'dearest first' };

let entries = null;
const lowered = [];

function lower(index) {
  return (lowered[index] ??= texts[index].toLowerCase());
}

// One entry a turn, cell, sub-call, note and child, with the texts that are searched in it.
function collect() {
  const found = [];
  const add = (kind, r, i, item, where, more) => found.push({ kind, r, i, where, at: runs[r].at + item.at, texts: [], took: 0, cost: 0, problem: false, ...more });
  const visit = (r, i, item) => {
    if (item.k === 'turn') add('turn', r, i, item, `turn ${item.n}`, { texts: [item.text], took: item.took, cost: item.cost ?? 0, model: runs[r].root });
    if (item.k === 'child') add('child', r, i, item, 'child run', { texts: item.query === undefined ? [] : [item.query], took: (item.end ?? item.at) - item.at, problem: item.status !== 'answered' });
    if (item.k === 'note') add('note', r, i, item, 'note', { text: item.text, problem: item.level === 'warn' });
    if (item.k !== 'cell') return;
    const own = [item.code, item.error?.name, item.error?.value, item.stdout, item.stderr, item.result, item.error?.traceback].filter((index) => index != null);
    add('cell', r, i, item, `cell ${item.n}`, { texts: own, took: item.took ?? 0, problem: item.status !== 'ok' });
    item.items.forEach((inner) => visit(r, i, inner));
    item.calls.forEach((call, c) => {
      const said = call[CALL.answer] === null ? [call[CALL.prompt]] : [call[CALL.prompt], call[CALL.answer]];
      found.push({ kind: 'call', r, i, c, where: `sub-call ${call[CALL.n]}`, at: runs[r].at + call[CALL.at], texts: said, text: `${call[CALL.code]} ${call[CALL.detail]}`, took: lasted(call, runs[r]), cost: call[CALL.cost] ?? 0, problem: call[CALL.answer] === null, model: call[CALL.model] });
    });
  };
  runs.forEach((run, r) => run.items.forEach((item, i) => visit(r, i, item)));
  return found;
}

function select(label, options) {
  return el('select', { 'aria-label': label }, ...Object.entries(options).map(([value, text]) => el('option', { value }, text)));
}

// The part of a text around a hit, the hit marked.
function around(text, words) {
  const hit = words ? text.toLowerCase().indexOf(words) : -1;
  if (hit < 0) return [oneLine(text, 160)];
  const [before, after] = [text.slice(Math.max(hit - 60, 0), hit), text.slice(hit + words.length, hit + words.length + 200)];
  const gap = (string) => (/^\s|\s$/u.test(string) ? ' ' : '');
  const found = el('mark', {}, oneLine(text.slice(hit, hit + words.length), 80));
  return [hit > 60 ? '\u2026' : '', oneLine(before, 60), gap(before.slice(-1)), found, gap(after.slice(0, 1)), oneLine(after, 120)];
}

function find() {
  const models = data.spend.models.map((row) => row[0]);
  const words = el('input', { type: 'search', placeholder: 'Words in code, output, prompts, answers', 'aria-label': 'Words to find', spellcheck: 'false', autocomplete: 'off' });
  const kind = select('Kind', KINDS);
  const model = select('Model', { '': 'any model', ...Object.fromEntries(models.map((name, n) => [`m${n}`, oneLine(name, 40)])) });
  const order = select('Order', ORDERS);
  const told = el('p', { class: 'label', role: 'status' });
  let hits = [], wanted = '', timer = 0;
  const rows = list({
    count: 0,
    label: 'What was found',
    row: (n) => {
      const hit = hits[n];
      const text = hit.texts.map((index) => texts[index]).find((one) => !wanted || one.toLowerCase().includes(wanted)) ?? hit.text ?? '';
      return [
        el('span', { class: 'where' }, hit.r ? `child ${hit.r} ` : '', hit.where),
        el('span', { class: 'took' }, el('span', {}, hit.took ? seconds(hit.took) : '')),
        el('span', { class: `prompt${hit.problem ? ' bad' : ''}`, dir: 'auto' }, ...around(text, wanted)),
        el('span', { class: 'cost' }, hit.cost ? dollars(hit.cost) : ''),
      ];
    },
    open: (n) => goTo(hits[n].r, hits[n].i, hits[n].c),
  });
  rows.node.classList.add('found');
  rows.node.hidden = true;

  function search() {
    wanted = words.value.trim().toLowerCase();
    const idle = !wanted && kind.value === 'all' && !model.value && order.value === 'order';
    rows.node.hidden = idle;
    told.textContent = '';
    if (idle) return;
    entries ??= collect();
    hits = entries.filter((entry) => {
      if (kind.value === 'problem' ? !entry.problem : kind.value !== 'all' && entry.kind !== kind.value) return false;
      if (model.value && entry.model !== models[model.value.slice(1)]) return false;
      return !wanted || entry.texts.some((index) => lower(index).includes(wanted)) || (entry.text ?? '').toLowerCase().includes(wanted);
    });
    if (order.value !== 'order') hits.sort((a, b) => b[order.value] - a[order.value] || a.at - b.at);
    told.textContent = hits.length ? `${number(hits.length)} found` : 'Nothing found';
    rows.node.hidden = !hits.length;
    rows.resize(hits.length);
  }

  words.addEventListener('input', () => {
    clearTimeout(timer);
    timer = setTimeout(search, 150);
  });
  for (const box of [kind, model, order]) box.addEventListener('change', search);
  document.addEventListener('keydown', (event) => {
    if (event.key !== '/' || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/u.test(event.target.tagName)) return;
    event.preventDefault();
    words.focus();
  });
  const bar = el('div', { class: 'bar-of-tools', role: 'search' }, words, kind, models.length > 1 ? model : null, order);
  return [bar, told, rows.node];
}
