// What a page can do without: the theme button, copy buttons, the place in the sidebar and in the table of contents.
document.getElementById("theme").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme == "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme) } catch {}
};
for (const block of document.querySelectorAll("div.sourceCode")) {
  const button = Object.assign(document.createElement("button"),
    {className: "copy", type: "button", textContent: "Copy"});
  button.onclick = async () => {
    await navigator.clipboard.writeText(block.querySelector("code").textContent);
    button.textContent = "Copied"; setTimeout(() => button.textContent = "Copy", 1500);
  };
  block.append(button);
}
const here = document.querySelector(".sidebar [aria-current]");
const side = here?.closest(".sidebar");
if (side && here.offsetTop > side.clientHeight - 80)
  side.scrollTop = here.offsetTop - side.clientHeight / 2;
const entries = new Map([...document.querySelectorAll(".toc a")].map(
  a => [document.getElementById(decodeURIComponent(a.hash.slice(1))), a]));
const mark = () => {
  let now; for (const [h, a] of entries) { if (h && h.getBoundingClientRect().top < 120) now = a }
  for (const a of entries.values()) a.classList.toggle("now", a == now);
};
addEventListener("scroll", mark, {passive: true}); mark();
