// Animation, switched off where the user prefers reduced motion.

const less = matchMedia("(prefers-reduced-motion: reduce)");
const EASE = "cubic-bezier(.2, .7, .2, 1)";

export function still() {
  return less.matches;
}

/**
 * Make the children of `list` match `items`, in order. Kept children slide to their place; new ones fade in.
 *
 * @param {HTMLElement} list
 * @param {Array<Object>} items
 * @param {(item: Object) => string} key children whose key exists already are kept
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
 * Return a function that calls `draw(share)` with shares rising to 1 over some milliseconds, or once with 1 to jump; a
 * new call ends the previous one.
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
