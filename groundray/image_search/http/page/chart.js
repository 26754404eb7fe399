// The plot of the words: plotly's traces and layout, and labels that do not overlap.
//
// Categories are told apart by colour and by shape. The colours are those of Okabe and Ito, with the yellow and the
// blue made readable on light and on dark; concreteness is cividis. Both hold without colour vision.

import { figure, make } from "./elements.js";

const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#7a6ff0", "#3f8f8f"];
const DARK = { "#0072b2": "#3d9fe0", "#8c6d1f": "#c8a94a" };
// plotly's names of the shapes, and what the key draws of them, 14 pixels a side
const SHAPES = {
  circle: "M7 2a5 5 0 1 1 0 10a5 5 0 0 1 0-10z",
  diamond: "M7 1l6 6l-6 6l-6-6z",
  square: "M2.5 2.5h9v9h-9z",
  "triangle-up": "M7 2l6 10h-12z",
  star: "M7 .8l1.5 4.4h4.7l-3.8 2.8l1.4 4.5l-3.8-2.7l-3.8 2.7l1.4-4.5l-3.8-2.8h4.7z",
  cross: "M5.2 1h3.6v4.2h4.2v3.6h-4.2v4.2h-3.6v-4.2h-4.2v-3.6h4.2z",
  "triangle-down": "M7 12l-6-10h12z",
  x: "M3.4 1l3.6 3.6l3.6-3.6l2.4 2.4l-3.6 3.6l3.6 3.6l-2.4 2.4l-3.6-3.6l-3.6 3.6l-2.4-2.4l3.6-3.6l-3.6-3.6z",
  hexagon: "M7 1l5.2 3v6l-5.2 3l-5.2-3v-6z",
};
const OTHER = "M7 2.6a4.4 4.4 0 1 1 0 8.8a4.4 4.4 0 0 1 0-8.8z";
const CIVIDIS = [
  "#00224e",
  "#083370",
  "#35456c",
  "#4f576c",
  "#666970",
  "#7d7c78",
  "#948e77",
  "#aea371",
  "#c8b866",
  "#e5cf52",
  "#fee838",
];
const FONT = 12;
const MARGIN = 0.09; // of the spread, around the points

/** Number of categories with a colour of their own; smaller ones share grey. */
export const COLOURS = PALETTE.length;

/**
 * Plotly's traces and layout.
 *
 * @param {Object} wanted `data` and `found` as space.js has them; `view` is what is chosen; `panels` are one or two
 *   {share, name}, share 0 before grounding, 1 after; `stacked` puts two panels one below the other; `size` in
 *   pixels; `rest` is true when nothing moves; labels are laid out then
 */
export function spread({ data, view, panels, found, stacked, size, rest }) {
  const ink = colours();
  const layout = {
    uirevision: `${view.x} ${view.y} ${panels.length} ${stacked}`,
    margin: { l: 36, r: 10, t: 34, b: 40, autoexpand: false },
    width: size[0],
    height: size[1],
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: ink.font, size: FONT, color: ink.soft },
    hoverlabel: { bgcolor: ink.card, bordercolor: ink.line, font: { family: ink.font, size: 13, color: ink.ink } },
    hovermode: "closest",
    dragmode: "zoom",
    showlegend: false,
    annotations: [],
    transition: { duration: 0 },
  };
  const traces = panels.flatMap((panel, index) => {
    const [xs, ys] = [view.x, view.y].map((axis) => data.words.map((word) => between(word.at, axis, panel.share)));
    const own = found && [view.x, view.y].map((axis) => between(found.at, axis, panel.share));
    axes(layout, {
      index,
      panels,
      stacked,
      xs: own ? [...xs, own[0]] : xs,
      ys: own ? [...ys, own[1]] : ys,
      data,
      view,
      panel,
      ink,
    });
    const place = { xaxis: index ? "x2" : "x", yaxis: index ? "y2" : "y" };
    return [
      ...groups(data, view, ink).map((group) => ({
        ...place,
        type: "scatter",
        mode: "markers+text",
        x: group.members.map((member) => xs[member]),
        y: group.members.map((member) => ys[member]),
        text: group.members.map(() => ""),
        customdata: group.members.map((member) => data.words[member].text),
        hovertext: group.members.map((member) => about(data.words[member])),
        hovertemplate: "%{hovertext}<extra></extra>",
        textposition: "middle right",
        textfont: { size: FONT, color: ink.ink },
        marker: group.marker,
        cliponaxis: false,
      })),
      ...marks({ data, found, own, xs, ys, place, share: panel.share, ink }),
    ];
  });
  if (rest) label(traces, layout, found);
  return { traces, layout };
}

/** The legend: elements for the categories, or the scale of concreteness. */
export function key(data, view) {
  if (view.colour === "concreteness") {
    const ramp = make("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    const context = ramp.getContext("2d");
    const gradient = context.createLinearGradient(0, 0, 256, 0);
    CIVIDIS.forEach((colour, index) => gradient.addColorStop(index / (CIVIDIS.length - 1), colour));
    context.fillStyle = gradient;
    context.fillRect(0, 0, 256, 1);
    return [
      make("li", { class: "scale" }, "1 abstract", ramp, "5 concrete"),
      make("li", {}, drawn(OTHER, "none", "currentColor"), "not rated"),
    ];
  }
  return groups(data, view, colours()).map(({ name, marker }) =>
    make(
      "li",
      {},
      SHAPES[marker.symbol] ? drawn(SHAPES[marker.symbol], marker.color, "none") : drawn(OTHER, "none", "currentColor"),
      name,
    ),
  );
}

function drawn(path, fill, stroke) {
  const name = "http://www.w3.org/2000/svg";
  const [picture, shape] = ["svg", "path"].map((tag) => document.createElementNS(name, tag));
  picture.setAttribute("viewBox", "0 0 14 14");
  picture.setAttribute("aria-hidden", "true");
  for (const [attribute, value] of Object.entries({ d: path, fill, stroke })) shape.setAttribute(attribute, value);
  picture.append(shape);
  return picture;
}

/** Lay out the labels again for the current axis ranges, after zooming. */
export function legible(plot, found) {
  label(plot.data, plot.layout, found);
  window.Plotly.redraw(plot);
}

function between(at, axis, share) {
  return at[0][axis] + (at[1][axis] - at[0][axis]) * share;
}

function about(word) {
  const tells = [word.category && escaped(word.category), word.concreteness !== null && `concreteness ${figure(word.concreteness)}`];
  return [`<b>${escaped(word.text)}</b>`, ...tells.filter(Boolean)].join("<br>");
}

/** The words grouped by marker: their indices, a name, and plotly's marker. */
function groups(data, view, ink) {
  const everyone = data.words.map((_, index) => index);
  if (view.colour === "concreteness") {
    const [rated, unrated] = [true, false].map((is) =>
      everyone.filter((index) => (data.words[index].concreteness !== null) === is),
    );
    const scale = CIVIDIS.map((colour, index) => [index / (CIVIDIS.length - 1), colour]);
    const marker = {
      size: 10,
      color: rated.map((index) => data.words[index].concreteness),
      cmin: 1,
      cmax: 5,
      colorscale: scale,
      line: { width: 1, color: ink.soft },
    };
    return [
      { name: "rated", members: rated, marker },
      {
        name: "not rated",
        members: unrated,
        marker: { size: 8, color: "rgba(0,0,0,0)", line: { width: 1.5, color: ink.faint } },
      },
    ];
  }
  const named = data.categories.map((category, index) => ({
    name: category,
    members: everyone.filter((member) => data.words[member].category === category),
    marker: {
      size: 10,
      symbol: Object.keys(SHAPES)[index],
      color: ink.dark ? (DARK[PALETTE[index]] ?? PALETTE[index]) : PALETTE[index],
      line: { width: 1, color: ink.card },
    },
  }));
  const others = everyone.filter((member) => !data.categories.includes(data.words[member].category));
  const rest = { name: "other words", members: others, marker: { size: 7, symbol: "circle-open", color: ink.faint } };
  return others.length ? [...named, rest] : named;
}

/** The selected word, and lines to its neighbours. */
function marks({ data, found, own, xs, ys, place, share, ink }) {
  if (!found) return [];
  const index = new Map(data.words.map((word, at) => [word.text, at]));
  const near = found.neighbours[share < 0.5 ? 0 : 1]
    .map(({ text }) => index.get(text))
    .filter((at) => at !== undefined);
  const quiet = { ...place, type: "scatter", hoverinfo: "skip", cliponaxis: false };
  return [
    {
      ...quiet,
      mode: "lines",
      x: near.flatMap((at) => [own[0], xs[at], null]),
      y: near.flatMap((at) => [own[1], ys[at], null]),
      line: { width: 1, color: ink.word },
    },
    {
      ...quiet,
      mode: "markers",
      x: near.map((at) => xs[at]),
      y: near.map((at) => ys[at]),
      marker: { size: 17, color: "rgba(0,0,0,0)", line: { width: 1.5, color: ink.word } },
    },
    {
      ...quiet,
      mode: "markers+text",
      x: [own[0]],
      y: [own[1]],
      text: [escaped(found.text)],
      textposition: "top center",
      textfont: { size: FONT + 2, weight: 700, color: ink.word },
      marker: { size: 16, symbol: "star", color: ink.word, line: { width: 1.5, color: ink.card } },
    },
  ];
}

function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

function axes(layout, { index, panels, stacked, xs, ys, data, view, panel, ink }) {
  const gap = stacked ? 0.13 : 0.05;
  const [from, to] = panels.length === 1 ? [0, 1] : index === 0 ? [0, (1 - gap) / 2] : [(1 + gap) / 2, 1];
  const after = panel.share < 0.5 ? 0 : 1;
  const title = (axis) => `axis ${axis + 1} · ${Math.round(100 * data.explained[after][axis])} % of the variance`;
  const common = {
    zeroline: true,
    zerolinecolor: ink.line,
    gridcolor: ink.line,
    showgrid: false,
    showticklabels: false,
    ticks: "",
  };
  const suffix = index ? "2" : "";
  const across = stacked ? [0, 1] : [from, to];
  const up = stacked && panels.length > 1 ? [1 - to, 1 - from] : [0, 1];
  layout[`xaxis${suffix}`] = {
    ...common,
    domain: across,
    anchor: `y${suffix}`,
    range: ends(xs, 0.06),
    title: { text: title(view.x), font: { size: 12 }, standoff: 8 },
  };
  layout[`yaxis${suffix}`] = {
    ...common,
    domain: up,
    anchor: `x${suffix}`,
    range: ends(ys, 0),
    title: { text: title(view.y), font: { size: 12 }, standoff: 8 },
  };
  layout.annotations.push({
    text: panel.name,
    showarrow: false,
    xref: "paper",
    yref: "paper",
    x: across[0],
    y: up[1],
    xanchor: "left",
    yanchor: "bottom",
    yshift: 6,
    font: { size: 14, weight: 650, color: ink.ink },
  });
}

/** The range of an axis, with a margin around the points and `more` at the far end for labels. */
function ends(values, more) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low) * MARGIN || 1;
  return [low - room, high + room + (high - low) * more];
}

/**
 * Label the words that have room: first the neighbours of the selected word, then words far from the centre, where
 * points are few.
 */
function label(traces, layout, found) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = `${FONT}px system-ui, sans-serif`;
  const near = new Set(found?.neighbours.flat().map(({ text }) => text));
  for (const axis of ["", "2"]) {
    const [x, y] = [layout[`xaxis${axis}`], layout[`yaxis${axis}`]];
    if (!x) continue;
    const pixels = (one, values, length) => (value) =>
      ((value - values.range[0]) / (values.range[1] - values.range[0])) *
      length *
      (values.domain[1] - values.domain[0]);
    const width = layout.width - layout.margin.l - layout.margin.r;
    const height = layout.height - layout.margin.t - layout.margin.b;
    const [across, up] = [pixels("x", x, width), pixels("y", y, height)];
    const middle = [(x.range[0] + x.range[1]) / 2, (y.range[0] + y.range[1]) / 2];
    const points = traces
      .filter((trace) => trace.customdata && (trace.xaxis === "x2") === (axis === "2"))
      .flatMap((trace) =>
        trace.customdata.map((text, at) => {
          const place = [across(trace.x[at]), up(trace.y[at])];
          const far = Math.hypot(place[0] - across(middle[0]), place[1] - up(middle[1]));
          return { trace, at, text, place, first: near.has(text) ? Infinity : far };
        }),
      );
    const own = traces.find(
      (trace) => trace.mode === "markers+text" && !trace.customdata && (trace.xaxis === "x2") === (axis === "2"),
    );
    const taken = points.map(({ place: [left, bottom] }) => [left - 5, bottom - 5, left + 5, bottom + 5]);
    if (own) {
      const [left, bottom, half] = [
        across(own.x[0]),
        up(own.y[0]),
        context.measureText(found?.text ?? "").width * 0.65,
      ];
      taken.push([left - Math.max(half, 9), bottom - 9, left + Math.max(half, 9), bottom + 28]);
    }
    const limit = width * (x.domain[1] - x.domain[0]);
    for (const { trace, at, text, place } of points.sort((one, other) => other.first - one.first)) {
      const wide = context.measureText(text).width;
      const box = [place[0] + 7, place[1] - 7, place[0] + 9 + wide, place[1] + 7];
      const free =
        box[2] < limit + 8 &&
        !taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
      trace.text[at] = free ? escaped(text) : "";
      if (free) taken.push(box);
    }
  }
}

/** The colours and font of the current style. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: named("ink"),
    soft: named("soft"),
    faint: named("line-strong"),
    line: named("line"),
    card: named("card"),
    word: named("word"),
    font: named("sans"),
    dark: document.documentElement.dataset.theme === "dark",
  };
}
