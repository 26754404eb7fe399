// Requests to the service: one function that sends them, retries while the service is busy, and words every failure.

const TRIES = 6;
const AGAIN = [429, 503];
const LONGEST_WAIT = 30; // seconds
const LONGEST = 4000; // characters of an address: proxies refuse those of 8 kB, which 900 letters of other scripts take
const FORMS = ["search", "match-map"]; // paths that take a form, too
export const UPLOAD_LIMIT = 10e6; // bytes, as the service has it

/** A failed request, with a message to show. `status` is 0 if there was no response. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/**
 * Send a request and return its JSON response.
 *
 * A File among the fields, or long ones, make the request a POST. List fields are repeated; null and undefined fields are omitted.
 * A service that is busy (503), or that this client asks too often (429), is asked again after its Retry-After.
 *
 * @param {string} path relative to the page
 * @param {Object<string, string|number|File|Array|null>} fields
 * @param {{signal?: AbortSignal, waiting?: (seconds: number) => void}} options `waiting` is called before each wait
 * @throws {Failure} the service refused, or is unreachable; AbortError if `signal` aborted the request
 */
export async function ask(path, fields = {}, { signal, waiting } = {}) {
  const pairs = Object.entries(fields).flatMap(([name, value]) =>
    [value]
      .flat()
      .filter((one) => one !== null && one !== undefined)
      .map((one) => [name, one]),
  );
  const query = new URLSearchParams(pairs).toString();
  const long = query.length > LONGEST && FORMS.includes(path);
  const form = long || pairs.some(([, value]) => value instanceof File) ? new FormData() : null;
  if (form) for (const [name, value] of pairs) form.append(name, value);
  const url = form || !query ? path : `${path}?${query}`;
  for (let tries = 1; ; tries += 1) {
    const answer = await reach(url, form ? { method: "POST", body: form, signal } : { signal });
    if (answer.ok) return read(answer);
    if (!AGAIN.includes(answer.status) || tries === TRIES) throw new Failure(await said(answer), answer.status);
    const seconds = wait(answer.headers.get("Retry-After"));
    waiting?.(seconds);
    await sleep(seconds * 1000, signal);
  }
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service does not answer. See whether it still runs where you started it, then try again.");
  }
}

/** The content of a response. It may break off, or be that of a proxy, such as a form to log in. */
async function read(answer) {
  try {
    return await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service's answer did not arrive whole: try again.", answer.status);
  }
}

/** The message of an error response; FastAPI's validation errors are a list. */
async function said(answer) {
  try {
    const { detail } = await answer.json();
    if (typeof detail === "string") return sentence(detail);
    return sentence(detail.map((one) => `${one.loc.at(-1)}: ${one.msg}`).join("; "));
  } catch {
    return answer.status === 503
      ? "The service is still busy. Try again later."
      : `The service answered with status ${answer.status}, without a message.`;
  }
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Seconds to wait, from a Retry-After in seconds or as a date; 1 if there is none. */
function wait(header) {
  const seconds = Number(header ?? 1);
  const named = Number.isFinite(seconds) ? seconds : (Date.parse(header) - Date.now()) / 1000;
  // jitter, so that clients refused together do not retry together
  return Math.min(LONGEST_WAIT, Math.max(0.2, named || 1)) * (1 + 0.2 * Math.random());
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
 * Wrap `work(signal, ...values)` so that only the latest call counts: a new call aborts the previous one, which then
 * resolves to undefined.
 */
export function latest(work) {
  let controller = null;
  return async (...values) => {
    controller?.abort();
    const mine = (controller = new AbortController());
    try {
      const result = await work(mine.signal, ...values);
      return mine.signal.aborted ? undefined : result;
    } catch (error) {
      if (mine.signal.aborted) return undefined;
      throw error;
    }
  };
}

/** Debounce `action`: call it when calls have paused for some milliseconds; `.now()` calls it at once. */
export function paused(milliseconds, action) {
  let timer;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
  later.now = () => {
    clearTimeout(timer);
    action();
  };
  return later;
}
