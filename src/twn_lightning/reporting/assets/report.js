// Filters of the gallery. Their state lives in the address (#verdict=hurt&steps=3), so a filtered view can be linked.
"use strict";

const form = document.getElementById("filters");
const cards = Array.from(document.querySelectorAll(".card"));
const buttons = Array.from(form.querySelectorAll("button"));
const selects = Array.from(form.querySelectorAll("select"));

function readAddress() {
  const state = new URLSearchParams(location.hash.slice(1));
  const verdicts = (state.get("verdict") || "").split(",");
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String(verdicts.includes(button.dataset.verdict)));
  }
  for (const select of selects) {
    const wanted = state.get(select.name) || "";
    select.value = Array.from(select.options).some((option) => option.value === wanted) ? wanted : "";
  }
}

function writeAddress() {
  const state = new URLSearchParams();
  const verdicts = pressed();
  if (verdicts.length) state.set("verdict", verdicts.join(","));
  for (const select of selects) {
    if (select.value) state.set(select.name, select.value);
  }
  history.replaceState(null, "", "#" + state.toString());
}

function pressed() {
  return buttons.filter((button) => button.getAttribute("aria-pressed") === "true").map((b) => b.dataset.verdict);
}

function apply() {
  const verdicts = pressed();
  let shown = 0;
  for (const card of cards) {
    const matches =
      (verdicts.length === 0 || verdicts.includes(card.dataset.verdict)) &&
      selects.every((select) => select.value === "" || card.dataset[select.name] === select.value);
    card.hidden = !matches;
    shown += matches;
  }
  document.getElementById("shown").textContent = `${shown} of ${cards.length} examples`;
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    apply();
    writeAddress();
  });
}
for (const select of selects) {
  select.addEventListener("change", () => {
    apply();
    writeAddress();
  });
}
window.addEventListener("hashchange", () => {
  if (location.hash.includes("=")) {
    readAddress();
    apply();
  }
});

readAddress();
apply();
form.hidden = false;
