// Pictures of the pool, pictures of this device, and the dialog that chooses one.

import { Failure, UPLOAD_LIMIT, ask, latest } from "./api.js";
import { openCamera } from "./camera.js";
import { make, parts, trouble } from "./elements.js";

const POOL = 24;
const RELOADS = 3; // of a picture that did not load
const RELOAD = 1000; // milliseconds until the first of them; the next take longer

// the version of the pool, of which a browser keeps pictures for good; the service writes it into the page
const version = document.querySelector('meta[name="pool"]')?.content;
const VERSION = version ? `?v=${encodeURIComponent(version)}` : "";

/**
 * A query picture: one of the pool by id, or a file of this device.
 *
 * @typedef {{id: ?string, file: ?File, url: string, thumbnail: string, name: string}} Picture
 */

const own = new Map(); // the files of this visit, by name

/** @returns {Picture} */
export function ofPool(id) {
  const place = encodeURIComponent(id);
  return { id, file: null, url: `images/${place}${VERSION}`, thumbnail: `thumbnails/${place}${VERSION}`, name: id };
}

/** What a found picture is ranked by: its match, where match maps ranked it again, or else its cosine. */
export function rankedBy({ match, score }) {
  return match ?? score;
}

/**
 * @returns {Picture}
 * @throws {Failure} the file is not a picture, or too large
 */
export function ofFile(file) {
  if (!file.type.startsWith("image/")) {
    throw new Failure(
      `“${file.name}” is ${file.type || "of an unknown type"}, not a picture: choose a JPEG, PNG or WebP file.`,
    );
  }
  if (file.size > UPLOAD_LIMIT) {
    const size = (file.size / 1e6).toFixed(1);
    throw new Failure(
      `“${file.name}” has ${size} MB; the limit is ${UPLOAD_LIMIT / 1e6} MB: make it smaller first.`,
    );
  }
  const name = unused(file);
  const url = own.get(name)?.url ?? URL.createObjectURL(file);
  const picture = { id: null, file, url, thumbnail: url, name };
  own.set(name, picture);
  return picture;
}

/**
 * A file's name, with a number if another file of this visit has it: browsers call each pasted picture `image.png`, and
 * an address names a picture by this alone.
 */
function unused(file) {
  const same = (other) => ["size", "type", "lastModified"].every((of) => other[of] === file[of]);
  let name = file.name;
  for (let number = 2; own.has(name) && !same(own.get(name).file); number += 1) name = `${file.name} (${number})`;
  return name;
}

/** The fields of a request about a picture. */
export function asked(picture) {
  return picture ? { image: picture.id, file: picture.file } : {};
}

/** How the address names a picture. It never holds a file itself. */
export function noted(picture) {
  if (!picture) return {};
  return picture.id === null ? { file: picture.name } : { image: picture.id };
}

/**
 * The picture that an address names, or null.
 *
 * @throws {Failure} it was a file, which must be chosen again
 */
export function recalled(values) {
  const [image, file] = [values.get("image"), values.get("file")];
  if (image) return ofPool(image);
  if (!file) return null;
  if (own.has(file)) return own.get(file);
  throw new Failure(`The picture “${file}” of this view stayed on the device that it came from: choose it again.`);
}

/** The dialog: `choose()` resolves to the chosen picture, or to null. */
export function openChooser() {
  const dialog = document.getElementById("chooser");
  const part = parts(dialog);
  let seed = 0;
  let next = 0; // offset of the next page of the pool, null after the last one
  let camera = null;
  let resolve = () => {};

  const finish = (picture) => {
    resolve(picture);
    resolve = () => {};
    dialog.close();
  };
  const take = (file) => {
    try {
      finish(ofFile(file));
    } catch (failure) {
      trouble(part.trouble, failure);
    }
  };
  /** Add a page of the pool, in the order of `seed`; the focus goes to its first picture if `button` had it. */
  const fill = latest(async (signal, button = null) => {
    part.pool.setAttribute("aria-busy", "true");
    try {
      const { results, next: after } = await ask("pool", { k: POOL, seed, offset: next }, { signal });
      if (signal.aborted) return;
      const buttons = results.map(({ id }) => thumbnailButton(ofPool(id), `Picture ${id}`, finish));
      if (next === 0) part.pool.replaceChildren(...buttons);
      else part.pool.append(...buttons);
      next = after;
      part.morePool.hidden = next === null;
      if (button) buttons[0]?.focus();
      trouble(part.trouble, null);
    } catch (failure) {
      if (!signal.aborted) trouble(part.trouble, failure, () => fill());
    } finally {
      if (!signal.aborted) part.pool.removeAttribute("aria-busy");
    }
  });

  const closeCamera = () => {
    camera?.stop();
    camera = null;
    part.camera.hidden = true;
  };
  part.openCamera.addEventListener("click", async () => {
    trouble(part.trouble, null);
    closeCamera();
    part.camera.hidden = false;
    try {
      const opened = await openCamera(part.video);
      if (!dialog.open || part.camera.hidden) opened.stop(); // it was closed meanwhile
      else {
        camera = opened;
        part.still.focus();
      }
    } catch (failure) {
      part.camera.hidden = true;
      if (dialog.open) trouble(part.trouble, failure);
    }
  });
  part.still.addEventListener("click", async () => {
    try {
      if (camera) take(await camera.still());
    } catch (failure) {
      trouble(part.trouble, failure);
    }
  });
  part.closeCamera.addEventListener("click", () => {
    closeCamera();
    part.openCamera.focus();
  });

  for (const input of [part.file, part.capture]) {
    input.addEventListener("change", () => {
      if (input.files.length) take(input.files[0]);
      input.value = "";
    });
  }
  part.others.addEventListener("click", () => {
    seed += 1;
    next = 0;
    fill();
  });
  part.morePool.addEventListener("click", () => fill(part.morePool));
  dialog.addEventListener("close", () => {
    closeCamera();
    finish(null);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  const choose = () =>
    new Promise((found) => {
      resolve = found;
      trouble(part.trouble, null);
      if (!part.pool.children.length) fill();
      dialog.showModal();
    });
  /** Take a dropped or pasted file: into the dialog if it is open, else to `use`. */
  const drop = (file, use) => {
    if (dialog.open) {
      take(file);
      return;
    }
    try {
      use(ofFile(file));
    } catch (failure) {
      choose().then((picture) => picture && use(picture));
      trouble(part.trouble, failure);
    }
  };
  return { choose, drop };
}

/**
 * The image, which loads again if it did not, three times at most: a busy service refuses pictures too. Then `fail()` is
 * called.
 */
export function persistent(image, fail = () => {}) {
  let tries = 0;
  image.addEventListener("load", () => {
    tries = 0;
  });
  image.addEventListener("error", () => {
    const source = image.getAttribute("src");
    tries += 1;
    if (tries > RELOADS) fail();
    else setTimeout(() => image.getAttribute("src") === source && image.setAttribute("src", source), tries * RELOAD);
  });
  return image;
}

/** A button that shows a picture. */
export function thumbnailButton(picture, label, choose) {
  const image = make("img", { src: picture.thumbnail, alt: "", loading: "lazy", decoding: "async" });
  const button = make("button", { type: "button", "aria-label": label }, image);
  button.addEventListener("click", () => choose(picture));
  persistent(image, () => button.remove());
  return button;
}

/** Pass pictures that are dropped or pasted anywhere on the page to `take(file)`. */
export function watchDropsAndPastes(take) {
  const veil = document.getElementById("veil");
  const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    veil.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    veil.classList.remove("over");
    if (!holdsFile(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (!file) return;
    event.preventDefault();
    take(file);
  });
}
