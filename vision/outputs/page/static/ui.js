// What all views share: the view library, requests, and rows of texts. Preact sets texts as text, never as HTML.
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

// A `dl` with pairs of a title and a text.
export const Rows = ({ rows, ...rest }) =>
  html`<dl ...${rest}>${rows.map(([title, text]) => html`<div><dt>${title}</dt><dd>${text}</dd></div>`)}</dl>`;

// A `select` with a label. The options are pairs of a value and a text.
export const Select = ({ label, options, ...rest }) => html`
  <label>${label} <select ...${rest}>${options.map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select></label>`;
