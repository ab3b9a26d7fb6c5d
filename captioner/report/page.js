// The box at the top filters captions by words, and opens the folds that contain them.
const box = document.querySelector("#find");
const count = document.querySelector("#found");
const entries = [...document.querySelectorAll(".card, .entry")].map((element) => {
  return { element, text: element.textContent.toLowerCase() };
});
const listed = entries.filter(({ element }) => element.matches(".entry"));
const folds = [...document.querySelectorAll("details")].filter((fold) => {
  return fold.querySelector(".card, .entry");
});
const opened = new Set();
box.hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const { element, text } of entries) {
    element.hidden = !words.every((word) => text.includes(word));
  }
  for (const fold of folds) {
    const wanted = words.length > 0 && fold.querySelector(".card:not([hidden]), .entry:not([hidden])");
    if (wanted && !fold.open) {
      fold.open = true;
      opened.add(fold);
    } else if (!wanted && opened.delete(fold)) {
      fold.open = false;
    }
  }
  const shown = listed.filter(({ element }) => !element.hidden).length;
  count.textContent = words.length ? `${shown} of ${listed.length}` : "";
});

// A link to a fold, or to something in a fold, opens it.
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = target && (target.closest("details") || target.querySelector(":scope > h2 + details"));
  if (fold) {
    fold.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", reveal);
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.hash === location.hash) reveal(); // the same link again changes no hash
});
reveal();
