// The page: its tabs, and its address, which holds the view so that it can be shared.
//
// An address ends in #tab?key=value&...: which tab, and what it shows. Moving something replaces it; going somewhere
// adds an entry to the browser's history.

import { ask } from "./api.js";
import { counted, make, parts } from "./elements.js";
import { openChooser, watchDropsAndPastes } from "./pictures.js";
import { openSearch } from "./search.js";
import { openSpace } from "./space.js";
import { openWhy } from "./why.js";

const LISTED = 3000; // words that a field completes

/** A value that is requested on first use, and again after a failure. */
function once(question) {
  let answer = null;
  return () => {
    answer ??= question().catch((failure) => {
      answer = null;
      throw failure;
    });
    return answer;
  };
}

const words = once(() => ask("words", { axes: 5 }));

const suggestions = words().then(
  ({ suggested }) => suggested,
  () => [],
);

const app = {
  words,
  suggestions,
  chooser: openChooser(),

  /** A picture of the pool and a word: the first view. */
  async example() {
    const [{ results }, [text = null]] = await Promise.all([ask("pool", { k: 1, seed: 0 }), suggestions]);
    return { image: results[0]?.id, text };
  },

  /** The pictures that the tab Search shows, nearest first. */
  found: () => app.views.search.found(),
  views: {},

  /** Open a tab in a given state: a new history entry. */
  go(tab, values) {
    history.pushState(null, "", address(tab, values));
    follow();
    scrollTo({ top: 0 });
  },

  /** Store the state of a tab in the address; `push` makes it a history entry. */
  note(tab, values, push = false) {
    noted[tab] = address(tab, values);
    if (shown === tab && location.hash !== noted[tab])
      history[push ? "pushState" : "replaceState"](null, "", noted[tab]);
  },

  /** The last state of a tab; several texts of a search are joined to one. */
  noted(tab) {
    const values = new URLSearchParams(noted[tab]?.split("?")[1] ?? "");
    if (values.has("text")) values.set("text", values.getAll("text").join(" "));
    return values;
  },

  address,
};

const tabs = [...document.querySelectorAll("[role=tab]")];
const names = tabs.map((tab) => tab.getAttribute("aria-controls"));
const noted = {};
let shown = null;

/** The address of a view. A value that is a list is repeated; empty ones are left out. */
function address(tab, values) {
  const given = Object.entries(values)
    .flatMap(([name, value]) => [value].flat().map((one) => [name, one]))
    .filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(given).toString();
  return `#${tab}${query && `?${query}`}`;
}

/** Show the view of the address. */
function follow() {
  const [name, query = ""] = location.hash.slice(1).split("?");
  const tab = names.includes(name) ? name : names[0];
  if (shown && shown !== tab) app.views[shown].hide?.();
  shown = tab;
  tabs.forEach((button, index) => {
    const selected = names[index] === tab;
    button.setAttribute("aria-selected", String(selected));
    button.tabIndex = selected ? 0 : -1;
    document.getElementById(names[index]).hidden = !selected;
  });
  document.title = `${tabs[names.indexOf(tab)].textContent.trim()} · groundray`;
  const values = new URLSearchParams(query);
  noted[tab] = `#${tab}${query && `?${values}`}`;
  app.views[tab].show(values);
}

function openTab(index) {
  const tab = names[(index + names.length) % names.length];
  if (tab === shown) return;
  history.pushState(null, "", noted[tab] ?? `#${tab}`);
  follow();
}

tabs.forEach((button, index) => {
  button.addEventListener("click", () => openTab(index));
  button.addEventListener("keydown", (event) => {
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    openTab(to);
    tabs[(to + names.length) % names.length].focus();
  });
});
addEventListener("popstate", follow);

watchDropsAndPastes((file) =>
  app.chooser.drop(file, (picture) => {
    if (!app.views[shown].take) openTab(names.indexOf("search"));
    app.views[shown].take(picture);
  }),
);

const { about } = parts(document.querySelector("header"));
ask("healthz")
  .then(({ model, kind, images, words: count }) => {
    about.textContent = `${model}${kind === "groundray" ? "" : ` (${kind})`} · ${counted(images, "picture")} · ${counted(count, "word")}`;
    about.hidden = false;
  })
  .catch(() => {}); // whatever is wrong, the tab says so
words()
  .then(({ words: listed }) => {
    const options = listed.slice(0, LISTED).map(({ text }) => make("option", { value: text }));
    document.getElementById("vocabulary").append(...options);
  })
  .catch(() => {}); // typing works without completion

Object.assign(app.views, {
  search: openSearch(document.getElementById("search"), app),
  why: openWhy(document.getElementById("why"), app),
  space: openSpace(document.getElementById("space"), app),
});

follow();
