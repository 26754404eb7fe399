// Movement, which is left out where people ask for less of it.

const less = matchMedia("(prefers-reduced-motion: reduce)");
const EASE = "cubic-bezier(.2, .7, .2, 1)";

export function still() {
  return less.matches;
}

/**
 * Make the children of `list` those of `items`, in their order; what stays slides to its place, what is new fades in.
 *
 * @param {HTMLElement} list
 * @param {Array<Object>} items
 * @param {(item: Object) => string} key children with a key that is there already are kept
 * @param {(item: Object) => HTMLElement} create
 * @param {(element: HTMLElement, item: Object, index: number) => void} update
 */
export function arrange(list, items, { key, create, update }) {
  const before = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const places = new Map([...before].map(([name, child]) => [name, child.getBoundingClientRect()]));
  const focused = document.activeElement;
  const children = items.map((item, index) => {
    const name = key(item);
    const child = before.get(name) ?? create(item);
    child.dataset.key = name;
    update(child, item, index);
    return child;
  });
  const kept = new Set(children);
  for (const child of [...list.children]) if (!kept.has(child)) child.remove();
  children.forEach((child, index) => {
    if (list.children[index] !== child) list.insertBefore(child, list.children[index] ?? null);
  });
  if (focused !== document.activeElement && list.contains(focused)) focused.focus({ preventScroll: true });
  if (still()) return;
  for (const child of children) for (const animation of child.getAnimations()) animation.cancel();
  const after = children.map((child) => child.getBoundingClientRect());
  children.forEach((child, index) => {
    const from = places.get(child.dataset.key);
    if (!from) {
      child.animate({ opacity: [0, 1], transform: ["scale(.92)", "none"] }, { duration: 220, easing: EASE });
      return;
    }
    const [across, down] = [from.left - after[index].left, from.top - after[index].top];
    if (across || down) {
      child.animate({ transform: [`translate(${across}px, ${down}px)`, "none"] }, { duration: 380, easing: EASE });
    }
  });
}

/**
 * A function that calls `draw(share)` with shares up to 1 over some milliseconds, or once with 1 where it should jump;
 * a new call of it ends the one before.
 */
export function tween(milliseconds) {
  let frame = 0;
  return (draw, jump = false) => {
    cancelAnimationFrame(frame);
    if (jump || still()) {
      draw(1);
      return;
    }
    const start = performance.now();
    const step = (now) => {
      const share = Math.min(1, Math.max(0, (now - start) / milliseconds));
      draw(share < 0.5 ? 2 * share * share : 1 - 2 * (1 - share) ** 2);
      if (share < 1) frame = requestAnimationFrame(step);
    };
    frame = requestAnimationFrame(step);
  };
}
