// The Search tab: a picture, a word, and the mixes between them. All steps are requested at once, so that moving the
// slider sends no request.

import { ask, latest, paused } from "./api.js";
import { chips, clone, counted, figure, make, parts, trouble } from "./elements.js";
import { arrange } from "./motion.js";
import { asked, noted, ofPool, recalled } from "./pictures.js";

const STEPS = 20; // alpha moves by 1/20, as in the paper
const ALPHAS = Array.from({ length: STEPS + 1 }, (_, step) => step / STEPS);
const FIRST = 24; // results; each "more" doubles them
const MOST = 200; // the service's limit
const STACKED = 3; // pictures in a column of the strip
const NARROWEST = 46; // pixels of a column
const PLAY = 280; // milliseconds a step

export function openSearch(root, app) {
  const part = parts(root);
  const query = { picture: null, text: "", step: STEPS / 2 };
  let shown = FIRST;
  let answers = []; // one an alpha of the way, or a single one
  let playing = null;

  // ---- requests
  const mixed = () => query.picture !== null && query.text !== "";
  const empty = () => query.picture === null && query.text === "";

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
      const fields = { ...asked(query.picture), text: query.text, k: Math.min(MOST, shown + 1) };
      const waiting = (seconds) => say(`The service is busy: trying again in ${Math.ceil(seconds)} s.`);
      const found = await ask("search", mixed() ? { ...fields, alpha: ALPHAS } : fields, { signal, waiting });
      answers = found.answers.map(({ results }) => withoutQuery(results));
      draw(found.milliseconds);
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

  /** The results without the query picture, which is always nearest to itself. */
  const withoutQuery = (results) => results.filter(({ id }) => id !== query.picture?.id).slice(0, shown);

  /** Prefetch the thumbnails of all steps, so that moving the slider shows no gaps. */
  const warm = () => {
    const ids = new Set(answers.flatMap((results) => results.slice(0, FIRST).map(({ id }) => id)));
    for (const id of ids) new Image().src = ofPool(id).thumbnail;
  };

  // ---- display
  const say = (text) => {
    part.status.textContent = text;
  };
  const alpha = () => (mixed() ? query.step / STEPS : query.text ? 1 : 0);
  const results = () => answers[mixed() ? query.step : 0] ?? [];

  /** The query: picture, equation, and a hint at what is missing. */
  const describe = () => {
    const { picture, text } = query;
    part.picture.hidden = !picture;
    part.noPicture.hidden = Boolean(picture);
    part.noMorePicture.hidden = !picture;
    if (picture) part.picture.src = picture.url;
    part.pictureName.textContent = picture ? picture.name : "none";
    if (part.text.value.trim() !== text) part.text.value = text;
    root.style.setProperty("--alpha", alpha());
    part.alpha.value = query.step / STEPS;
    const share = Math.round(alpha() * 100);
    part.alpha.setAttribute("aria-valuetext", `${figure(alpha())}: ${100 - share} % picture, ${share} % word`);
    const pole = (name, words) => make("span", { class: `of-${name}` }, words);
    if (mixed()) {
      part.equation.replaceChildren(
        "Q = ",
        pole("picture", `${figure(1 - alpha())} · picture`),
        " + ",
        pole("word", `${figure(alpha())} · ${quoted(text)}`),
      );
      part.explained.textContent = "The slider sets α. Below are the pictures by their cosine with Q.";
    } else if (empty()) {
      part.equation.replaceChildren("Q = ", pole("picture", "(1 − α) · picture"), " + ", pole("word", "α · word"));
      part.explained.textContent = "Choose a picture, type a word, or do both.";
    } else {
      part.equation.replaceChildren("Q = ", picture ? pole("picture", "picture") : pole("word", quoted(text)));
      part.explained.textContent = picture
        ? "Type a word to move from the picture to it."
        : "Choose a picture to move from it to the word.";
    }
  };

  const draw = (milliseconds = null) => {
    part.path.hidden = !(mixed() && answers.length === ALPHAS.length);
    drawStrip();
    drawGrid();
    const found = results().length;
    part.more.hidden = found < shown || shown >= MOST;
    if (milliseconds !== null) {
      say(found ? `${counted(found, "picture")}, nearest first · answered in ${milliseconds.toFixed(0)} ms` : "");
    } else if (!found) say("");
  };

  const drawGrid = () => {
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
    item.querySelector("img").src = picture.thumbnail;
    item.querySelector(".open").addEventListener("click", () => app.go("why", { image: id, text: query.text }));
    const use = item.querySelector(".use");
    use.title = "Search with this picture";
    use.setAttribute("aria-label", `Search with picture ${id}`);
    use.addEventListener("click", () => take(picture));
    return item;
  };
  const update = (item, { id, score }, index) => {
    item.querySelector(".rank").textContent = index + 1;
    item.querySelector(".score").textContent = figure(score);
    item.querySelector(".open .bar").style.setProperty("--value", score);
    item
      .querySelector(".open")
      .setAttribute("aria-label", `Rank ${index + 1}: picture ${id}, score ${figure(score)}. See why`);
  };

  const drawStrip = () => {
    if (part.path.hidden) return;
    const stride = [1, 2, 5].find((every) => part.strip.clientWidth / (STEPS / every + 1) >= NARROWEST) ?? 5;
    const steps = ALPHAS.map((_, step) => step).filter((step) => step % stride === 0);
    part.path.style.setProperty("--columns", steps.length);
    while (part.strip.children.length > steps.length) part.strip.lastChild.remove();
    while (part.strip.children.length < steps.length) part.strip.append(column());
    steps.forEach((step, place) => {
      const button = part.strip.children[place];
      button.dataset.step = step;
      const first = answers[step].slice(0, STACKED);
      [...button.querySelectorAll("img")].forEach((image, rank) => {
        image.hidden = !first[rank];
        const source = first[rank] && ofPool(first[rank].id).thumbnail;
        if (source && image.getAttribute("src") !== source) image.setAttribute("src", source);
      });
      button.querySelector(".at").textContent = figure(step / STEPS).replace(/0$/, "");
      button.setAttribute("aria-label", `Alpha ${figure(step / STEPS)}: first is picture ${first[0]?.id}`);
    });
    mark(stride);
  };
  const column = () => {
    const images = Array.from({ length: STACKED }, () => make("img", { alt: "", decoding: "async" }));
    const button = make("button", { type: "button", tabindex: "-1" }, ...images, make("span", { class: "at" }));
    button.addEventListener("click", () => {
      pause();
      move(Number(button.dataset.step));
    });
    return button;
  };
  /** Mark the column nearest to the slider. */
  const mark = (stride = (part.strip.children[1]?.dataset.step ?? 1) - 0) => {
    const nearest = Math.round(query.step / stride) * stride;
    for (const button of part.strip.children) {
      if (Number(button.dataset.step) === nearest) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  };

  // ---- events
  const note = (push = false) =>
    app.note(
      "search",
      { ...noted(query.picture), text: query.text || null, alpha: mixed() ? query.step / STEPS : null },
      push,
    );

  const move = (step) => {
    if (step === query.step) return;
    query.step = step;
    describe();
    mark();
    drawGrid();
    note();
  };
  const take = (picture) => {
    pause();
    query.picture = picture;
    shown = FIRST;
    note(true);
    search();
  };
  const write = (text, now = false) => {
    pause();
    query.text = text.trim();
    shown = FIRST;
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
  part.text.addEventListener("input", () => write(part.text.value));
  part.text.addEventListener("keydown", (event) => {
    if (event.key === "Enter") write(part.text.value, true);
  });
  part.alpha.addEventListener("input", () => {
    pause();
    move(Math.round(part.alpha.value * STEPS));
  });
  part.play.addEventListener("click", () => (playing === null ? play() : pause()));
  part.more.addEventListener("click", () => {
    shown = Math.min(MOST, shown * 2);
    search();
  });
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width !== width && answers.length === ALPHAS.length) drawStrip();
    width = entry.contentRect.width;
  }).observe(part.path);
  app.suggestions.then((words) => chips(part.suggestions, words, (word) => write(word, true)));

  let fresh = true; // nothing was shown yet
  const begin = async () => {
    const example = await app.example().catch(() => null); // the search itself says what is wrong
    if (!example || !empty()) return;
    query.picture = example.image ? ofPool(example.image) : null;
    query.text = example.text ?? "";
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
      query.text = (values.get("text") ?? "").trim();
      const named = Number(values.get("alpha") ?? 0.5);
      query.step = Math.round(Math.min(1, Math.max(0, Number.isFinite(named) ? named : 0.5)) * STEPS);
      shown = FIRST;
      search();
      if (fresh && values.size === 0) begin();
      fresh = false;
    },
  };
}

function quoted(text) {
  return `“${text.length > 24 ? `${text.slice(0, 23)}…` : text}”`;
}
