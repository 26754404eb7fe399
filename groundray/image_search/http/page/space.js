// The Space tab: the words on two principal axes of the language model, before and after grounding.

import { Failure, ask, latest, paused } from "./api.js";
import { chips, counted, figure, make, parts, trouble } from "./elements.js";
import { tween } from "./motion.js";
import { COLOURS, key, legible, spread } from "./chart.js";

const NEIGHBOURS = 10; // listed
const RANKED = 200; // asked for: the most that the service gives, to find the rank of what a phrase stands for
const MOVING = 900; // milliseconds
const MOVABLE = 1500; // words; more of them jump
const ROWS = 1000; // of the table
const WIDE = 900; // pixels of the page from which it begins with both models
const SIDE_BY_SIDE = 560; // pixels of the plot from which both fit beside each other
const [BEFORE, AFTER] = ["before", "after"];
const ALONE =
  "Each point is a word, as the model's text tower places it among pictures and texts. This model was not grounded here, " +
  "so there is no before and after.";

export function openSpace(root, app) {
  const part = parts(root);
  const form = part.controls.elements;
  // model: BEFORE, AFTER or "both"; x and y: axes from 0
  const view = { model: AFTER, x: 0, y: 1, colour: "category", text: "" };
  let data = null; // the words, see `arranged`
  let found = null; // the word or phrase that is looked for: where it lies and its neighbours in both models
  let drawn = null; // 0 before, 1 after, between them while the words move; null where nothing is drawn
  const glide = tween(MOVING);

  // ---- requests
  const load = async () => {
    trouble(part.trouble, null);
    root.setAttribute("aria-busy", "true");
    say("Loading the words …");
    try {
      const [answer] = await Promise.all([app.words(), loadPlotly()]);
      data ??= arranged(answer);
      offer();
      say("");
      draw();
    } catch (failure) {
      say("");
      trouble(part.trouble, failure, () => load().then(look));
    }
    root.removeAttribute("aria-busy");
  };

  const look = latest(async (signal) => {
    const text = view.text.trim();
    if (!data) return;
    trouble(part.trouble, null);
    if (!text) {
      found = null;
      drawFound();
      root.removeAttribute("aria-busy");
      return;
    }
    root.setAttribute("aria-busy", "true");
    try {
      const waiting = (seconds) => say(`The service is busy: trying again in ${Math.ceil(seconds)} s.`);
      const answer = await ask("words", { text, k: RANKED, axes: data.axes }, { signal, waiting });
      found = {
        text,
        at: data.models.map((model, index) => oriented(answer.at[model], data.signs[index])),
        neighbours: data.models.map((model) => answer.neighbours[model].slice(0, NEIGHBOURS)),
        ...meant(
          text,
          data.models.map((model) => answer.neighbours[model]),
        ),
      };
      say("");
      drawFound();
    } catch (failure) {
      if (signal.aborted) return;
      found = null;
      say("");
      drawFound();
      trouble(part.trouble, failure, look);
    } finally {
      if (!signal.aborted) root.removeAttribute("aria-busy");
    }
  });
  const soon = paused(300, look);

  /** The word that a phrase of the norms describes, and its rank among each model's neighbours, in words. */
  const meant = (text, neighbours) => {
    const target = data.phrases.find((phrase) => phrase.text === text.toLowerCase())?.target;
    const ranks = neighbours.map((words) => ordinal(words.findIndex((word) => word.text === target) + 1));
    return { target, ranks };
  };

  // ---- display
  const say = (text) => {
    part.status.textContent = text;
  };

  /** Fill in the choices once the words have arrived. */
  const offer = () => {
    for (const select of [form.x, form.y]) {
      select.replaceChildren(
        ...Array.from({ length: data.axes }, (_, axis) => make("option", { value: axis }, `axis ${axis + 1}`)),
      );
    }
    form.colour.querySelector("[value=category]").disabled = !data.categories.length;
    form.colour.querySelector("[value=concreteness]").disabled = !data.rated;
    if (!data.categories.length && data.rated) view.colour = "concreteness";
    if (data.phrases.length)
      chips(
        part.suggestions,
        data.phrases.map(({ text }) => text),
        choose,
      );
    else app.suggestions.then((words) => chips(part.suggestions, words, choose));
    part.tableOfWords.hidden = false;
    form.models.hidden = data.single;
    if (data.alone) part.lede.textContent = ALONE;
  };

  const draw = () => {
    if (data.single) view.model = AFTER;
    view.x = Math.min(view.x, data.axes - 1);
    view.y = Math.min(view.y, data.axes - 1);
    for (const name of ["model", "x", "y", "colour"]) form[name].value = view[name];
    if (form.text.value.trim() !== view.text) form.text.value = view.text;
    const goal = view.model === BEFORE ? 0 : 1;
    const moves =
      drawn !== null && drawn.single && view.model !== "both" && drawn.share !== goal && data.words.length <= MOVABLE;
    const from = drawn?.share;
    glide((share) => {
      drawn = { single: view.model !== "both", share: moves ? from + (goal - from) * share : goal };
      plot(share === 1);
    }, !moves);
    part.key.replaceChildren(...key(data, view));
    caption();
  };

  /** Draw the words at their current places; labels are laid out when they rest. */
  const plot = (rest) => {
    const panels = drawn.single
      ? [{ share: drawn.share, name: title(drawn.share < 0.5 ? BEFORE : AFTER) }]
      : [
          { share: 0, name: "Before grounding" },
          { share: 1, name: "After grounding" },
        ];
    const stacked = !drawn.single && part.plot.clientWidth < SIDE_BY_SIDE;
    part.plot.classList.toggle("tall", stacked);
    const { traces, layout } = spread({
      data,
      view,
      panels,
      found,
      stacked,
      size: [part.plot.clientWidth, part.plot.clientHeight],
      rest,
    });
    window.Plotly.react(part.plot, traces, layout, {
      displayModeBar: false,
      responsive: false,
      doubleClick: "reset",
      scrollZoom: false,
    });
    if (!part.plot.dataset.listens) listen();
  };

  const listen = () => {
    part.plot.dataset.listens = "true";
    // where plotly measures labels, off the page: hidden from screen readers
    document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true");
    part.plot.on("plotly_click", ({ points }) => points[0].customdata && choose(points[0].customdata));
    part.plot.on("plotly_relayout", (change) => {
      if (Object.keys(change).some((name) => name.includes("range"))) legible(part.plot, found);
    });
  };

  const caption = () => {
    const shown =
      counted(data.words.length, "word") + (data.leftOut ? `, ${data.leftOut.toLocaleString("en")} more left out` : "");
    if (!data.rated) {
      part.caption.textContent = `${shown}, along the axes of their greatest variance.`;
      return;
    }
    const tells = [view.x, view.y]
      .filter((axis, place, axes) => axes.indexOf(axis) === place)
      .map((axis) => {
        const [before, after] = data.correlations.map((model) => figure(model[axis]));
        return `axis ${axis + 1}, r = ${data.single ? after : `${before} before grounding and ${after} after`}`;
      });
    part.caption.textContent = `${shown}. Correlation with how concrete they are rated: ${tells.join("; ")}.`;
  };

  const drawFound = () => {
    part.neighbours.hidden = !found;
    if (found) {
      const { text, target, ranks } = found;
      part.aboutWord.textContent = `“${text}”`;
      part.meant.hidden = !target;
      if (target)
        part.meant.replaceChildren(
          "stands for ",
          make("strong", {}, target),
          data.single ? `: ${ranks[1]}.` : `: ${ranks[0]} before grounding, ${ranks[1]} after.`,
        );
      const models = data.single ? [AFTER] : [BEFORE, AFTER];
      part.lists.replaceChildren(
        ...models.map((name) => neighbours(name, found.neighbours[name === BEFORE ? 0 : 1], target)),
      );
    }
    if (drawn) requestAnimationFrame(() => plot(true)); // the plot's width has changed
  };

  /** The name of a model, for display. */
  const title = (name) =>
    data.alone ? "In the text tower" : name === BEFORE ? "Before grounding" : "After grounding";

  const neighbours = (name, words, target) => {
    const items = words.map(({ text, cosine }) => {
      const bar = make("span", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--value", cosine);
      const button = make(
        "button",
        { type: "button" },
        make("span", { class: "name" }, text),
        make("span", { class: "cosine" }, figure(cosine)),
        bar,
      );
      button.addEventListener("click", () => choose(text));
      return make("li", { class: text === target ? "target" : null }, button);
    });
    return make(
      "div",
      { class: name },
      make("h4", {}, title(name)),
      make("ol", {}, ...items),
    );
  };

  const drawTable = () => {
    const [head, body] = [part.tableOfWords.querySelector("thead"), part.tableOfWords.querySelector("tbody")];
    const row = (cell, values) =>
      make("tr", {}, ...values.map((value) => make(cell, cell === "th" ? { scope: "col" } : {}, value ?? "–")));
    const axes = [BEFORE, AFTER].flatMap((name) => [view.x, view.y].map((axis) => `axis ${axis + 1} ${name}`));
    head.replaceChildren(row("th", ["word", "category", "concreteness", ...axes]));
    body.replaceChildren(
      ...data.words.slice(0, ROWS).map((word) => {
        const places = word.at.flatMap((at) => [figure(at[view.x]), figure(at[view.y])]);
        return row("td", [word.text, word.category, word.concreteness && figure(word.concreteness), ...places]);
      }),
    );
  };

  // ---- events
  const note = (push = false) =>
    app.note(
      "space",
      { model: view.model, x: view.x + 1, y: view.y + 1, colour: view.colour, text: view.text || null },
      push,
    );
  const choose = (text) => {
    view.text = text;
    form.text.value = text;
    note(true);
    look();
  };

  part.controls.addEventListener("submit", (event) => {
    event.preventDefault();
    soon.now();
  });
  part.controls.addEventListener("input", ({ target }) => {
    if (target.name === "text") {
      view.text = target.value.trim();
      note();
      soon();
      return;
    }
    view[target.name] = ["x", "y"].includes(target.name) ? Number(target.value) : target.value;
    note();
    if (data) draw();
    if (part.tableOfWords.open) drawTable();
  });
  part.tableOfWords.addEventListener("toggle", () => part.tableOfWords.open && drawTable());
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (drawn && entry.contentRect.width && entry.contentRect.width !== width) plot(true);
    width = entry.contentRect.width;
  }).observe(part.plot);
  addEventListener("theme", () => drawn && draw());

  return {
    /** Show the view of an address. */
    async show(values) {
      const axis = (name, usual) => Math.max(0, (Number(values.get(name)) || usual) - 1);
      view.model =
        [BEFORE, AFTER, "both"].find((name) => name === values.get("model")) ?? (innerWidth >= WIDE ? "both" : AFTER);
      [view.x, view.y] = [axis("x", 1), axis("y", 2)];
      view.colour = values.get("colour") === "concreteness" ? "concreteness" : "category";
      view.text = (values.get("text") ?? "").trim();
      note();
      await load();
      look();
    },
  };
}

/** "1st nearest"; 0 is an unknown rank. */
function ordinal(rank) {
  if (rank === 0) return `not among the ${RANKED} nearest`;
  const ending = { one: "st", two: "nd", few: "rd", other: "th" }[
    new Intl.PluralRules("en", { type: "ordinal" }).select(rank)
  ];
  return `${rank}${ending} nearest`;
}

let loading = null;

/** Plotly, loaded on first use, since it is large. */
function loadPlotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = make("script", { src: new URL("plotly.min.js", import.meta.url).href });
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => {
      loading = null;
      reject(
        new Failure("The plot's script (plotly) did not load. See whether the service still runs, then try again."),
      );
    });
    document.head.append(script);
  });
  return loading;
}

/**
 * The words for drawing. The sign of a principal axis is arbitrary: each is turned so that concrete words lie to the
 * right or at the top, or, without ratings, so that both models agree.
 */
function arranged({ models: served, axes, words, phrases = [], left_out: leftOut = 0 }) {
  const count = axes[0].explained.length;
  const models = [served[0], served.at(-1)]; // a model that was not kept as it began is shown as it is
  const second = models[1];
  const places = (model, axis) => words.map((word) => word.at[model][axis]);
  const rated = words.filter((word) => word.concreteness !== null).length > 2;
  const known = (values) => (rated ? values.filter((_, index) => words[index].concreteness !== null) : values);
  const ratings = known(words.map((word) => word.concreteness));
  const correlations = models.map((model) =>
    Array.from({ length: count }, (_, axis) =>
      correlation(known(places(model, axis)), rated ? ratings : places(second, axis)),
    ),
  );
  const signs = correlations.map((values) => values.map((value) => (value < 0 ? -1 : 1)));
  const counts = new Map();
  for (const { category } of words) if (category) counts.set(category, (counts.get(category) ?? 0) + 1);
  const categories = [...counts.keys()].sort((one, other) => counts.get(other) - counts.get(one));
  return {
    models,
    single: served.length === 1,
    alone: served[0] === "text tower", // of a model that was not grounded here: there is no before and after
    leftOut,
    axes: count,
    explained: models.map((model) => axes.find((one) => one.model === model).explained),
    words: words.map((word) => ({ ...word, at: models.map((model, index) => oriented(word.at[model], signs[index])) })),
    categories: [...counts.keys()].filter((category) => categories.indexOf(category) < COLOURS),
    rated,
    signs,
    correlations: correlations.map((values) => values.map(Math.abs)),
    phrases,
  };
}

function oriented(place, signs) {
  return place.map((value, axis) => value * signs[axis]);
}

/** Pearson's r. */
function correlation(xs, ys) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [x, y] = [mean(xs), mean(ys)];
  let [xy, xx, yy] = [0, 0, 0];
  xs.forEach((value, index) => {
    xy += (value - x) * (ys[index] - y);
    xx += (value - x) ** 2;
    yy += (ys[index] - y) ** 2;
  });
  return xy / Math.sqrt(xx * yy) || 0;
}
