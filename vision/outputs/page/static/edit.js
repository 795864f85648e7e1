// The editor of lines and zones of one camera.
import { el, link } from "./dom.js";

export function open(main, id) {
  const place = el("div", { class: "editor" });
  const back = el("a", { class: "back", href: link("camera", id) }, id);
  main.append(el("header", { class: "title" }, back, el("h1", {}, "Lines and zones")), place);
  let close = () => {};
  let closed = false;
  import("./editor.js").then(
    ({ openEditor }) => {
      if (!closed) close = openEditor(place, id);
    },
    () => place.append(el("p", { class: "notice" }, "The editor cannot be loaded. Reload the page.")),
  );
  return () => {
    closed = true;
    close();
  };
}
