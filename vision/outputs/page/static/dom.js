// Small functions to build the page. Texts are always set as text, never as HTML.

// Return a new element. `attributes` can contain properties such as `onclick`. Children are elements and texts.
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key in element && typeof value !== "string") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Set the text of an element, if it differs. An unchanged text keeps the selection of the reader.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Return the answer of the server to a request. Throw an error with a readable message if it fails.
export async function getJson(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(15000), ...options });
  } catch {
    throw new Error("The server of this page does not answer.");
  }
  if (response.status === 401) {
    location.replace("/");
    throw new Error("Log in again.");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error || `The server answered with status ${response.status}.`);
  return content;
}

// Return a link to a view. Ids can contain any characters.
export const link = (view, id) => `#/${view}/${encodeURIComponent(id)}`;

export function number(value, digits = 0) {
  if (value === undefined || value === null) return "–";
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function bytes(value) {
  if (value === undefined || value === null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 1000 && unit < units.length - 1; unit += 1) value /= 1000;
  return `${number(value, unit > 1 && value < 100 ? 1 : 0)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  if (seconds < 60) return `${number(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}
