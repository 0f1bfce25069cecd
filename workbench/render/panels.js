// Draws the panels of a page with the script of circuitsvis. BUNDLE stands for that script, packed, and PAPER for the style
// of the element that a panel is drawn in.
// A classic script element is needed: indirect eval and type=module would hide the bundle's global name. Panels are drawn
// one at a time, those near the reader first, so that the page stays responsive. A panel with a still picture is drawn when
// its "Explore" is opened; the picture is hidden while that is open, and stays if the component fails.
(async () => {
  if (window.panelsUnpacked) return;
  window.panelsUnpacked = true;
  const bytes = Uint8Array.from(atob(BUNDLE), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
  const wanted = [], waiting = new Map();
  const draw = (box) => {
    const [component, props, fold] = waiting.get(box), still = box.firstElementChild, live = document.createElement("div");
    waiting.delete(box);
    near.unobserve(box);
    live.id = "panel-" + (window.panelsDrawn = (window.panelsDrawn || 0) + 1);
    live.className = "live";
    live.style.cssText = PAPER;
    const hide = () => {
      for (const canvas of live.querySelectorAll("canvas")) canvas.setAttribute("aria-label", "attention pattern");
      still.style.display = live.childElementCount && (!fold || fold.open) ? "none" : "";
    };
    new MutationObserver(hide).observe(live, { childList: true, subtree: true });
    if (fold) fold.addEventListener("toggle", hide);
    (fold || box).append(live);
    CircuitsVis.render(live.id, CircuitsVis[component], props);
  };
  const drawNext = () => {
    const box = wanted.shift() || waiting.keys().next().value;
    if (box === undefined) return;
    setTimeout(drawNext);  // first, so that a panel that fails leaves the others
    if (waiting.has(box)) draw(box);
  };
  const near = new IntersectionObserver((seen) => {
    for (const one of seen) if (one.isIntersecting) wanted.push(one.target);
  }, { rootMargin: "400px" });
  window.drawPanels = () => {
    const idle = waiting.size === 0;
    for (const [name, component, props] of (window.panels || []).splice(0)) {
      for (const box of document.querySelectorAll('[data-panel="' + name + '"]:not([data-drawn])')) {
        box.dataset.drawn = "";
        if (box.firstElementChild.tagName !== "IMG") {
          waiting.set(box, [component, props]);
          near.observe(box);
          continue;
        }
        const fold = document.createElement("details"), summary = document.createElement("summary");
        fold.className = "folded";
        summary.textContent = "Explore";
        fold.append(summary);
        box.append(fold);
        fold.addEventListener("toggle", () => {
          if (!fold.open || fold.dataset.opened !== undefined) return;
          fold.dataset.opened = "";
          waiting.set(box, [component, props, fold]);
          draw(box);
        });
      }
    }
    if (idle) setTimeout(drawNext);
  };
  window.drawPanels();
})();
