// Elements: looked up by part, created, and cloned from templates.

/** The elements below `root` by the name in their data-part, in camel case. */
export function parts(root) {
  const name = (element) => element.dataset.part.replace(/-(\w)/g, (_, letter) => letter.toUpperCase());
  return Object.fromEntries([...root.querySelectorAll("[data-part]")].map((element) => [name(element), element]));
}

/** A new element with attributes and children (elements or text). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A copy of the one element in the template of this id. */
export function clone(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

/** A number as the page writes it: two places, and a real minus sign. */
export function figure(value, places = 2) {
  return value
    .toFixed(places)
    .replace("-", "−")
    .replace(/^−(0\.?0*)$/, "$1");
}

/** "1 picture", "2 pictures", with a space that does not break. */
export function counted(count, noun) {
  return `${count.toLocaleString("en")}\u00a0${noun}${count === 1 ? "" : "s"}`;
}

/** Show a failure in `place`, with a retry button if `again` is given; null clears it. */
export function trouble(place, failure, again = null) {
  place.replaceChildren();
  if (!failure) return;
  const note = clone("trouble");
  note.querySelector("p").textContent = failure.message;
  const button = note.querySelector("button");
  button.hidden = !again;
  button.addEventListener("click", () => again());
  place.append(note);
}

/** Buttons of suggested words; `choose` receives the word. */
export function chips(place, words, choose) {
  place.replaceChildren(
    ...words.map((word) => {
      const button = make("button", { type: "button" }, word);
      button.addEventListener("click", () => choose(word));
      return button;
    }),
  );
}
