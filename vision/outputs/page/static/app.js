// The frame of the page: the views, and the connection to the program.
import { el, setText } from "./dom.js";
import { Store } from "./store.js";

const VIEWS = [
  [/^#\/camera\/(.+)$/, () => import("./camera.js")],
  [/^#\/edit\/(.+)$/, () => import("./edit.js")],
  [/^#\/events(?:\?(.*))?$/, () => import("./events.js")],
  [/^#\/history(?:\?(.*))?$/, () => import("./history.js")],
  [/^/, () => import("./overview.js")],
];

const main = document.getElementById("main");
const connection = document.getElementById("connection");
const store = new Store();
let close = () => {};
let opened = 0;

async function open() {
  const number = (opened += 1);
  const hash = location.hash || "#/";
  const [pattern, load] = VIEWS.find(([each]) => each.test(hash));
  const parameter = pattern.exec(hash)[1] ?? "";
  const view = await load();
  if (number !== opened) return;
  close();
  main.replaceChildren();
  close = view.open(main, decode(parameter), store);
  for (const anchor of document.querySelectorAll(".bar nav a")) {
    const current = hash.split("?")[0].startsWith(anchor.hash) && (anchor.hash !== "#/" || !/^#\/(events|history)/.test(hash));
    if (current) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

let version = null;
let instance = null;

function showConnection(state, problem) {
  if (state !== null && !problem) {
    if (version !== null && version !== state.assets) location.reload();
    version = state.assets;
  }
  const restarted = instance !== null && state?.node && state.node.instance !== instance;
  instance = state?.node?.instance ?? instance;
  let text = "";
  if (problem) text = `${problem} Trying again.`;
  else if (state.node === null) text = "Waiting for the program.";
  else if (state.silent) text = `No status from the program for ${Math.round(state.age_s)} s.`;
  else if (restarted) text = "The program was restarted.";
  connection.classList.toggle("bad", Boolean(problem) || Boolean(state?.silent));
  if (text || !connection.dataset.until || Date.now() > Number(connection.dataset.until)) setText(connection, text);
  if (restarted) connection.dataset.until = String(Date.now() + 10000);
}

window.addEventListener("hashchange", () => {
  open();
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented && /^#\/camera\//.test(location.hash)) location.hash = "#/";
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
store.listen(showConnection);
store.refresh();
open();
