// A list of any length of which only the rows in sight exist. Rows have one height; the choice moves by keyboard.

const ROW = 30;
const AROUND = 8;
let lists = 0;

// `row(i)` returns the cells of a row, `open(i)` is called when it is chosen.
function list({ count, row, open, label }) {
  const name = `list${lists++}`;
  let first = -1, last = -1, chosen = -1, total = count;
  const sheet = el('div', { class: 'sheet', role: 'presentation' });
  const box = el('div', {
    class: 'list', role: 'listbox', tabindex: '0', 'aria-label': label, onscroll: draw, onkeydown: key,
    onclick: (event) => {
      const hit = event.target.closest('.row');
      if (hit) choose(Number(hit.dataset.i), true);
    },
  }, sheet);
  new ResizeObserver(draw).observe(box);
  resize(count);

  function resize(now) {
    total = now;
    first = last = chosen = -1;
    box.removeAttribute('aria-activedescendant');
    box.scrollTop = 0;
    sheet.style.height = `${total * ROW}px`;
    box.style.height = `${Math.min(total, 12) * ROW + 2}px`;
    sheet.replaceChildren();
    draw();
  }

  function draw() {
    const height = box.clientHeight || 12 * ROW;
    const from = Math.max(Math.floor(box.scrollTop / ROW) - AROUND, 0);
    const to = Math.min(Math.ceil((box.scrollTop + height) / ROW) + AROUND, total);
    if (from === first && to === last) return;
    [first, last] = [from, to];
    const rows = [];
    for (let i = from; i < to; i += 1) {
      const node = el('div', {
        class: 'row', role: 'option', id: `${name}-${i}`, 'data-i': i, 'aria-posinset': i + 1, 'aria-setsize': total,
        'aria-selected': String(i === chosen),
      }, ...row(i));
      node.style.transform = `translateY(${i * ROW}px)`;
      rows.push(node);
    }
    sheet.replaceChildren(...rows);
  }

  function choose(i, act) {
    chosen = Math.max(0, Math.min(i, total - 1));
    if (chosen * ROW < box.scrollTop) box.scrollTop = chosen * ROW;
    else if ((chosen + 1) * ROW > box.scrollTop + box.clientHeight) box.scrollTop = (chosen + 1) * ROW - box.clientHeight;
    first = -1;
    draw();
    box.setAttribute('aria-activedescendant', `${name}-${chosen}`);
    if (act) open(chosen);
  }

  function key(event) {
    const page = Math.max(Math.floor(box.clientHeight / ROW) - 1, 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -total, End: total };
    if (event.key in steps && total) choose(chosen + steps[event.key], false);
    else if ((event.key === 'Enter' || event.key === ' ') && chosen >= 0) open(chosen);
    else return;
    event.preventDefault();
  }

  return { node: box, resize, choose };
}
