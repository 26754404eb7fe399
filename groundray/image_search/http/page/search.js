// The Search tab: a picture, words, and the mixes between them. The first results of all steps are requested at once, so
// that moving the slider sends no request; further ones page by page, for the step that is shown.

import { ask, latest, paused } from "./api.js";
import { chips, clone, counted, figure, make, parts, trouble } from "./elements.js";
import { openFilters } from "./filters.js";
import { arrange } from "./motion.js";
import { asked, noted, ofPool, persistent, rankedBy, recalled } from "./pictures.js";
import { saveGrid, saveStrip } from "./saving.js";
import { ALPHAS, STEPS, openStrip } from "./strip.js";

const FIRST = 24; // results
const PAGE = 48; // that each "more" adds
const MOST = 10000; // results: the service's limit
const TEXTS = 8; // words or phrases: the service's limit
const PLAY = 280; // milliseconds a step
const COSINE = "cosine with the query";
const MATCH = "match with the query, in standard deviations above the mean of the pool";

export function openSearch(root, app) {
  const part = parts(root);
  const query = { picture: null, texts: [], without: "", step: STEPS / 2 };
  // {asked, alpha, found, passed, shown, more}: one an alpha of the way, or a single one. `asked` are the fields of its
  // request, `passed` is the number of results that arrived, of which `found` has each picture once; the first are shown
  let answers = [];
  let playing = null;

  // ---- requests
  const mixed = () => query.picture !== null && query.texts.length > 0;
  const empty = () => query.picture === null && query.texts.length === 0;
  const fields = () => ({
    ...asked(query.picture),
    text: query.texts,
    without: query.without || null,
    filter: filters.conditions(),
  });
  const waiting = (seconds) => say(`The service is busy: trying again in ${Math.ceil(seconds)} s.`);

  const search = latest(async (signal) => {
    describe();
    trouble(part.trouble, null);
    if (empty()) {
      answers = [];
      root.removeAttribute("aria-busy");
      draw();
      return;
    }
    root.setAttribute("aria-busy", "true");
    try {
      const k = FIRST + 1; // the query picture is nearest to itself, and left out
      const alpha = mixed() ? ALPHAS : null;
      const given = fields();
      const told = await ask("search", { ...given, k, alpha }, { signal, waiting });
      answers = told.answers.map(({ alpha: at, results }) => ({
        asked: given,
        alpha: at,
        found: results,
        passed: results.length,
        shown: FIRST,
        more: results.length === k,
      }));
      draw(told.milliseconds);
      warm();
    } catch (failure) {
      if (signal.aborted) return;
      answers = [];
      draw();
      trouble(part.trouble, failure, search);
    } finally {
      if (!signal.aborted) root.removeAttribute("aria-busy");
    }
  });
  const soon = paused(220, search);

  /** Add a page of results to the step that is shown. */
  const more = latest(async (signal, answer) => {
    trouble(part.trouble, null);
    part.more.setAttribute("aria-busy", "true");
    try {
      const offset = answer.passed;
      const k = Math.min(PAGE, MOST - offset);
      // of the query that was answered: another one may be typed by now
      const told = await ask("search", { ...answer.asked, k, offset, alpha: answer.alpha }, { signal, waiting });
      const { results } = told.answers[0];
      if (!answers.includes(answer)) return; // there is another query by now
      const first = ranked(answer).length;
      const known = new Set(answer.found.map(({ id }) => id)); // another model may answer by now, in another order
      answer.found.push(...results.filter(({ id }) => !known.has(id)));
      answer.passed += results.length;
      answer.shown += PAGE;
      answer.more = results.length === k && answer.passed < MOST;
      draw(told.milliseconds);
      part.grid.children[first]?.querySelector(".open").focus();
    } catch (failure) {
      if (signal.aborted) return;
      say("");
      trouble(part.trouble, failure, () => more(answer));
    } finally {
      if (!signal.aborted) part.more.removeAttribute("aria-busy");
    }
  });

  /** The results that are shown: without the query picture, which is always nearest to itself. */
  const ranked = ({ found, shown }) => found.filter(({ id }) => id !== query.picture?.id).slice(0, shown);

  /** Prefetch the thumbnails of all steps, so that moving the slider shows no gaps. */
  const warm = () => {
    const ids = new Set(answers.flatMap((answer) => ranked(answer).map(({ id }) => id)));
    for (const id of ids) new Image().src = ofPool(id).thumbnail;
  };

  // ---- display
  const say = (text) => {
    part.status.textContent = text;
  };
  const alpha = () => (mixed() ? query.step / STEPS : query.texts.length ? 1 : 0);
  const answer = () => answers[mixed() ? query.step : 0];
  const results = () => (answer() ? ranked(answer()) : []);
  const words = () => query.texts.map(quoted).join(" and ");

  /** The query: picture, equation, and a hint at what is missing. */
  const describe = () => {
    const { picture, texts, without } = query;
    part.picture.hidden = !picture;
    part.noPicture.hidden = Boolean(picture);
    part.noMorePicture.hidden = !picture;
    if (picture) part.picture.src = picture.url;
    part.pictureName.textContent = picture ? picture.name : "none";
    part.pictureName.title = picture ? picture.name : "";
    const count = filters.conditions().length;
    const set = [without && `without ${quoted(without)}`, count && counted(count, "condition")];
    part.set.textContent = set.filter(Boolean).join(", ");
    part.another.hidden = texts.length === 0 || part.words.children.length >= TEXTS - 1;
    root.style.setProperty("--alpha", alpha());
    part.alpha.value = query.step / STEPS;
    const share = Math.round(alpha() * 100);
    part.alpha.setAttribute("aria-valuetext", `${figure(alpha())}: ${100 - share} % picture, ${share} % word`);
    const pole = (name, told) => make("span", { class: `of-${name}` }, told);
    const left = without ? [` without ${quoted(without)}`] : [];
    if (mixed()) {
      part.equation.replaceChildren(
        "Q = ",
        pole("picture", `${figure(1 - alpha())}\u00a0·\u00a0picture`),
        " + ",
        pole("word", `${figure(alpha())}\u00a0·\u00a0${words()}`),
        ...left,
      );
      part.explained.textContent = "The slider sets α. Below are the pictures nearest to Q, best first.";
    } else if (empty()) {
      part.equation.replaceChildren("Q = ", pole("picture", "(1 − α) · picture"), " + ", pole("word", "α · word"));
      part.explained.textContent = "Choose a picture, type a word, or do both.";
    } else {
      part.equation.replaceChildren("Q = ", picture ? pole("picture", "picture") : pole("word", words()), ...left);
      part.explained.textContent = picture
        ? "Type a word to move from the picture to it."
        : "Choose a picture to move from it to the word.";
    }
  };

  const draw = (milliseconds = null) => {
    part.path.hidden = !(mixed() && answers.length === ALPHAS.length);
    if (!part.path.hidden) strip.draw(answers.map(ranked), query.step);
    drawGrid();
    const found = results().length;
    part.saveGrid.hidden = !found;
    if (milliseconds !== null) {
      const none = filters.conditions().length ? "No picture meets these conditions." : "";
      const order = results()[0]?.match == null ? "nearest first" : "the nearest ranked again by their match maps";
      say(found ? `${counted(found, "picture")}, ${order} · answered in ${milliseconds.toFixed(0)} ms` : none);
    } else if (!found) say("");
  };

  const drawGrid = () => {
    part.more.hidden = !answer()?.more;
    if (empty()) {
      part.grid.replaceChildren(
        make(
          "li",
          { class: "empty-state" },
          "Choose a picture above, or type a word. The best matches come first.",
        ),
      );
      return;
    }
    arrange(part.grid, results(), { key: ({ id }) => id, create: result, update });
  };

  const result = ({ id }) => {
    const picture = ofPool(id);
    const item = clone("result");
    persistent(item.querySelector("img")).src = picture.thumbnail;
    item.querySelector(".open").addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return; // a tab or window of its own
      event.preventDefault();
      app.go("why", why(id));
    });
    const use = item.querySelector(".use");
    use.title = "Search with this picture";
    use.setAttribute("aria-label", `Search with picture ${id}`);
    use.addEventListener("click", () => take(picture));
    return item;
  };
  /** The view that shows why a picture was found: its match maps, also of what it should not show. */
  const why = (id) => ({ image: id, text: [...query.texts, query.without].filter(Boolean).join(" ") });
  const update = (item, hit, index) => {
    const { id } = hit;
    item.querySelector(".open").setAttribute("href", app.address("why", why(id)));
    item.querySelector(".rank").textContent = index + 1;
    const shown = figure(rankedBy(hit));
    item.querySelector(".score").textContent = shown;
    item.querySelector(".score").title = hit.match == null ? COSINE : `${MATCH}; cosine ${figure(hit.score)}`;
    const full = hit.match == null ? 1 : Math.max(results()[0].match, 1e-6);
    item.querySelector(".open .bar").style.setProperty("--value", Math.max(0, rankedBy(hit) / full));
    item
      .querySelector(".open")
      .setAttribute("aria-label", `Rank ${index + 1}: picture ${id}, score ${shown}. See why`);
  };

  // ---- events
  const note = (push = false) =>
    app.note(
      "search",
      {
        ...noted(query.picture),
        text: query.texts,
        without: query.without,
        alpha: mixed() ? query.step / STEPS : null,
        ...filters.noted(),
      },
      push,
    );

  const move = (step) => {
    if (step === query.step) return;
    query.step = step;
    describe();
    strip.mark(query.step);
    drawGrid();
    note();
  };
  const take = (picture) => {
    pause();
    query.picture = picture;
    note(true);
    search();
  };
  /** Write the words of the query into their fields, unless they are there. */
  const write = () => {
    const rest = query.texts.slice(1);
    if (part.text.value.trim() !== (query.texts[0] ?? "")) part.text.value = query.texts[0] ?? "";
    if (others().join("\n") !== rest.join("\n")) part.words.replaceChildren(...rest.map(field));
    if (part.without.value.trim() !== query.without) part.without.value = query.without;
  };
  const others = () => [...part.words.querySelectorAll("input")].map(({ value }) => value.trim()).filter(Boolean);
  /** A field for one more word. */
  const field = (text = "") => {
    const item = clone("word");
    item.querySelector("input").value = text;
    item.querySelector("button").addEventListener("click", () => {
      item.remove();
      (part.words.querySelector("input") ?? part.text).focus();
      read(true);
    });
    return item;
  };
  /** Take what the fields hold, and search: at once, or when typing pauses. */
  const read = (now = false) => {
    pause();
    query.texts = [part.text.value.trim(), ...others()].filter(Boolean);
    query.without = part.without.value.trim();
    describe();
    note();
    if (now) soon.now();
    else soon();
  };
  const pause = () => {
    clearInterval(playing);
    playing = null;
    showPlaying();
  };
  const play = () => {
    if (query.step === STEPS) move(0);
    playing = setInterval(() => {
      move(query.step + 1);
      if (query.step >= STEPS) pause();
    }, PLAY);
    showPlaying();
  };
  const showPlaying = () => {
    part.play.setAttribute("aria-pressed", String(playing !== null));
    part.playName.textContent = playing === null ? "Play" : "Pause";
    part.play.querySelector("use").setAttribute("href", `static/icons.svg#${playing === null ? "play" : "pause"}`);
  };

  part.choose.addEventListener("click", async () => {
    const picture = await app.chooser.choose();
    if (picture) take(picture);
  });
  part.picture.addEventListener("error", () => {
    part.picture.hidden = true; // the search says what is wrong with it
    part.noPicture.hidden = false;
  });
  part.noMorePicture.addEventListener("click", () => {
    take(null);
    part.choose.focus();
  });
  for (const place of [part.text, part.words, part.without]) {
    place.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target.matches("input")) read(true);
    });
  }
  part.text.addEventListener("input", () => read());
  part.words.addEventListener("input", () => read());
  part.another.addEventListener("click", () => {
    part.words.append(field());
    part.words.lastChild.querySelector("input").focus();
    part.another.hidden = part.words.children.length >= TEXTS - 1;
  });
  const strip = openStrip(part.path, part.strip, (step) => {
    pause();
    move(step);
  });
  const filters = openFilters(part.filters, () => read());
  part.alpha.addEventListener("input", () => {
    pause();
    move(Math.round(part.alpha.value * STEPS));
  });
  part.play.addEventListener("click", () => (playing === null ? play() : pause()));
  part.more.addEventListener("click", () => more(answer()));
  const saving = (button, save) =>
    button.addEventListener("click", async () => {
      trouble(part.trouble, null);
      button.disabled = true;
      try {
        await save();
      } catch (failure) {
        trouble(part.trouble, failure);
      }
      button.disabled = false;
    });
  saving(part.saveStrip, () => {
    const left = query.without ? ` without ${quoted(query.without)}` : "";
    const title = `Q = (1 − α) · picture + α · ${words()}${left}`;
    return saveStrip(title, query.picture, query.texts, answers.map(ranked), ALPHAS);
  });
  saving(part.saveGrid, () => saveGrid(part.equation.textContent, query.picture, results()));
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width !== width && answers.length === ALPHAS.length) draw();
    width = entry.contentRect.width;
  }).observe(part.path);
  app.suggestions.then((words) => chips(part.suggestions, words, (word) => choose(word)));

  const choose = (word) => {
    part.text.value = word;
    read(true);
  };

  let fresh = true; // nothing was shown yet
  const begin = async () => {
    const example = await app.example().catch(() => null); // the search itself says what is wrong
    if (!example || !empty()) return;
    query.picture = example.image ? ofPool(example.image) : null;
    query.texts = example.text ? [example.text] : [];
    write();
    note();
    search();
  };

  return {
    take,
    hide: pause,
    found: () => results().map(({ id }) => id),
    /** Show the view of an address; at first, an example if it names none. */
    show(values) {
      try {
        query.picture = recalled(values);
      } catch (failure) {
        query.picture = null;
        queueMicrotask(() => trouble(part.trouble, failure));
      }
      query.texts = values
        .getAll("text")
        .map((text) => text.trim())
        .filter(Boolean);
      query.without = (values.get("without") ?? "").trim();
      write();
      filters.show(values);
      part.limits.open ||= query.without !== "" || filters.conditions().length > 0;
      const named = Number(values.get("alpha") ?? 0.5);
      query.step = Math.round(Math.min(1, Math.max(0, Number.isFinite(named) ? named : 0.5)) * STEPS);
      search();
      if (fresh && values.size === 0) begin();
      fresh = false;
    },
  };
}

function quoted(text) {
  return `“${text.length > 24 ? `${text.slice(0, 23)}…` : text}”`;
}
