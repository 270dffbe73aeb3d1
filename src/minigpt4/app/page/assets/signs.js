"use strict";
// The signs beside the sheet: what each means, and one click that draws it where there is room. SIGNS is signs.json.
(() => {
  const {signs, letters} = SIGNS;
  const LEFT = 0.1, GAP = 0.025, START = 0.27, END = 0.97;
  const EXAMPLE = ["Pizza", "navigation", "image", "text", "input", "button"];  // a test asks the model that ships about it
  let next = START;

  const points = (line, x, y) => line.flatMap((value, i) => i % 2 ? [] : [[x(value), y(line[i + 1])]]);
  const placed = (lines, left, top) => lines.map(line => points(line, x => left + x, y => top + y));
  const titled = text => {  // as large as fits into the head of the sheet
    const gap = 1.9, parts = [...text].map(letter => letters[letter]), columns = parts.reduce((sum, part) => sum + part.width + gap, -gap);
    const rows = Math.max(...parts.flatMap(part => part.lines.flatMap(line => line.filter((_, i) => i % 2))));
    const unitX = Math.min(0.8 / (columns + 1), 1.45 * 0.17 / (rows + 0.6)), unitY = Math.min(0.17 / (rows + 0.6), 1.5 * unitX);
    const top = 0.05 + (0.17 - rows * unitY) / 2;
    let left = (1 - columns * unitX) / 2;
    return parts.flatMap(part => {
      const lines = part.lines.map(line => points(line, x => x, y => y).map(([x, y]) => [left + (x + (7 - y) * 0.06) * unitX, top + y * unitY]));
      left += (part.width + gap) * unitX;
      return lines;
    });
  };
  // As a hand would draw the lines: the sheet keeps them as strokes that can be undone.
  const draw = lines => {
    const canvas = document.querySelector("#sketch canvas"), box = canvas.getBoundingClientRect();
    const zoom = parseFloat(document.querySelector("#sketch .zoom-number")?.textContent) / 100 || 1;
    const side = 480 * zoom, left = box.left + (box.width - side) / 2, top = box.top + (box.height - side) / 2;
    const send = (kind, [x, y], buttons) => canvas.dispatchEvent(new PointerEvent(kind, {
      clientX: left + x * side, clientY: top + y * side, buttons, button: kind === "pointermove" ? -1 : 0, pointerType: "mouse",
      pointerId: 1, isPrimary: true, bubbles: true, cancelable: true, composed: true}));
    for (const line of lines) {
      send("pointermove", line[0], 0);
      send("pointerdown", line[0], 1);
      line.slice(1).forEach(point => send("pointermove", point, 1));
      send("pointerup", line.at(-1), 0);
    }
  };
  let first;  // what is told at the beginning
  const tell = text => {
    const line = document.querySelector("#signs p");
    first ??= line.textContent;
    line.textContent = text ?? first;
  };
  const place = name => {
    if (next + signs[name].height > END) return tell("The sheet is full; the bin above it empties it.");
    draw(placed(signs[name].lines, LEFT, next));
    next += signs[name].height + GAP;
  };
  document.addEventListener("click", event => {
    const sign = event.target.closest("#signs [data-sign]")?.dataset.sign, {takePen} = window.minigpt4;
    if (sign) takePen(() => place(sign));
    if (event.target.closest("#sketch [aria-label='Clear canvas']")) {  // Gradio puts the pen down
      next = START;
      tell();
    }
    if (event.target.closest("#sheet-example")) {
      document.querySelector("#sketch [aria-label='Clear canvas']").click();
      setTimeout(() => takePen(() => {
        draw(titled(EXAMPLE[0]));
        EXAMPLE.slice(1).forEach(place);
        tell("This is the example.");
      }), 1000);
    }
  }, true);  // the sheet's own buttons let no click through
  document.addEventListener("submit", event => {
    if (!event.target.closest("#signs")) return;
    event.preventDefault();
    const title = event.target.querySelector("input").value;
    if (title) window.minigpt4.takePen(() => draw(titled(title)));
  });
  const show = () => window.minigpt4.built("#signs [data-sign]", () => {
    for (const button of document.querySelectorAll("#signs [data-sign]")) {
      const {height, lines} = signs[button.dataset.sign], width = Math.max(...lines.flat().filter((_, i) => i % 2 === 0));
      const drawn = lines.map(line => `<polyline points="${line.join(" ")}"/>`).join("");
      button.insertAdjacentHTML("afterbegin", `<svg viewBox="-.02 -.02 ${width + 0.04} ${height + 0.04}" aria-hidden="true">${drawn}</svg>`);
    }
  });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", show);
  else show();
})();
