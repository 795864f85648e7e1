// Shows a live view while its element is visible. Tiles that nobody sees cost nothing.
import { el } from "./dom.js";

const views = new WeakMap();
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) views.get(entry.target)?.(entry.isIntersecting);
});

// Mount a live view in `element`. Return a function that removes it.
export function mountLive(element, cameraId) {
  let view = null;
  let closed = false;
  views.set(element, async (visible) => {
    const { LiveView } = await import("./live.js").catch(() => ({ LiveView: null }));
    if (LiveView === null || closed) return;
    if (visible && view === null) {
      view = new LiveView(element, cameraId);
      view.start();
    } else if (!visible && view !== null) {
      view.stop();
      view = null;
    }
  });
  observer.observe(element);
  return () => {
    closed = true;
    observer.unobserve(element);
    view?.stop();
    view = null;
  };
}
