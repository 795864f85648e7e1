// What all views share: the view library, requests, and texts. Preact sets texts as text, never as HTML.
import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";

export { Component, render } from "./vendor/preact.js";
export const html = htm.bind(h);

// Return the answer of the server to a request. After a failure, it contains `code` and `error`, a text to show.
export async function request(path, options) {
  try {
    const response = await fetch(path, { signal: AbortSignal.timeout(15000), ...options });
    if (response.status === 401) location.replace("/");
    const content = await response.json().catch(() => ({}));
    if (response.ok || content.error) return content;
    return { code: "status", error: `The server answered with status ${response.status}.` };
  } catch {
    return { code: "no-answer", error: "The server of this page does not answer." };
  }
}

// Return a link to a view. Ids can contain any characters.
export const link = (view, id) => `#/${view}/${encodeURIComponent(id)}`;

// Return texts that are not empty as one text.
export const join = (texts, separator = " ") => texts.filter(Boolean).join(separator);

// --- values of messages

const TITLES = {
  rates: "frames/s",
  fps: "frames/s of the camera",
  published_fps: "frames/s",
  latency_ms: "latency in ms",
  dropped: "dropped frames",
  rss_bytes: "memory of the main process",
  memory_bytes: "memory of all processes",
  memory: "memory of the machine",
};

export const words = (name) => name.replace(/_(s|bytes|celsius|hertz|ratio)$/, "").replaceAll("_", " ");

export const number = (value, digits = 0) =>
  value?.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }) ?? "–";

const percent = (ratio) => `${number(100 * ratio)} %`;

function bytes(value) {
  const power = Math.min(4, Math.floor(Math.log10(value || 1) / 3));
  return `${Number((value / 1000 ** power).toPrecision(3))} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

export function duration(seconds) {
  const [minutes, hours, days] = [60, 3600, 86400].map((each) => Math.floor(seconds / each));
  if (!minutes) return `${Number(seconds.toPrecision(2))} s`;
  if (!hours) return `${minutes} min`;
  return days ? `${days} d ${hours % 24} h` : `${hours} h ${minutes % 60} min`;
}

function entryText(name, key, value) {
  const isObject = typeof value === "object";
  if (key.endsWith("_by_class") && Object.keys(value).length < 2) return ""; // the total says the same
  const text = textOf(isObject ? key : `${name}.${key}`, value);
  return text && `${words(key)} ${isObject ? `(${text})` : text}`;
}

// Return a value as text. Its name, after the name of the object that contains it, states the unit.
export function textOf(name, value) {
  const { used_bytes: used, total_bytes: total } = value ?? {};
  if (total) return `${bytes(used)} of ${bytes(total)} (${percent(used / total)})`;
  if (typeof value === "object") return join(Object.entries(value ?? {}).map((entry) => entryText(name, ...entry)), ", ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return value;
  if (/_bytes\b/.test(name)) return bytes(value);
  if (/_s$/.test(name)) return duration(value);
  if (/_ratio$/.test(name)) return percent(value);
  if (/_celsius$|^temperatures/.test(name)) return `${number(value)} °C`;
  if (/_hertz$/.test(name)) return `${number(value / 1e6)} MHz`;
  return number(value, Number.isInteger(value) ? 0 : 1);
}

// Return pairs of a title and a text about values.
export const rowsOf = (values, prefix = "") =>
  Object.entries(values ?? {}).map(([name, value]) => [TITLES[name] ?? prefix + words(name), textOf(name, value)]);

// A `dl` with pairs of a title and a text, without pairs whose text is empty.
export const Rows = ({ rows, ...rest }) =>
  html`<dl ...${rest}>${rows.map(([title, text]) => text && html`<div><dt>${title}</dt><dd>${text}</dd></div>`)}</dl>`;
