// What the server is asked, as docs/dashboard.md lists it. Everything is JSON.

export class ApiError extends Error {
  /** `status` 0: there was no answer at all. */
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

let token = "";
let skew = 0; // milliseconds by which the dashboard's clock is ahead of this browser's

/** Milliseconds since 1970 by the dashboard's clock: a tablet's clock may be anything. */
export const now = () => Date.now() + skew;

async function ask(method, path, body, timeout) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: method === "POST" ? { "Content-Type": "application/json", "X-CSRF-Token": token } : {},
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(timeout),
      redirect: "error",
    });
  } catch {
    throw new ApiError(0, "the dashboard does not answer");
  }
  const date = Date.parse(answer.headers.get("date") ?? "");
  // The header has whole seconds: only a difference of more than that says something.
  if (Number.isFinite(date)) skew = Math.abs(date - Date.now()) > 2000 ? date - Date.now() : 0;
  let told = {};
  try {
    told = await answer.json();
  } catch {
    // A proxy's page instead of an answer.
  }
  if (!answer.ok) throw new ApiError(answer.status, told.error ?? `${answer.status} ${answer.statusText}`.trim());
  return told;
}

export const get = (path) => ask("GET", path, undefined, 15000);

export async function me() {
  const told = await ask("GET", "/api/me", undefined, 5000);
  token = told.csrf ?? "";
  return told;
}

/** A command waits for the station's answer, ten seconds at most. */
export async function post(path, body = {}) {
  try {
    return await ask("POST", path, body, 20000);
  } catch (error) {
    if (error.status !== 403) throw error;
    // The dashboard was restarted, or somebody logged in in another tab: with a new token once more.
    const before = token;
    await me();
    if (token === before) throw error;
    return ask("POST", path, body, 20000);
  }
}

/** A station's path as part of an address: each level may hold anything but a slash. */
export const inAddress = (path) => path.split("/").map(encodeURIComponent).join("/");

export const stationPage = (path) => `/stations/${inAddress(path)}`;
export const alertPage = (alert) => `/alerts/${inAddress(alert.station)}/${encodeURIComponent(alert.id)}`;
export const stationApi = (path) => `/api/stations/${inAddress(path)}`;
export const alertApi = (station, id) => `/api/alerts/${inAddress(station)}/${encodeURIComponent(id)}`;
