"use strict";

// Tables: a click on a heading, or Enter or Space on it, sorts by its column; once more turns the order round.
for (const heading of document.querySelectorAll("th[aria-sort]")) {
  heading.querySelector("button").addEventListener("click", () => {
    const column = [...heading.parentNode.children].indexOf(heading);
    const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of heading.parentNode.children) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", order);
    const body = heading.closest("table").tBodies[0];
    const key = (row) => row.cells[column].dataset.sort;
    const rows = [...body.rows].sort((one, other) => compare(key(one), key(other), order === "ascending" ? 1 : -1));
    body.append(...rows);
  });
}

// Numbers by size, then words, and what is empty last in either order.
function compare(one, other, sign) {
  if (one === "" || other === "") return (one === "") - (other === "");
  const numbers = [Number(one), Number(other)];
  const odd = numbers.map(Number.isNaN);
  if (odd[0] || odd[1]) return odd[0] && odd[1] ? sign * one.localeCompare(other) : odd[0] - odd[1];
  return sign * (numbers[0] - numbers[1]);
}

// Pictures: a click shows one on the whole window, where wheel, fingers and keys make it larger and move it.
const dialog = document.querySelector("dialog");
const stage = dialog.querySelector(".stage");
const pointers = new Map();
const view = { x: 0, y: 0, scale: 1 };
let home = null;

for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    home = button;
    dialog.setAttribute("aria-label", button.getAttribute("aria-label").replace("Enlarge: ", ""));
    home.style.minHeight = `${home.offsetHeight}px`; // the page keeps its place
    stage.append(home.querySelector("svg"));
    whole();
    dialog.showModal();
  });
}

dialog.addEventListener("close", () => {
  const picture = stage.querySelector("svg");
  picture.style.transform = "";
  home.append(picture);
  home.style.minHeight = "";
  pointers.clear();
});

function draw() {
  stage.querySelector("svg").style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
}

function whole() {
  Object.assign(view, { x: 0, y: 0, scale: 1 });
  draw();
}

function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const scale = Math.min(40, Math.max(0.5, view.scale * factor));
  const grown = scale / view.scale;
  Object.assign(view, { x: x - (x - view.x) * grown, y: y - (y - view.y) * grown, scale });
  draw();
}

function move(x, y) {
  view.x += x;
  view.y += y;
  draw();
}

stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
}, { passive: false });

stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
});
for (const end of ["pointerup", "pointercancel"]) {
  stage.addEventListener(end, (event) => pointers.delete(event.pointerId));
}
stage.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const others = [...pointers.values()].filter((one) => one.pointerId !== event.pointerId);
  pointers.set(event.pointerId, event);
  if (others.length === 0) return move(event.clientX - before.clientX, event.clientY - before.clientY);
  const still = others[0];
  const apart = (one) => Math.hypot(one.clientX - still.clientX, one.clientY - still.clientY) || 1;
  zoom(apart(event) / apart(before), (event.clientX + still.clientX) / 2, (event.clientY + still.clientY) / 2);
  move((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
});

const actions = { in: () => zoom(1.4), out: () => zoom(1 / 1.4), whole, close: () => dialog.close() };
for (const button of dialog.querySelectorAll("[data-do]")) button.addEventListener("click", actions[button.dataset.do]);

const keys = {
  "+": actions.in, "=": actions.in, "-": actions.out, "0": whole,
  ArrowLeft: () => move(60, 0), ArrowRight: () => move(-60, 0), ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60),
};
dialog.addEventListener("keydown", (event) => {
  if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  keys[event.key]();
});
