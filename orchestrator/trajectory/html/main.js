// The page: head, outline, and the sections of the main column.

const first = runs[0];

const MOST_LINKS = 400;

function total(column) {
  return data.spend.models.reduce((sum, row) => sum + (row[column] ?? 0), 0);
}

// What was used of each budget: by the ledger's account, or for a run cut off by what was recorded.
function used() {
  const counts = { calls: total(1), tokens: total(2) + total(3), cost_usd: total(5), children: runs.length - 1, turns: first.items.filter((item) => item.k === 'turn').length, wall_s: first.end ?? 0 };
  return { ...counts, ...first.usage };
}

function section(id, title, ...nodes) {
  return el('section', { id, 'aria-labelledby': `${id}-title` }, el('h2', { id: `${id}-title` }, title), ...nodes);
}

function head() {
  const spent = used();
  const about = [
    counted(spent.turns, 'turn'), counted(allCalls().length, 'sub-call'), runs.length > 1 ? counted(runs.length - 1, 'child run') : '',
    dollars(data.spend.models.length && data.spend.models.every((row) => row[5] === null) ? null : spent.cost_usd), seconds(spent.wall_s),
    new Date(first.time * 1000).toString() === 'Invalid Date' ? '' : new Date(first.time * 1000).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' }),
  ];
  const question = texts[first.query].trim();
  const long = question.length > 240;
  const nodes = [
    el('p', { class: 'over' }, badge(first.status), ' ', about.filter(Boolean).join(' \u00b7 ')),
    el('h1', { dir: 'auto' }, long ? oneLine(question, 200) : question),
  ];
  if (long) nodes.push(lazy({ class: 'quiet' }, ['The whole question'], (inside) => inside.append(block(question, 'prose', 'Question'))));
  nodes.push(el('p', { class: 'facts' }, runFacts(0).join(' \u00b7 ')));
  if (first.damage) nodes.push(el('p', { class: 'notice' }, `The journal is damaged; what stands before is shown. ${first.damage}`));
  else if (first.status === 'unfinished') nodes.push(el('p', { class: 'notice' }, 'The journal ends before the run does: the run was cut off, or goes on.'));
  if (data.cut) nodes.push(el('p', { class: 'notice' }, `${counted(data.cut, 'text')} too long for a page: beginning and end are here, the journal has the whole.`));
  document.getElementById('head').append(...nodes);
}

function answer() {
  if (first.answer == null && !first.reason) return null;
  const nodes = [];
  if (first.reason) nodes.push(el('p', { class: 'note warn' }, first.status === 'answered' ? `answered when ${first.reason} ran out` : first.reason));
  if (first.answer != null) nodes.push(block(texts[first.answer], 'prose final', 'Answer'));
  return section('answer', first.answer == null ? 'No answer' : first.status === 'answered' ? 'Answer' : 'Partial answer', ...nodes);
}

function limits() {
  const reached = runs.flatMap((run, r) => run.limits.map((limit) => el('li', {}, at(r, limit.at), `${r ? `child ${r}: ` : ''}${limit.text}`)));
  const refused = runs.flatMap((run, r) => run.items.flatMap((item, i) => [item, ...(item.items ?? [])].filter((one) => one.k === 'note' && one.text.startsWith('refused ')).map((one) => [r, i, one])));
  if (!reached.length && !refused.length) return null;
  const some = refused.slice(0, 8).map(([r, i, one]) => el('li', {}, at(r, one.at), el('a', { href: `#${place(r, i)}`, onclick: (event) => { event.preventDefault(); goTo(r, i); } }, one.text)));
  const more = refused.length > some.length ? [el('li', { class: 'quiet' }, `and ${number(refused.length - some.length)} refusals more: see Find, problems`)] : [];
  return section('limits', 'Limits', el('ul', { class: 'plain' }, ...reached, ...some, ...more));
}

function budgets() {
  const spent = used();
  const named = { calls: 'calls', tokens: 'tokens', cost_usd: 'cost', wall_s: 'time', turns: 'turns', children: 'child runs' };
  const said = { cost_usd: dollars, wall_s: seconds };
  const rows = Object.entries(named).filter(([key]) => typeof first.budget[key] === 'number').map(([key, name]) => {
    const share = Math.min(spent[key] / (first.budget[key] || 1), 1);
    const fill = el('span', { class: `fill${share >= 1 ? ' full' : share > 0.8 ? ' near' : ''}` });
    fill.style.width = `${share * 100}%`;
    const say = said[key] ?? compact;
    return el('tr', {}, el('th', { scope: 'row' }, name), el('td', { class: 'wide' }, el('span', { class: 'track' }, fill)), el('td', { class: 'num' }, `${say(spent[key])} of ${say(first.budget[key])}`));
  });
  return rows.length ? el('table', { class: 'budgets' }, el('caption', {}, 'Of the budget'), el('tbody', {}, ...rows)) : null;
}

function table(caption, rows) {
  const heads = [caption, 'calls', 'tokens in', 'cached', 'out', 'cost'];
  const body = rows.map(([name, calls, taken, out, cached, cost]) => el('tr', {}, el('th', { scope: 'row' }, oneLine(name, 60)), ...[number(calls), number(taken), number(cached), number(out), dollars(cost)].map((text) => el('td', { class: 'num' }, text))));
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `Spend by ${caption}` }, el('table', {}, el('thead', {}, el('tr', {}, ...heads.map((text, n) => el('th', { scope: 'col', class: n ? 'num' : '' }, text)))), el('tbody', {}, ...body)));
}

function spend() {
  const { models, depths, counted: only } = data.spend;
  const nodes = [budgets(), table('model', models), depths.length > 1 ? table('depth', depths) : null];
  if (only && models.length) nodes.push(el('p', { class: 'label' }, 'Counted from what was recorded: the run has no closing account.'));
  return section('spend', 'Spend', ...nodes);
}

function outline() {
  const link = (href, text, act) => el('a', { href, onclick: act && ((event) => { event.preventDefault(); act(); }) }, ...text);
  const branch = (r) => {
    const most = runs[r].items.slice(0, MOST_LINKS);
    const rest = runs[r].items.length - most.length;
    return el('ol', {}, ...most.flatMap((item, i) => links(r, item, i)), rest ? el('li', { class: 'quiet' }, '\u2026 and more, in the record') : null);
  };
  const links = (r, item, i) => {
    const go = () => goTo(r, i);
    if (item.k === 'turn') return [el('li', { class: 'turn' }, link(`#${place(r, i)}`, [`Turn ${item.n}`], go))];
    if (item.k === 'child' && item.run != null) return [child(item)];
    if (item.k !== 'cell') return [];
    const children = item.items.filter((inner) => inner.k === 'child' && inner.run != null).map(child);
    const about = [item.calls.length ? counted(item.calls.length, 'sub-call') : '', item.status === 'ok' ? '' : item.status || 'unfinished'].filter(Boolean).join(', ');
    return [el('li', { class: 'cell' }, link(`#${place(r, i)}`, [`Cell ${item.n} `, el('small', {}, about)], go), children.length ? el('ol', {}, ...children) : null)];
  };
  const child = (item) => el('li', {}, lazy({}, [`Child ${item.run} `, el('small', {}, oneLine(item.status || 'unfinished', 20))], (inside) => inside.append(branch(item.run))));
  const parts = [...document.querySelectorAll('main > section')].map((node) => el('li', {}, link(`#${node.id}`, [node.querySelector('h2').textContent])));
  const whole = el('details', {}, el('summary', {}, 'Outline'), el('ol', { class: 'parts' }, ...parts), branch(0));
  // Beside the record where there is room, and folded above it where there is none.
  const wide = matchMedia('(min-width: 66rem)');
  const set = () => { whole.open = wide.matches; };
  wide.addEventListener('change', set);
  set();
  document.getElementById('outline').append(whole);
}

head();
const main = document.getElementById('main');
main.append(...[answer(), limits(), spend(), section('timeline', 'Timeline', ...timeline()), section('find', 'Find', ...find()), section('record', 'Record', runBody(0))].filter(Boolean));
outline();
addEventListener('hashchange', goToHash);
goToHash();
document.documentElement.dataset.ready = 'yes';
