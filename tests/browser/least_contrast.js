// The least contrast (WCAG 2, 1.4.3) of any visible text against what lies behind it.
(() => {
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const linear = (value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color[3] === undefined || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  let least = 21;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walker.nextNode());) {
    const node = text.parentElement;
    const unseen = /^(SCRIPT|STYLE|NOSCRIPT|OPTION)$/.test(node.tagName) || !node.checkVisibility();
    if (!text.data.trim() || unseen) continue;
    const style = getComputedStyle(node);
    const ink = node.namespaceURI.endsWith('svg') ? style.fill : style.color;
    const [more, less] = [light(parse(ink)), light(behind(node))].sort((a, b) => b - a);
    least = Math.min(least, (more + 0.05) / (less + 0.05));
  }
  return least;
})()
