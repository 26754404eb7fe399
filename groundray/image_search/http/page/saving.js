// What the Search tab shows, saved as PNG: drawn anew, twice as fine as on a screen, from the thumbnails that are shown.

import { Failure } from "./api.js";
import { figure } from "./elements.js";
import { ofPool, rankedBy } from "./pictures.js";

const FINE = 2; // pixels of the file for one of these
const EDGE = 24;
const GAP = 8;
const TITLE = 22; // sizes of text
const NOTE = 12;
const COLUMN = 72; // of the strip
const STACKED = 3; // pictures in a column of the strip
const TILE = 120; // of the grid
const QUERY = 72; // side of the query picture
const ACROSS = 8; // tiles beside each other, at most
const MOST = 400; // tiles that are drawn

/** Save the way from a picture to words: at each alpha the first pictures, best above. */
export async function saveStrip(title, picture, texts, answers, alphas) {
  const columns = answers.map((results) => results.slice(0, STACKED));
  const images = await loaded(columns.flat().map(({ id }) => ofPool(id).thumbnail));
  const width = 2 * EDGE + answers.length * (COLUMN + GAP) - GAP;
  const top = EDGE + QUERY + 2 * GAP;
  const height = top + STACKED * (COLUMN + GAP) + NOTE + EDGE;
  await save(`groundray strip ${texts.join(" ")}`, width, height, async (context, ink) => {
    await head(context, ink, title, picture, width);
    columns.forEach((results, step) => {
      const left = EDGE + step * (COLUMN + GAP);
      results.forEach(({ id }, rank) => {
        cropped(context, images.get(ofPool(id).thumbnail), left, top + rank * (COLUMN + GAP), COLUMN);
      });
      const share = alphas[step];
      context.fillStyle = ink.soft;
      context.textAlign = "center";
      context.font = `${NOTE}px ${ink.font}`;
      context.fillText(figure(share), left + COLUMN / 2, height - EDGE);
    });
  });
}

/** Save the results: nearest first, each with its rank and its score. */
export async function saveGrid(title, picture, results) {
  const shown = results.slice(0, MOST);
  const images = await loaded(shown.map(({ id }) => ofPool(id).thumbnail));
  const across = Math.min(ACROSS, Math.max(4, shown.length));
  const width = 2 * EDGE + across * (TILE + GAP) - GAP;
  const top = EDGE + QUERY + 2 * GAP;
  const row = TILE + NOTE + 2 * GAP;
  const height = top + Math.ceil(shown.length / across) * row + EDGE - GAP;
  await save("groundray pictures", width, height, async (context, ink) => {
    await head(context, ink, title, picture, width);
    shown.forEach((hit, index) => {
      const left = EDGE + (index % across) * (TILE + GAP);
      const y = top + Math.floor(index / across) * row;
      cropped(context, images.get(ofPool(hit.id).thumbnail), left, y, TILE);
      context.font = `${NOTE}px ${ink.font}`;
      context.fillStyle = ink.soft;
      context.textAlign = "left";
      context.fillText(index + 1, left, y + TILE + NOTE + 3);
      context.fillStyle = ink.ink;
      context.textAlign = "right";
      context.fillText(figure(rankedBy(hit)), left + TILE, y + TILE + NOTE + 3);
    });
  });
}

/** Draw on a canvas of the page's colours, and save it as a file of a name. */
async function save(name, width, height, draw) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [FINE * width, FINE * height];
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const colour = (of) => style.getPropertyValue(`--${of}`).trim();
  const ink = { ink: colour("ink"), soft: colour("soft"), font: colour("sans"), serif: colour("serif") };
  context.scale(FINE, FINE);
  context.fillStyle = colour("paper");
  context.fillRect(0, 0, width, height);
  await draw(context, ink);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Failure("The picture is too large for this browser: show fewer results.");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name.replaceAll(/[^\p{L}\p{N} ._-]/gu, "").slice(0, 80).trim()}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The query: its picture, and its equation beside it. */
async function head(context, ink, title, picture, width) {
  let left = EDGE;
  if (picture) {
    const images = await loaded([picture.thumbnail]);
    cropped(context, images.get(picture.thumbnail), left, EDGE, QUERY);
    left += QUERY + 2 * GAP;
  }
  context.fillStyle = ink.ink;
  context.textAlign = "left";
  context.font = `${TITLE}px ${ink.serif}`;
  context.fillText(title, left, EDGE + QUERY / 2 + TITLE / 3, width - EDGE - left);
}

/** The pictures at some addresses, by address; one that cannot be read is left out. */
async function loaded(addresses) {
  const entries = [...new Set(addresses)].map(async (address) => {
    const image = new Image();
    image.src = address;
    return [address, await image.decode().then(() => image).catch(() => null)];
  });
  return new Map(await Promise.all(entries));
}

/** Draw the middle of a picture as a square, as the page shows it. */
function cropped(context, image, left, top, side) {
  if (!image) return;
  const part = Math.min(image.naturalWidth, image.naturalHeight);
  const [x, y] = [(image.naturalWidth - part) / 2, (image.naturalHeight - part) / 2];
  context.save();
  context.beginPath();
  context.roundRect(left, top, side, side, 8);
  context.clip();
  context.drawImage(image, x, y, part, part, left, top, side, side);
  context.restore();
}
