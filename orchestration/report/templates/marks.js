// Under the pointer, and by arrow keys, a figure says what is there: whose it is, its value, the command for it.
// A click on a variant, in a figure or a table's row, dims the others in every figure; again, or Escape, ends that.
const { command, figures } = JSON.parse(document.getElementById("marks").textContent);
const REACH = 22; // of the pointer, in a figure's units
const tip = document.body.appendChild(document.createElement("div"));
const said = document.body.appendChild(document.createElement("p"));
Object.assign(tip, { id: "tip", hidden: true });
Object.assign(said, { className: "unseen", role: "status" });
let picked = null, kept = false, shown = null;

// What each kind of figure has, as series of marks: where one is, what is said of it, and its size if it is a box.
const KINDS = {
  points: ({ of, series }) => series.map((one) => ({ of: of[one.of], marks: [one] })),
  curves: ({ x, y, log, name, unit, xs, of, series }) => series.map((one) => ({
    of: of[one.of], line: true,
    marks: xs[one.x].map((at, i) => ({ at, value: one.y[i] })).filter(({ value }) => value !== null).map(({ at, value }) => ({
      x: x[0] + x[1] * at, y: y[0] + y[1] * (log ? Math.log10(value) : value),
      text: `${when(at, of[one.of])}: ${name} ${value}${unit && " " + unit}`,
    })),
  })),
  maps: ({ name, of, maps }) => maps.flatMap(({ of: at, box: [left, top, width, height], layers, x: epochs, values }) =>
    layers.map((layer, row) => ({
      of: of[at],
      marks: epochs.map((epoch, column) => {
        const [w, h] = [width / epochs.length, height / layers.length];
        const value = values ? `${name}: ${values[row][column] ?? "not defined"}` : `${name}: see report.layers.csv`;
        return { x: left + (column + 0.5) * w, y: top + (row + 0.5) * h, w, h, text: `${layer}, ${when(epoch, of[at])}. ${value}` };
      }),
    }))),
};

function when(epoch, of) {
  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 2 });
  return of.epoch ? `epoch ${number(epoch)}, step ${number(Math.round(epoch * of.epoch))}` : `step ${number(epoch)}`;
}

function again({ cells }) {
  return cells.length > 1 ? `for cell in ${cells.join(" ")}; do ${command} $cell; done` : cells.length ? `${command} ${cells[0]}` : "";
}

// The mark that a place is on or near: in its box, or within reach of it or of the line to the next one.
function nearest(series, x, y) {
  let found = null, least = REACH;
  for (const one of series) {
    if (picked !== null && one.of.variant !== picked) continue;
    one.marks.forEach((mark, i) => {
      if (mark.w) {
        if (Math.abs(x - mark.x) <= mark.w / 2 && Math.abs(y - mark.y) <= mark.h / 2) found = [one, i];
        return;
      }
      const next = (one.line && one.marks[i + 1]) || mark;
      const [dx, dy] = [next.x - mark.x, next.y - mark.y];
      const along = Math.min(1, Math.max(0, ((x - mark.x) * dx + (y - mark.y) * dy) / (dx * dx + dy * dy || 1)));
      const distance = Math.hypot(mark.x + along * dx - x, mark.y + along * dy - y);
      if (distance < least) [least, found] = [distance, [one, along < 0.5 ? i : i + 1]];
    });
  }
  return found;
}

function element(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function show(svg, one, i) {
  hide();
  const mark = one.marks[i];
  const here = element("g", { class: "here" });
  if (one.line) here.append(element("polyline", { points: one.marks.map(({ x, y }) => `${x},${y}`).join(" ") }));
  here.append(mark.w
    ? element("rect", { x: mark.x - mark.w / 2, y: mark.y - mark.h / 2, width: mark.w, height: mark.h })
    : element("circle", { cx: mark.x, cy: mark.y, r: 5 }));
  svg.append(here);
  shown = { svg, one, i, here };
  const [name, code] = [document.createElement("strong"), document.createElement("code")];
  [name.textContent, code.textContent] = [one.of.name, again(one.of)];
  tip.replaceChildren(name, [mark.text, one.of.note].filter(Boolean).join("; "), ...(code.textContent ? [code] : []));
  tip.hidden = false;
  put();
}

// Put it beside its mark, within the window; whether the mark is in the window, too.
function put() {
  const { svg, one, i } = shown;
  const at = new DOMPoint(one.marks[i].x, one.marks[i].y).matrixTransform(svg.getScreenCTM());
  const { width, height } = tip.getBoundingClientRect();
  const [right, bottom] = [document.documentElement.clientWidth - width - 8, innerHeight - height - 8];
  const above = at.y - height - 14;
  tip.style.left = `${Math.max(8, Math.min(at.x + 14, right))}px`;
  tip.style.top = `${Math.max(8, Math.min(above < 8 ? at.y + 14 : above, bottom))}px`;
  return at.y >= 0 && at.y <= innerHeight;
}

function hide() {
  shown?.here.remove();
  shown = null;
  tip.hidden = true;
  keep(false);
}

function keep(whether) {
  kept = whether;
  tip.classList.toggle("kept", kept);
}

function pick(variant) {
  picked = variant;
  for (const part of document.querySelectorAll("[data-variant]")) {
    part.classList.toggle("dim", picked !== null && part.dataset.variant !== picked);
    part.classList.toggle("picked", part.dataset.variant === picked);
    (part.role === "button" ? part : part.querySelector("tr > :first-child > button"))?.setAttribute("aria-pressed", part.dataset.variant === picked);
  }
}

function toggle(variant) {
  pick(picked === variant ? null : variant);
}

for (const row of document.querySelectorAll("tr[data-variant]")) {
  const button = document.createElement("button");
  button.append(...row.cells[0].childNodes);
  row.cells[0].append(button);
}

for (const [id, figure] of Object.entries(figures)) {
  const svg = document.getElementById(id);
  const series = KINDS[figure.kind](figure).filter(({ marks }) => marks.length);
  for (const part of svg.querySelectorAll(`[id^="${id}-v"]`)) {
    const [, variant, what] = part.id.slice(id.length).match(/^-v(\d+)-(\w+)/);
    part.dataset.variant = figure.variants[variant];
    if (what !== "name") continue;
    for (const [key, value] of Object.entries({ role: "button", tabindex: 0, "aria-label": part.dataset.variant })) part.setAttribute(key, value);
  }
  svg.querySelectorAll("title").forEach((title) => title.remove()); // the browser's own would cover ours
  if (!series.length) continue;
  for (const [key, value] of Object.entries({ role: "application", tabindex: 0, "aria-roledescription": "figure; arrow keys go from mark to mark, Enter picks out a variant" })) svg.setAttribute(key, value);
  const under = ({ clientX, clientY }) => {
    const { x, y } = new DOMPoint(clientX, clientY).matrixTransform(svg.getScreenCTM().inverse());
    return nearest(series, x, y);
  };
  svg.addEventListener("pointermove", (event) => {
    if (kept || event.pointerType === "touch") return;
    const found = under(event);
    found ? show(svg, ...found) : hide();
  });
  svg.addEventListener("pointerleave", () => kept || hide());
  svg.addEventListener("click", (event) => {
    if (event.target.closest("[role=button]")) return;
    const found = under(event);
    if (!found) return;
    show(svg, ...found);
    keep(true);
    event.stopPropagation(); // a row that it stands in is not meant
  });
  svg.addEventListener("keydown", (event) => {
    if (event.target !== svg) return;
    const ways = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (event.key === "Enter" || event.key === " ") {
      if (shown?.svg === svg) toggle(shown.one.of.variant);
    } else if (ways[event.key]) {
      const next = shown?.svg === svg ? step(series, shown, ...ways[event.key]) : [series[0], 0];
      show(svg, ...next);
      said.textContent = tip.innerText;
    } else return;
    event.preventDefault();
  });
  svg.addEventListener("blur", () => kept || hide());
}

// The next mark: along a series, or of the next series where that has an end.
function step(series, { one, i }, across, along) {
  if (along && one.marks[i + along]) return [one, i + along];
  const next = series[series.indexOf(one) + (across || along)];
  if (!next) return [one, i];
  return [next, along ? (along > 0 ? 0 : next.marks.length - 1) : Math.min(i, next.marks.length - 1)];
}

document.addEventListener("click", (event) => {
  if (tip.contains(event.target)) return;
  hide();
  const part = event.target.closest("[data-variant]");
  if (part && getSelection().isCollapsed) toggle(part.dataset.variant);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hide();
    pick(null);
  } else if ((event.key === "Enter" || event.key === " ") && event.target.closest("svg [role=button]")) {
    toggle(event.target.closest("[data-variant]").dataset.variant);
    event.preventDefault();
  }
});
addEventListener("scroll", ({ target }) => shown && target !== tip && !put() && hide(), { passive: true, capture: true });
