// The record: turns, cells, sub-calls and child runs, drawn as they are needed.

const ITEMS_AT_ONCE = 60;
const MOST_NOTES = 12;
const views = [];

function place(r, i) {
  return `r${r}-i${i}`;
}

function facts(...parts) {
  return el('small', { class: 'facts' }, parts.filter(Boolean).join(' \u00b7 '));
}

function at(r, value) {
  return el('span', { class: 'at', title: 'seconds since the run began' }, `${(runs[r].at + value).toFixed(2)} s`);
}

function badge(status) {
  const good = status === 'ok' || status === 'answered';
  const quiet = status === '' || status === 'unfinished' || status === 'no_answer';
  const text = status === '' ? 'unfinished' : status.replaceAll('_', ' ');
  return el('span', { class: `badge ${good ? 'good' : quiet ? 'quiet' : 'bad'}` }, text);
}

// A details element whose inside is made when it is first opened.
function lazy(attributes, summary, fill) {
  const inside = el('div', { class: 'inside' });
  const node = el('details', attributes, el('summary', {}, ...summary), inside);
  let filled = false;
  node.fill = () => {
    if (!filled) fill(inside);
    filled = true;
  };
  node.addEventListener('toggle', () => node.open && node.fill());
  return node;
}

// A reply without its fenced blocks, which are shown as cells.
function prose(reply) {
  const kept = [];
  let fenced = false;
  for (const line of reply.split('\n')) {
    const fence = /^\s*(```|~~~)/u.test(line);
    if (!fence && !fenced) kept.push(line);
    if (fence) fenced = !fenced;
  }
  return kept.join('\n').replace(/\n{3,}/gu, '\n\n').trim();
}

const draw = {
  turn(r, item) {
    const whole = texts[item.text];
    const said = prose(whole);
    const usage = `${compact(tokensIn(item.usage))} tokens in, ${compact(item.usage[1])} out`;
    const stop = item.stop === 'end' ? '' : `stopped by ${item.stop}`;
    return [
      el('h3', { tabindex: '-1' }, `Turn ${item.n} `, facts(seconds(item.took), usage, dollars(item.cost), stop), at(r, item.at)),
      said ? block(said, 'prose', `Reply of turn ${item.n}`) : null,
      said === whole.trim() ? null : lazy({ class: 'quiet' }, ['The whole reply'], (inside) => inside.append(block(whole, 'out', 'Whole reply'))),
    ];
  },
  shown(r, item) {
    const text = texts[item.text];
    const what = item.n === 0 ? 'The first message to the root model' : 'What the root model was shown next';
    const summary = [what, ' ', facts(counted(text.length, 'character'))];
    return [lazy({ class: 'quiet' }, summary, (inside) => inside.append(block(text, 'out', what)))];
  },
  cell(r, item, i) {
    const about = facts(item.took === undefined ? '' : seconds(item.took), item.lost ? 'variables lost' : '', item.truncated ? 'output cut' : '', item.turn === 0 ? 'run by rlm-sandbox itself' : '');
    const nodes = [el('h4', { tabindex: '-1' }, `Cell ${item.n} `, badge(item.status), ' ', about, at(r, item.at))];
    if (item.code !== null) nodes.push(block(texts[item.code], 'code', `Code of cell ${item.n}`));
    if (item.calls.length) nodes.push(calls(r, i, item));
    item.items.filter((inner) => inner.k !== 'note').forEach((inner) => nodes.push(...draw[inner.k](r, inner)));
    nodes.push(...notes(r, item.items.filter((inner) => inner.k === 'note')));
    for (const name of ['stdout', 'stderr', 'result']) {
      if (item[name] !== undefined) nodes.push(el('p', { class: 'label' }, name), block(texts[item[name]], `out ${name}`, `${name} of cell ${item.n}`));
    }
    if (item.error) {
      nodes.push(el('p', { class: 'error' }, `${texts[item.error.name]}: ${texts[item.error.value]}`));
      if (texts[item.error.traceback]) {
        nodes.push(lazy({ class: 'quiet' }, ['Traceback'], (inside) => inside.append(block(texts[item.error.traceback], 'out', 'Traceback'))));
      }
    }
    if (item.detail) nodes.push(el('p', { class: 'note warn' }, item.detail));
    return nodes;
  },
  note(r, item) {
    return [el('p', { class: `note ${item.level}` }, at(r, item.at), item.text)];
  },
  child(r, item) {
    const status = item.status ? badge(item.status) : badge('');
    const query = item.query === undefined ? item.id : texts[item.query];
    const head = ['Child run ', status, ' ', el('span', { class: 'query' }, oneLine(query, 140))];
    if (item.run === null || item.run === undefined) return [el('p', { class: 'note' }, at(r, item.at), ...head, ' (no journal)')];
    const node = lazy({ class: 'child' }, head, (inside) => inside.append(...runHead(item.run), runBody(item.run)));
    views[item.run] = { ...views[item.run], details: node };
    return [node];
  },
};

// Few notes stand one by one; thousands, such as of retries, in a list.
function notes(r, all) {
  if (all.length <= MOST_NOTES) return all.flatMap((item) => draw.note(r, item));
  const detail = el('div', { class: 'detail', 'aria-live': 'polite' });
  const rows = list({
    count: all.length,
    label: 'Notes',
    row: (n) => [el('span', { class: 'n' }, `${(runs[r].at + all[n].at).toFixed(2)} s`), el('span', { class: all[n].level }, oneLine(all[n].text, 160))],
    open: (n) => detail.replaceChildren(...draw.note(r, all[n])),
  });
  rows.node.classList.add('notes');
  return [el('p', { class: 'label' }, counted(all.length, 'note')), rows.node, detail];
}

// What a run was: for a child run at its place; the page's own head has it of the first.
function runHead(r) {
  const run = runs[r];
  const nodes = [];
  if (run.damage) nodes.push(el('p', { class: 'notice' }, run.damage));
  if (run.query === undefined) return nodes;
  nodes.push(block(texts[run.query], 'prose', 'Question'));
  nodes.push(el('p', { class: 'label' }, runFacts(r).join(' \u00b7 ')));
  if (run.answer != null) nodes.push(el('p', { class: 'label' }, run.status === 'answered' ? 'answer' : 'partial answer'), block(texts[run.answer], 'prose', 'Answer'));
  return nodes;
}

function runFacts(r) {
  const run = runs[r];
  const c = run.context;
  const context = ['kind', 'documents', 'characters', 'lines'].filter((key) => c[key] != null && (key !== 'documents' || c.kind !== 'text'));
  return [
    `run ${oneLine(run.id, 60)}`,
    ...(run.session ? [oneLine(run.session, 120)] : []),
    `context: ${context.map((key) => (key === 'kind' ? oneLine(String(c.kind), 20) : `${compact(Number(c[key]))} ${key}`)).join(', ')}`,
    `root ${oneLine(run.root, 40)}, sub-calls ${oneLine(run.sub, 40)}`,
    `policy ${oneLine(run.policy, 40)}`,
  ];
}

function runBody(r) {
  const items = runs[r].items;
  const box = el('div', { class: 'run' });
  const more = el('button', { type: 'button', class: 'more', onclick: () => upTo(drawn + ITEMS_AT_ONCE) });
  let drawn = 0;
  function upTo(wanted) {
    for (const end = Math.min(wanted, items.length); drawn < end; drawn += 1) {
      const item = items[drawn];
      more.before(el('section', { class: `item ${item.k}`, id: place(r, drawn) }, ...draw[item.k](r, item, drawn).filter(Boolean)));
    }
    more.hidden = drawn === items.length;
    more.textContent = `Show more of this run (${number(items.length - drawn)} left)`;
  }
  box.append(more);
  views[r] = { ...views[r], upTo };
  upTo(ITEMS_AT_ONCE);
  return box;
}

// Sub-calls -------------------------------------------------------------------------------------------------------------

function lasted(call, run) {
  return Math.max((call[CALL.end] ?? run.end ?? call[CALL.at]) - call[CALL.at], 0);
}

function failed(call) {
  return call[CALL.answer] === null && call[CALL.end] !== null;
}

function callRow(r, call, longest, skip) {
  const took = lasted(call, runs[r]);
  const bar = el('span', { class: 'bar' });
  bar.style.width = `${Math.max((took / (longest || 1)) * 100, 1)}%`;
  const answer = call[CALL.answer] === null
    ? el('span', { class: failed(call) ? 'bad' : 'quiet' }, failed(call) ? oneLine(`failed: ${call[CALL.code]}`, 60) : 'no answer')
    : el('span', { class: 'answer', dir: 'auto' }, oneLine(texts[call[CALL.answer]], 90));
  return [
    el('span', { class: 'n' }, String(call[CALL.n])),
    el('span', { class: 'took' }, bar, el('span', {}, call[CALL.end] === null ? '\u2013' : seconds(took))),
    el('span', { class: 'prompt', dir: 'auto' }, skip ? '\u2026' : '', oneLine(texts[call[CALL.prompt]].slice(skip), 120)),
    answer,
    el('span', { class: 'cost' }, dollars(call[CALL.cost])),
  ];
}

function callDetail(r, call) {
  const said = [
    call[CALL.model], call[CALL.end] === null ? 'no answer' : seconds(lasted(call, runs[r])),
    `${number(tokensIn(call[CALL.usage]))} tokens in, ${number(call[CALL.usage][1])} out`, dollars(call[CALL.cost]),
    call[CALL.attempts] > 1 ? counted(call[CALL.attempts], 'attempt') : '', call[CALL.code],
  ];
  const nodes = [
    el('h5', { tabindex: '-1' }, `Sub-call ${call[CALL.n]} `, el('small', { class: 'facts' }, said.filter(Boolean).join(' \u00b7 ')), at(r, call[CALL.at])),
    el('p', { class: 'label' }, 'prompt'), block(texts[call[CALL.prompt]], 'out', 'Prompt'),
  ];
  if (call[CALL.answer] !== null) nodes.push(el('p', { class: 'label' }, 'answer'), block(texts[call[CALL.answer]], 'out', 'Answer'));
  if (call[CALL.detail]) nodes.push(el('p', { class: 'error' }, call[CALL.detail]));
  return nodes;
}

function calls(r, i, cell) {
  const all = cell.calls;
  const lost = all.filter(failed).length;
  const open = all.filter((call) => call[CALL.end] === null).length;
  const cost = all.reduce((sum, call) => (call[CALL.cost] === null ? sum : (sum ?? 0) + call[CALL.cost]), null);
  const about = facts(lost ? `${number(lost)} failed` : '', open ? `${number(open)} without an answer` : '', dollars(cost));
  const longest = all.reduce((most, call) => Math.max(most, lasted(call, runs[r])), 0);
  const detail = el('div', { class: 'detail', role: 'region', 'aria-label': 'The sub-call that was chosen', 'aria-live': 'polite' });
  // Prompts of one cell often begin alike: what tells them apart is shown.
  const common = sharedPrefix(all.map((call) => call[CALL.prompt]));
  const skip = common > 24 ? common : 0;
  const rows = list({
    count: all.length,
    label: `Sub-calls of cell ${cell.n}`,
    row: (n) => callRow(r, all[n], longest, skip),
    open: (n) => {
      detail.replaceChildren(...callDetail(r, all[n]));
      history.replaceState(null, '', `#${place(r, i)}-c${n}`);
    },
  });
  cell.choose = (n) => rows.choose(n, true);
  return el('div', { class: 'calls' }, el('p', { class: 'label' }, counted(all.length, 'sub-call'), ' \u00b7 ', about), rows.node, detail);
}

// Going to a place ------------------------------------------------------------------------------------------------------

function reveal(r, i) {
  const above = runs[r].place;
  if (above) {
    reveal(...above);
    if (!views[r]?.details) return null;
    views[r].details.fill();
    views[r].details.open = true;
  }
  views[r].upTo(i + 1);
  return document.getElementById(place(r, i));
}

function goTo(r, i, c) {
  const node = reveal(r, i);
  if (!node) return;
  const item = runs[r].items[i];
  node.scrollIntoView({ block: 'start' });
  (node.querySelector('h3, h4, summary') ?? node).focus({ preventScroll: true });
  if (c !== undefined && item.calls?.[c]) {
    item.choose(c);
    node.querySelector('.detail').scrollIntoView({ block: 'nearest' });
  }
  history.replaceState(null, '', `#${place(r, i)}${c === undefined ? '' : `-c${c}`}`);
}

function goToHash() {
  const match = /^#r(\d{1,7})-i(\d{1,7})(?:-c(\d{1,7}))?$/u.exec(location.hash);
  if (!match) return;
  const [r, i, c] = match.slice(1).map((part) => (part === undefined ? undefined : Number(part)));
  if (runs[r]?.items[i]) goTo(r, i, c);
}
