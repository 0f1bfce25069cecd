// Replaces a still picture by the interactive circuit in a sandboxed frame. SOURCE and NAME stand for the packed document
// and for the name of the picture.
(async () => {
  const bytes = Uint8Array.from(atob(SOURCE), (c) => c.charCodeAt(0)), id = NAME;
  const source = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  for (const box of document.querySelectorAll('[data-circuit="' + id + '"]:not([data-live])')) {
    box.dataset.live = "";
    const frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts allow-downloads");
    frame.title = "interactive circuit";
    frame.style.cssText = "width:100%;border:0;height:0";
    addEventListener("message", (event) => {
      if (event.source !== frame.contentWindow) return;
      frame.style.height = Math.min(6000, Number(event.data.height) + 4 || 600) + "px";
      box.dataset.edges = Number(event.data.edges);
      box.querySelector("img").style.display = "none";
    });
    frame.srcdoc = source;
    box.append(frame);
  }
})();
