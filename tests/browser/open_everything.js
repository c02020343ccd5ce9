// Opens and unfolds all there is, several times, because what was closed may hold more.
(() => {
  for (let n = 0; n < 6; n += 1) {
    document.querySelectorAll('details').forEach((node) => {
      node.open = true;
      node.fill?.();
    });
    document.querySelectorAll('.more:not([hidden])').forEach((button) => button.click());
  }
})()
