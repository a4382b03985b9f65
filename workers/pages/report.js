// What the page can do with scripts: filter and sort its pictures, and copy a command. Without
// them it is the whole page, in the order in which it was written.
"use strict";

const filters = document.querySelector(".filters");
const sections = [...document.querySelectorAll(".category")];
const verdicts = [...filters.querySelectorAll("[data-verdict]")];
const orders = {
  best: (margin) => -margin,
  worst: (margin) => margin,
  nearest: (margin) => Math.abs(margin),
};

function show() {
  const verdict = verdicts.find((button) => button.ariaPressed === "true").dataset.verdict;
  const category = filters.elements.category.value;
  let shown = 0;
  for (const section of sections) {
    let here = 0;
    for (const card of section.querySelectorAll(".card")) {
      card.hidden = verdict !== "" && !card.classList.contains(verdict);
      here += card.hidden ? 0 : 1;
    }
    section.hidden = here === 0 || (category !== "" && section.dataset.category !== category);
    shown += section.hidden ? 0 : here;
  }
  filters.querySelector("output").textContent = `${shown.toLocaleString("en")} shown`;
}

function sort() {
  const rank = orders[filters.elements.order.value];
  for (const section of sections) {
    const cards = [...section.querySelectorAll(".card")];
    cards.sort((a, b) => rank(Number(a.dataset.margin)) - rank(Number(b.dataset.margin)));
    section.querySelector(".cards").append(...cards);
  }
}

async function copy(button) {
  const command = button.parentElement.querySelector(".command");
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(command);
    button.textContent = "Selected: now press Ctrl or Cmd and C";
  }
}

for (const button of verdicts) {
  button.addEventListener("click", () => {
    for (const other of verdicts) other.ariaPressed = String(other === button);
    show();
  });
}
filters.elements.category.addEventListener("change", show);
filters.elements.order.addEventListener("change", sort);
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", () => copy(button));
}
filters.hidden = false;
