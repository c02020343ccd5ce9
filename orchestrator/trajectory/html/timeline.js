// Concurrency over time: how many sub-calls were at a provider, and when each run was thinking or in a cell.

const SVG = 'http://www.w3.org/2000/svg';
const LANES = 16;
const PLOT = 110;
const LANE = 22;
const AXIS = 22;

function svg(name, attributes, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function allCalls() {
  const found = [];
  runs.forEach((run, r) => run.items.forEach((item, i) => item.calls?.forEach((call, c) => found.push([r, i, c, call]))));
  return found;
}

// Times at which the number in flight changes, and what it is from then on.
function steps(found) {
  const starts = new Float64Array(found.length), ends = new Float64Array(found.length);
  found.forEach(([r, , , call], n) => {
    starts[n] = runs[r].at + call[CALL.at];
    ends[n] = starts[n] + lasted(call, runs[r]);
  });
  starts.sort();
  ends.sort();
  const times = [0], heights = [0];
  for (let s = 0, e = 0; s < starts.length || e < ends.length;) {
    // At one moment an end comes before a start: the one made room for the other.
    const now = s < starts.length && (starts[s] < ends[e] || s === e) ? starts[s++] : ends[e++];
    times.push(now);
    heights.push(s - e);
  }
  return { times, heights, peak: heights.reduce((most, height) => Math.max(most, height), 0) };
}

function ticks(length, width) {
  const rough = length / Math.max(width / 90, 1);
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? power;
  return Array.from({ length: Math.floor(length / step) + 1 }, (_, n) => n * step);
}

// The bars of one run: turns (the root model at work) and cells.
function spans(r) {
  const run = runs[r];
  return run.items.flatMap((item, i) => {
    if (item.k === 'turn') return [{ i, k: 'turn', from: Math.max(run.at + item.at - item.took, 0), to: run.at + item.at, text: `turn ${item.n}` }];
    if (item.k === 'cell') return [{ i, k: 'cell', from: run.at + item.at, to: run.at + (item.end ?? run.end), text: `cell ${item.n}` }];
    return [];
  });
}

function timeline() {
  const found = allCalls();
  const { times, heights, peak } = steps(found);
  const length = Math.max(...runs.slice(0, 5000).map((run) => run.at + (run.end ?? 0)), times.at(-1), 0.001);
  const lanes = runs.slice(0, LANES).map((_, r) => spans(r));
  const height = PLOT + lanes.length * LANE + AXIS;
  const told = el('p', { class: 'readout', 'aria-live': 'polite' });
  const rest = `At most ${counted(peak, 'sub-call')} at once, ${seconds(length)} in all. Arrow keys move along, Enter goes to the cell.`;
  const picture = svg('svg', { class: 'timeline', tabindex: '0', role: 'img', height, 'aria-label': `Timeline. ${rest}` });
  let width = 0, left = 0, cursor = null;
  told.textContent = rest;

  const x = (time) => left + (time / length) * (width - left - 8);
  const y = (count) => PLOT - (count / (peak || 1)) * (PLOT - 18);

  function paint() {
    width = picture.clientWidth;
    if (!width) return;
    left = width < 520 ? 44 : 84;
    picture.replaceChildren();
    for (const time of ticks(length, width - left)) {
      picture.append(
        svg('line', { class: 'grid', x1: x(time), x2: x(time), y1: 12, y2: height - AXIS }),
        svg('text', { class: 'tick', x: x(time), y: height - 6, 'text-anchor': time ? 'middle' : 'start' }, time >= 60 ? seconds(time) : `${Number(time.toPrecision(4))} s`),
      );
    }
    picture.append(
      svg('text', { class: 'tick', x: left - 6, y: 22, 'text-anchor': 'end' }, number(peak)),
      svg('text', { class: 'tick', x: left - 6, y: PLOT, 'text-anchor': 'end' }, '0'),
      svg('path', { class: 'flight', d: area() }),
    );
    lanes.forEach((lane, r) => {
      const top = PLOT + r * LANE + 6;
      picture.append(svg('text', { class: 'tick', x: left - 6, y: top + 11, 'text-anchor': 'end' }, r ? `${width < 520 ? '' : 'child '}${r}` : width < 520 ? 'run' : 'first run'));
      // Bars that are too narrow to be told apart are not all drawn.
      let reached = -1;
      for (const span of lane) {
        const from = x(span.from), wide = Math.max(x(span.to) - from, 1.5);
        if (from + wide < reached + 0.5) continue;
        reached = from + wide;
        picture.append(svg('rect', { class: `span ${span.k}`, x: from, y: top, width: wide, height: LANE - 8, rx: 2, 'data-r': r, 'data-i': span.i }));
      }
    });
    picture.append(svg('line', { class: 'cursor', y1: 12, y2: height - AXIS, x1: -9, x2: -9 }));
    if (cursor !== null) point(cursor);
  }

  // The highest count within each pixel, so that a short peak is not lost.
  function area() {
    const path = [`M${left},${PLOT}`];
    for (let n = 0; n < times.length;) {
      const column = Math.floor(x(times[n]));
      let top = 0, end = heights[n];
      for (; n < times.length && Math.floor(x(times[n])) === column; n += 1) {
        top = Math.max(top, heights[n]);
        end = heights[n];
      }
      path.push(`V${y(top).toFixed(1)}H${column + 1}V${y(end).toFixed(1)}`, n < times.length ? `H${Math.floor(x(times[n]))}` : '');
    }
    return `${path.join('')}V${PLOT}Z`;
  }

  function inFlight(time) {
    let low = 0, high = times.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (times[middle] <= time) low = middle;
      else high = middle - 1;
    }
    return heights[low];
  }

  function point(time) {
    cursor = Math.max(0, Math.min(time, length));
    const line = picture.querySelector('.cursor');
    line.setAttribute('x1', x(cursor));
    line.setAttribute('x2', x(cursor));
    const busy = lanes.flatMap((lane, r) => lane.filter((span) => span.from <= cursor && cursor <= span.to).slice(0, 1).map((span) => (r ? `child ${r} ${span.text}` : span.text)));
    told.textContent = `${cursor.toFixed(2)} s: ${counted(inFlight(cursor), 'sub-call')} in flight${busy.length ? '; ' + busy.slice(0, 4).join(', ') : ''}`;
  }

  picture.addEventListener('pointermove', (event) => {
    const inside = event.clientX - picture.getBoundingClientRect().left - left;
    point((inside / (width - left - 8)) * length);
  });
  picture.addEventListener('click', (event) => {
    const { r, i } = event.target.dataset;
    if (r !== undefined) goTo(Number(r), Number(i));
  });
  picture.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (step) point((cursor ?? 0) + (step * length) / 100);
    else if (event.key === 'Enter') {
      const hit = lanes[0].find((span) => span.k === 'cell' && span.from <= (cursor ?? 0) && (cursor ?? 0) <= span.to);
      if (hit) goTo(0, hit.i);
    } else return;
    event.preventDefault();
  });
  new ResizeObserver(paint).observe(picture);
  const legend = el('p', { class: 'legend' },
    el('span', { class: 'key flight' }), 'sub-calls in flight', el('span', { class: 'key turn' }), 'root model at work',
    el('span', { class: 'key cell' }), 'cell running', runs.length > LANES ? ` (the first ${LANES} of ${number(runs.length)} runs)` : '');
  return [legend, picture, told];
}
