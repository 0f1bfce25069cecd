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
  // The still picture as SVG, so that pointing at a token or a cell says its number. In a shadow root, because its style would
  // reach the rest of the page.
  const asSvg = (image, component, props) => {
    const bytes = Uint8Array.from(atob(image.src.split(",")[1]), (c) => c.charCodeAt(0));
    const svg = new DOMParser().parseFromString(new TextDecoder().decode(bytes), "image/svg+xml").documentElement;
    if (!(svg instanceof SVGElement)) return;  // a picture of somebody else's stays as it is
    const host = document.createElement("div"), said = document.createElement("output");
    host.className = "still";
    host.style.overflowX = "auto";
    svg.style.cssText = image.style.cssText;
    host.attachShadow({ mode: "open" }).append(document.importNode(svg, true), said);
    said.style.cssText = "display:block;min-height:1.4em;font:13px system-ui;padding-left:10px";
    if (component === "AttentionHeads") sayWeights(host.shadowRoot, said, props);
    else said.remove();
    image.replaceWith(host);
  };
  // Cells of one colour are one path, so the cell under the pointer follows from where it is in the frame of its head.
  const sayWeights = (root, said, props) => {
    const n = props.tokens.length, names = props.attentionHeadNames;
    root.addEventListener("pointermove", (event) => {
      const head = event.target.closest && event.target.closest("[data-head]");
      if (!head) return void (said.textContent = "");
      const box = head.querySelector("rect").getBoundingClientRect();
      const row = Math.floor(((event.clientY - box.top) / box.height) * n);
      const column = Math.floor(((event.clientX - box.left) / box.width) * n);
      const weight = (props.attention[head.dataset.head][row] || [])[column];
      said.textContent = weight === undefined ? ""
        : names[head.dataset.head] + ": " + props.tokens[row] + " (" + row + ") attends to " + props.tokens[column] + " ("
          + column + ") with " + weight.toFixed(3);
    });
  };
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
        asSvg(box.firstElementChild, component, props);
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
