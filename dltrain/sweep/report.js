// Makes a report of a sweep answer the pointer: a trial lights up everywhere, axes choose trials, tables are sorted.
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
document.documentElement.classList.add("js");

// ---- all that belongs to a trial ----
const parts = new Map();
for (const part of all("[data-t]")) {
  if (!parts.has(part.dataset.t)) parts.set(part.dataset.t, []);
  parts.get(part.dataset.t).push(part);
}
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.hidden = true;
let lit = null;
function light(trial) {
  if (trial === lit) return;
  for (const part of parts.get(lit) ?? []) part.classList.remove("on");
  for (const part of parts.get(trial) ?? []) part.classList.add("on");
  lit = trial;
}
const names = all("#trials th").map((head) => head.textContent);
function describe(trial) {
  const row = parts.get(trial).find((part) => part.closest("#trials"));
  const cells = row ? [...row.cells].map((cell, index) => [names[index], cell.textContent.trim()]) : [];
  return cells.filter(([, text]) => text).map(([name, text]) => `${name}: ${text}`).join("\n").slice(0, 600);
}
document.addEventListener("pointermove", (event) => {
  const part = event.target.closest?.("[data-t]");
  light(part ? part.dataset.t : null);
  tip.hidden = !part || part.tagName === "TR";
  if (tip.hidden) return;
  tip.textContent = describe(part.dataset.t);
  const right = event.clientX + 14 + tip.offsetWidth > innerWidth;
  const below = event.clientY + 14 + tip.offsetHeight > innerHeight;
  tip.style.left = `${Math.max(4, event.clientX + (right ? -14 - tip.offsetWidth : 14))}px`;
  tip.style.top = `${Math.max(4, event.clientY + (below ? -14 - tip.offsetHeight : 14))}px`;
});

// ---- a stretch of an axis chooses the trials whose lines cross it ----
const ranges = new Map();
const heights = all("svg.parallel [data-t]").map((line) => {
  const numbers = line.getAttribute("d").match(/-?[\d.]+/g).map(Number);
  const at = new Map([[numbers[0], numbers[1]]]);
  for (let index = 2; index < numbers.length; index += 6) at.set(numbers[index + 4], numbers[index + 5]);
  return [line.dataset.t, at];
});
function choose() {
  for (const [trial, at] of heights) {
    const out = [...ranges].some(([x, [low, high]]) => !(at.get(x) >= low && at.get(x) <= high));
    for (const part of parts.get(trial)) part.classList.toggle("dim", out);
  }
}
for (const brush of all(".brush")) {
  const x = Number(brush.dataset.x);
  const shown = brush.nextElementSibling;
  const top = Number(brush.getAttribute("y"));
  const bottom = top + Number(brush.getAttribute("height"));
  const height = (event) => {
    const matrix = brush.getScreenCTM();
    return Math.min(bottom, Math.max(top, (event.clientY - matrix.f) / matrix.d));
  };
  let start = null;
  const drag = (event) => {
    if (start === null) return;
    const low = Math.min(start, height(event));
    const high = Math.max(start, height(event));
    const whole = high - low < 3;
    if (whole) ranges.delete(x);
    else ranges.set(x, [low - 0.5, high + 0.5]);
    shown.setAttribute("y", low);
    shown.setAttribute("height", whole ? 0 : high - low);
    choose();
  };
  brush.addEventListener("pointerdown", (event) => {
    start = height(event);
    brush.setPointerCapture(event.pointerId);
    drag(event);
  });
  brush.addEventListener("pointermove", drag);
  brush.addEventListener("pointerup", () => (start = null));
}

// ---- tables and texts ----
for (const head of all("th")) {
  head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of all("th", head.closest("table"))) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const key = (row) => row.cells[head.cellIndex].dataset.v ?? row.cells[head.cellIndex].textContent;
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last both ways
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return up ? order : -order;
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  });
}
for (const button of all("button.copy")) {
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "copied";
      setTimeout(() => (button.textContent = "copy"), 1500);
    } catch {
      getSelection().selectAllChildren(text); // a page from the disk may not write to the clipboard
    }
  });
}
