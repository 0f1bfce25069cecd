// What the theme leaves out for people who listen to a page or use the keyboard: names, and a stop at tables that scroll.
function label() {
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => {
    nav.setAttribute("aria-label", `Code block ${number + 1}`);
  });
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
}
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
addEventListener("load", label);
addEventListener("resize", label);
