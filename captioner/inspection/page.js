// The box at the top shows only captions that hold all words typed into it.
const box = document.querySelector("#find");
const count = document.querySelector("#found");
const entries = [...document.querySelectorAll(".card, tr.entry")].map((element) => {
  return { element, text: element.textContent.toLowerCase() };
});
box.hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const { element, text } of entries) {
    element.hidden = !words.every((word) => text.includes(word));
  }
  const rows = entries.map(({ element }) => element).filter(({ tagName }) => tagName === "TR");
  const shown = rows.filter(({ hidden }) => !hidden).length;
  count.textContent = words.length ? `${shown} of ${rows.length}` : "";
});
