// Match maps as colour: matplotlib's inferno, which is readable without colour vision and in grey, laid over a picture
// so that what matches is lit and the rest is dimmed.

const INFERNO = [
  "000004",
  "160b39",
  "420a68",
  "6a176e",
  "932667",
  "bc3754",
  "dd513a",
  "f37819",
  "fca50a",
  "f6d746",
  "fcffa4",
];
const VEIL = [0.74, 0.5]; // opacity over what matches least, and most
const FINE = 12; // pixels a cell, before the browser scales it smoothly

const RAMP = ramp();

function ramp() {
  const stops = INFERNO.map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Uint8ClampedArray.from({ length: 256 * 3 }, (_, index) => {
    const place = (Math.floor(index / 3) / 255) * (stops.length - 1);
    const stop = Math.min(stops.length - 2, Math.floor(place));
    const [from, to] = [stops[stop][index % 3], stops[stop + 1][index % 3]];
    return from + (to - from) * (place - stop);
  });
}

/**
 * Paint a map over the whole canvas.
 *
 * @param {HTMLCanvasElement} canvas it gets the size that the map needs
 * @param {{values: ArrayLike<number>, rows: number, columns: number, first: number, step: number, low: number,
 *   high: number}} map row by row; `first` is where the first row and column lie and `step` how far the next ones are, as
 *   fractions of the canvas; `low` and `high` are the ends of the colours
 */
export function paint(canvas, { values, rows, columns, first, step, low, high }) {
  const [height, width] = [rows * FINE, columns * FINE];
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const place = (count) => (fine) => ((fine + 0.5) / (count * FINE) - first) / step;
  const wide = stretched(values, place(columns), rows, columns, 1, columns);
  const fine = stretched(wide, place(rows), width, rows, width, 1);
  const scale = high > low ? 1 / (high - low) : 0;
  fine.forEach((value, index) => {
    const share = Math.min(1, Math.max(0, (value - low) * scale));
    const colour = 3 * Math.round(255 * share);
    const at = 4 * index;
    image.data[at] = RAMP[colour];
    image.data[at + 1] = RAMP[colour + 1];
    image.data[at + 2] = RAMP[colour + 2];
    image.data[at + 3] = 255 * (VEIL[0] + (VEIL[1] - VEIL[0]) * share);
  });
  context.putImageData(image, 0, 0);
}

/**
 * Lines of numbers, each stretched FINE times by cubic convolution (Keys 1981, a = -1/2), which goes through the values
 * where they lie.
 *
 * @param {(fine: number) => number} at the place among the numbers of each of those that they become
 * @param {number} lines how many, @param {number} length of each
 * @param {number} step from one number of a line to the next, @param {number} next from one line to the next
 */
function stretched(values, at, lines, length, step, next) {
  const result = new Float32Array(lines * length * FINE);
  const outNext = step === 1 ? length * FINE : 1;
  const outStep = step === 1 ? 1 : step;
  for (let fine = 0; fine < length * FINE; fine += 1) {
    const place = at(fine);
    const cell = Math.floor(place);
    const weights = cubic(place - cell);
    const cells = [-1, 0, 1, 2].map((offset) => step * Math.min(length - 1, Math.max(0, cell + offset)));
    for (let line = 0; line < lines; line += 1) {
      let sum = 0;
      for (let tap = 0; tap < 4; tap += 1) sum += weights[tap] * values[line * next + cells[tap]];
      result[line * outNext + fine * outStep] = sum;
    }
  }
  return result;
}

function cubic(t) {
  return [
    (((2 - t) * t - 1) * t) / 2,
    ((3 * t - 5) * t * t + 2) / 2,
    (((4 - 3 * t) * t + 1) * t) / 2,
    ((t - 1) * t * t) / 2,
  ];
}

/** Paint the colours from low to high along a canvas of 256 pixels' width. */
export function paintRamp(canvas) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(256, 1);
  for (let index = 0; index < 256; index += 1) {
    image.data.set([RAMP[3 * index], RAMP[3 * index + 1], RAMP[3 * index + 2], 255], 4 * index);
  }
  context.putImageData(image, 0, 0);
}
