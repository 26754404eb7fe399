// The Why tab: the match maps of a text's words on a picture.

import { Failure, ask, latest, paused } from "./api.js";
import { chips, clone, figure, parts, trouble } from "./elements.js";
import { paint, paintRamp } from "./heat.js";
import { tween } from "./motion.js";
import { asked, noted, ofPool, recalled, thumbnailButton } from "./pictures.js";

const OTHERS = 12;
const LIGHTING = 240; // milliseconds
const PRESENCE = { present: "in this picture", absent: "not in this picture", unclear: "unclear" };

export function openWhy(root, app) {
  const part = parts(root);
  const query = { picture: null, text: "", word: null };
  let ratings = new Map(); // concreteness of words
  let answer = null; // of the service, measured
  let pointed = null; // the token that is pointed at or focused
  let place = null; // the cell of the map that is pointed at
  let lit = null; // what the canvas shows
  let broken = null; // address of a picture that cannot be shown
  const light = tween(LIGHTING);

  // ---- requests
  const compare = latest(async (signal) => {
    describe();
    trouble(part.trouble, null);
    if (!query.picture || !query.text.trim()) {
      root.removeAttribute("aria-busy");
      take(null);
      return;
    }
    root.setAttribute("aria-busy", "true");
    try {
      const waiting = (seconds) => say(`The service is busy: trying again in ${Math.ceil(seconds)} s.`);
      const [found] = await Promise.all([
        ask("match-map", { ...asked(query.picture), text: query.text }, { signal, waiting }),
        part.picture.decode().catch(() => {}),
      ]);
      if (signal.aborted) return;
      if (!part.picture.naturalWidth) throw new Failure("The picture did not load: try again.");
      take(found);
    } catch (failure) {
      if (signal.aborted) return;
      take(null);
      say("");
      trouble(part.trouble, failure, again);
    } finally {
      if (!signal.aborted) root.removeAttribute("aria-busy");
    }
  });
  const soon = paused(260, compare);
  const again = () => {
    if (broken) part.picture.removeAttribute("src"); // it is loaded again
    broken = null;
    compare();
  };

  // ---- display
  const say = (text) => {
    part.status.textContent = text;
  };

  const describe = () => {
    const { picture, text } = query;
    const visible = picture !== null && picture.url !== broken;
    part.choose.hidden = visible;
    part.frame.hidden = !visible;
    part.chooseOther.hidden = !visible;
    part.findLike.hidden = !visible;
    if (picture && part.picture.getAttribute("src") !== picture.url) {
      part.picture.src = picture.url;
      part.picture.alt = `Picture ${picture.name}`;
      part.crop.classList.remove("lit");
      part.peak.hidden = true;
      lit = null;
    }
    if (part.text.value !== text) part.text.value = text;
    part.suggestions.hidden = text.trim() !== "";
    for (const button of part.filmstrip.children) {
      if (button.dataset.id === picture?.id) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  };

  /** Show an answer, or none. */
  const take = (found) => {
    answer = found && measured(found);
    pointed = place = null;
    part.sum.hidden = !answer;
    if (!answer) {
      part.tokens.replaceChildren();
      say(
        !query.picture ? "Choose a picture to begin with." : "Write what you see in the picture, or what you do not.",
      );
      show();
      return;
    }
    const { tokens, crop } = answer;
    if (!tokens[query.word]) query.word = null;
    const [left, top, right, bottom] = crop ?? [0, 0, 1, 1];
    Object.assign(part.crop.style, {
      left: percent(left),
      top: percent(top),
      width: percent(right - left),
      height: percent(bottom - top),
    });
    part.mean.textContent = figure(answer.mean);
    part.sumExplained.textContent = "is the mean over the words, each at its best place.";
    say(tokens.length ? leftOut(query.text, tokens) : "No word of this text is known to the model.");
    part.tokens.replaceChildren(...tokens.map(tokenButton));
    drawTokens();
    show();
  };

  const tokenButton = (token, index) => {
    const button = clone("token");
    button.querySelector(".word").textContent = token.text;
    button.querySelector(".presence").textContent = told(token);
    button.dataset.presence = token.presence;
    button.addEventListener("pointerenter", () => point(index));
    button.addEventListener("pointerleave", () => point(null));
    button.addEventListener("focus", () => point(index));
    button.addEventListener("blur", () => point(null));
    button.addEventListener("click", () => {
      query.word = index;
      note();
      show();
    });
    button.addEventListener("keydown", (event) => {
      const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: answer.tokens.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      part.tokens.children[to]?.focus();
    });
    return button;
  };

  /** A small map for each word; they share the colours of the model and pool unless each has its own. */
  const drawTokens = () => {
    const small = document.createElement("canvas");
    answer.tokens.forEach((token, index) => {
      const button = part.tokens.children[index];
      const canvas = button.querySelector("canvas");
      const side = Math.round(64 * Math.max(1, devicePixelRatio));
      canvas.width = canvas.height = side;
      const context = canvas.getContext("2d");
      const { naturalWidth: width, naturalHeight: height } = part.picture;
      const [left, top, right, bottom] = answer.crop ?? [0, 0, 1, 1];
      context.drawImage(
        part.picture,
        left * width,
        top * height,
        (right - left) * width,
        (bottom - top) * height,
        0,
        0,
        side,
        side,
      );
      paint(small, { ...answer, values: token.values, ...range(token) });
      context.imageSmoothingQuality = "high";
      context.drawImage(small, 0, 0, side, side);
    });
  };

  /** The ends of the colours for a token: those of the model and pool, or its own on this picture. */
  const range = (token) => (part.ownScale.checked ? { low: token.low, high: token.high } : answer.scale);

  /**
   * The first word to show: one that is in the picture; of these one that says something and whose map has light, the
   * most concrete, then the most unusual match.
   */
  const first = (tokens) => {
    const merits = ({ text, presence, percentile, score, present_from: bound }) => [
      ["absent", "unclear", "present"].indexOf(presence),
      Number(bound !== null),
      Number(score > answer.scale.low),
      ratings.get(text.toLowerCase()) ?? 0,
      percentile,
      score,
    ];
    const order = (one, other) => {
      const [left, right] = [merits(tokens[one]), merits(tokens[other])];
      const at = left.findIndex((merit, index) => merit !== right[index]);
      return at < 0 ? 0 : right[at] - left[at];
    };
    return [...tokens.keys()].sort(order)[0];
  };

  /** Highlight the word under the pointer, else the chosen one, else one that is in the picture. */
  const show = () => {
    const tokens = answer?.tokens ?? [];
    const index = pointed ?? query.word ?? (tokens.length ? first(tokens) : null);
    const token = tokens[index];
    part.legend.hidden = part.peak.hidden = !token;
    part.crop.classList.toggle("lit", Boolean(token));
    drawFigures(index);
    if (!token) {
      lit = null;
      part.reading.textContent = "";
      return;
    }
    const ends = range(token);
    part.low.textContent = `${figure(ends.low)}${part.ownScale.checked ? "" : " or less"}`;
    part.high.textContent = `${figure(ends.high)}${part.ownScale.checked ? "" : " or more"}`;
    part.scaleExplained.textContent = part.ownScale.checked
      ? "This word's own colours, from its lowest match in this picture to its best."
      : "The same colours for all words and pictures: what random words match at random places is dark.";
    if (answer.crop?.join() !== "0,0,1,1")
      part.scaleExplained.textContent += " The model sees the middle of this picture; the rest is grey.";
    const [row, column] = token.peak;
    Object.assign(part.peak.style, {
      left: percent(answer.first + column * answer.step),
      top: percent(answer.first + row * answer.step),
    });
    part.heat.setAttribute(
      "aria-label",
      `Match map of “${token.text}”, best in row ${row + 1} of ${answer.rows}, column ${column + 1}`,
    );
    const target = { ...answer, values: token.values, ...ends };
    const from = lit && lit.values.length === target.values.length ? lit : null;
    if (!from) {
      lit = target;
      paint(part.heat, lit);
    } else if (from.values !== target.values || from.low !== target.low || from.high !== target.high) {
      light((share) => {
        const between = (one, other) => one + (other - one) * share;
        lit =
          share === 1
            ? target
            : {
                ...target,
                values: from.values.map((value, at) => between(value, target.values[at])),
                low: between(from.low, target.low),
                high: between(from.high, target.high),
              };
        paint(part.heat, lit);
      });
    }
  };

  /** The numbers of each word: at its best place, or at the pointer. */
  const drawFigures = (index) => {
    const tokens = answer?.tokens ?? [];
    const cell = place && place.row * answer.columns + place.column;
    const value = (token) => (place ? token.values[cell] : token.score);
    tokens.forEach((token, at) => {
      const button = part.tokens.children[at];
      button.querySelector(".score").textContent = figure(value(token));
      const { low, high } = answer.scale;
      button.querySelector(".bar").style.setProperty("--value", (value(token) - low) / Math.max(high - low, 1e-9));
      button.setAttribute("aria-pressed", String(at === query.word));
      button.setAttribute("aria-label", `${token.text}, ${told(token) || "no"}, best match ${figure(token.score)}`);
      button.classList.toggle("shown", at === index);
    });
    if (!tokens.length) return;
    if (place) {
      const ranked = [...tokens].sort((one, other) => value(other) - value(one)).slice(0, 3);
      const matches = ranked.map((token) => `${token.text} ${figure(value(token))}`);
      part.reading.textContent = `At this place: ${matches.join(", ")}.`;
    } else {
      part.reading.textContent = reading(tokens[index]);
    }
  };

  const drawOthers = async () => {
    let ids = app.found().slice(0, OTHERS);
    if (!ids.length) {
      const { results } = await ask("pool", { k: OTHERS, seed: 1 });
      ids = results.map(({ id }) => id);
    }
    if (query.picture?.id && !ids.includes(query.picture.id)) ids = [query.picture.id, ...ids].slice(0, OTHERS);
    part.filmstrip.replaceChildren(
      ...ids.map((id) => {
        const button = thumbnailButton(ofPool(id), `Picture ${id}`, choose);
        button.dataset.id = id;
        return button;
      }),
    );
    part.others.hidden = false;
    describe();
  };

  // ---- events
  const note = (push = false) =>
    app.note("why", { ...noted(query.picture), text: query.text || null, word: query.word }, push);
  const point = (index) => {
    pointed = index;
    if (index !== null) place = null;
    show();
  };
  const choose = (picture) => {
    query.picture = picture;
    note(true);
    compare();
  };
  const chooseByDialog = async () => {
    const picture = await app.chooser.choose();
    if (picture) choose(picture);
  };
  const write = (text) => {
    query.text = text;
    query.word = null;
    part.suggestions.hidden = text.trim() !== "";
    note();
  };

  part.choose.addEventListener("click", chooseByDialog);
  part.picture.addEventListener("error", () => {
    broken = query.picture?.url ?? null; // the comparison says what is wrong with it
    describe();
  });
  part.chooseOther.addEventListener("click", chooseByDialog);
  part.findLike.addEventListener("click", () => app.go("search", { ...noted(query.picture), text: query.text }));
  part.text.addEventListener("input", () => {
    write(part.text.value);
    soon();
  });
  part.text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    soon.now();
  });
  part.ownScale.addEventListener("change", () => {
    drawTokens();
    show();
  });
  part.crop.addEventListener("pointermove", (event) => {
    if (!answer) return;
    const box = part.crop.getBoundingClientRect();
    const nearest = (share) => Math.round((share - answer.first) / answer.step);
    const cell = (share, count) => Math.min(count - 1, Math.max(0, nearest(share)));
    place = {
      row: cell((event.clientY - box.top) / box.height, answer.rows),
      column: cell((event.clientX - box.left) / box.width, answer.columns),
    };
    show();
  });
  part.crop.addEventListener("pointerleave", ({ pointerType }) => {
    if (pointerType === "touch") return; // a finger that is lifted leaves its place to be read
    place = null;
    show();
  });
  app.suggestions.then((words) =>
    chips(part.suggestions, words, (word) => {
      write(word);
      compare();
    }),
  );
  app.words().then(
    ({ words }) => {
      ratings = new Map(words.map(({ text, concreteness }) => [text, concreteness ?? 0]));
    },
    () => {}, // then the best match comes first
  );
  paintRamp(part.ramp);

  return {
    take: choose,
    /** Show the view of an address; if it names none, the query of the Search tab. */
    show(values) {
      const from = values.size ? values : app.noted("search");
      let failure = null;
      try {
        query.picture = recalled(from);
      } catch (caught) {
        query.picture = null;
        failure = caught;
      }
      query.text = from.get("text") ?? "";
      query.word = values.has("word") ? Number(values.get("word")) : null;
      note();
      compare().then(() => failure && trouble(part.trouble, failure));
      drawOthers().catch(() => {}); // they are an offer; the comparison says what is wrong
    },
  };
}

/** An answer with each token's map as a flat array, and its minimum and maximum. */
function measured(answer) {
  const tokens = answer.tokens.map((token) => {
    const values = Float32Array.from(token.map.flat());
    return { ...token, values, low: Math.min(...values), high: Math.max(...values) };
  });
  return { ...answer, tokens };
}

/** Whether a word is in the picture, in a few words; nothing of a word that matches all pictures nearly alike. */
function told({ presence, present_from: bound }) {
  return bound === null ? "" : PRESENCE[presence];
}

/** A sentence about the words at the end of a text that the model does not read; empty if it reads all. */
function leftOut(text, tokens) {
  const rest = [...text].slice(Math.max(...tokens.map(({ end }) => end))).join("").trim(); // code points, as in Python
  if (!/[\p{L}\p{N}]/u.test(rest)) return "";
  const shown = rest.length > 80 ? `${rest.slice(0, 79)}…` : rest;
  return `The text is longer than the model reads. Left out: “${shown}”`;
}

/** A sentence about a word's best match. */
function reading({ text, score, percentile, presence, present_from: bound }) {
  const best = `its best match, ${figure(score)} at the marked place,`;
  const [lower, higher] = [Math.floor(percentile), Math.floor(100 - percentile)];
  if (bound === null) return `By itself, “${text}” matches all pictures nearly alike: ${best} says little about this one.`;
  if (presence === "absent") return `“${text}” is not in this picture: ${best} is below that on ${higher} % of pictures.`;
  const above = `${best} is above that on ${lower} % of the pool's pictures.`;
  return presence === "present" ? `“${text}” is in this picture: ${above}` : `“${text}” may be in this picture: ${above}`;
}

function percent(share) {
  return `${100 * share}%`;
}
