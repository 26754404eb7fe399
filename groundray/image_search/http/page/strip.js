// The strip of the Search tab: at each step from picture to word the first results, one above another.

import { figure, make } from "./elements.js";
import { ofPool, persistent } from "./pictures.js";

export const STEPS = 20; // alpha moves by 1/20, as in the paper
export const ALPHAS = Array.from({ length: STEPS + 1 }, (_, step) => step / STEPS);
const STACKED = 3; // pictures in a column
const NARROWEST = 46; // pixels of a column

/**
 * @param {HTMLElement} path holds the strip and the slider, whose stops stand above its columns
 * @param {HTMLElement} strip
 * @param {(step: number) => void} choose receives the step of a column that is chosen
 */
export function openStrip(path, strip, choose) {
  const column = () => {
    const images = Array.from({ length: STACKED }, () => persistent(make("img", { alt: "", decoding: "async" })));
    const button = make("button", { type: "button", tabindex: "-1" }, ...images, make("span", { class: "at" }));
    button.addEventListener("click", () => choose(Number(button.dataset.step)));
    return button;
  };

  /** Mark the column nearest to a step. */
  const mark = (step) => {
    const stride = Number(strip.children[1]?.dataset.step ?? 1);
    const nearest = Math.round(step / stride) * stride;
    for (const button of strip.children) {
      if (Number(button.dataset.step) === nearest) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  };

  /** Show the results of all steps, in as many columns as there is room for. */
  const draw = (answers, at) => {
    const stride = [1, 2, 5].find((every) => strip.clientWidth / (STEPS / every + 1) >= NARROWEST) ?? 5;
    const steps = ALPHAS.map((_, step) => step).filter((step) => step % stride === 0);
    path.style.setProperty("--columns", steps.length);
    while (strip.children.length > steps.length) strip.lastChild.remove();
    while (strip.children.length < steps.length) strip.append(column());
    steps.forEach((step, place) => {
      const button = strip.children[place];
      button.dataset.step = step;
      const first = answers[step].slice(0, STACKED);
      [...button.querySelectorAll("img")].forEach((image, rank) => {
        image.hidden = !first[rank];
        const source = first[rank] && ofPool(first[rank].id).thumbnail;
        if (source && image.getAttribute("src") !== source) image.setAttribute("src", source);
      });
      button.querySelector(".at").textContent = figure(step / STEPS).replace(/0$/, "");
      const told = first.length ? `first is picture ${first[0].id}` : "no picture";
      button.setAttribute("aria-label", `Alpha ${figure(step / STEPS)}: ${told}`);
    });
    mark(at);
  };

  return { draw, mark };
}
