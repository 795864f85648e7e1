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

// Show pairs of a title and a text in a `dl`, without pairs whose text is empty. Return the `dl`.
export function setRows(list, pairs) {
  const rows = pairs.filter(([, text]) => text);
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach((texts, index) => {
    const row = list.children[index] ?? list.appendChild(el("div", {}, el("dt"), el("dd")));
    texts.forEach((text, side) => setText(row.children[side], text));
  });
  return list;
}

// Return a `select` with options, given as pairs of a value and a text.
export const choice = (id, options) => el("select", { id, name: id }, ...options.map(([value, text]) => el("option", { value }, text)));

// Return a form with inputs by their titles. It calls `apply` after each change.
export function filterForm(inputs, apply, ...buttons) {
  const labels = Object.entries(inputs).map(([title, input]) => el("label", {}, el("span", {}, title), input));
  const attributes = { class: "filter", "aria-label": "Filter", onchange: apply, onreset: () => setTimeout(apply), onsubmit: (event) => event.preventDefault() };
  return el("form", attributes, ...labels, ...buttons);
}

// Return the answer of the server to a request. After a failure, it contains `code` and `error`, a text to show.
export async function request(path, options = {}) {
  try {
    const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(15000), ...options });
    if (response.status === 401) location.replace("/");
    const content = await response.json().catch(() => ({}));
    if (response.ok || content.error) return content;
    return { code: "status", error: `The server answered with status ${response.status}.` };
  } catch {
    return { code: "no-answer", error: "The server of this page does not answer." };
  }
}

// Return texts that are not empty as one text.
export const join = (texts, separator = " ") => texts.filter(Boolean).join(separator);

// Return a link to a view. Ids can contain any characters.
export const link = (view, id) => `#/${view}/${encodeURIComponent(id)}`;

export function number(value, digits = 0) {
  return value?.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }) ?? "–";
}

export function bytes(value) {
  if (value === undefined || value === null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 1000 && unit < units.length - 1; unit += 1) value /= 1000;
  return `${number(value, unit > 1 && value < 100 ? 1 : 0)} ${units[unit]}`;
}

export function duration(seconds) {
  const [minutes, hours, days] = [60, 3600, 86400].map((each) => Math.floor(seconds / each));
  if (!minutes) return `${number(seconds)} s`;
  if (!hours) return `${minutes} min`;
  return days ? `${days} d ${hours % 24} h` : `${hours} h ${minutes % 60} min`;
}

// Return the numbers of dropped frames by reason, as a text.
export function dropText(dropped) {
  return join(Object.entries(dropped).map(([why, count]) => count > 0 && `${why} ${number(count)}`), ", ") || "none";
}
