"use strict";

// Tables marked sortable: each column name becomes a button, numbers sort from high to low first.
const collator = new Intl.Collator("en", { numeric: true });
const NUMBER = /^[-+]?\d[\d,.]*\s*(%|–|$)/;

function cellText(row, column) {
  return row.cells[column].textContent.trim();
}

function sortRows(table, column, descending) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const known = rows.filter((row) => cellText(row, column) !== "–");
  const numeric = known.every((row) => NUMBER.test(cellText(row, column)));
  const number = (row) => parseFloat(cellText(row, column).replaceAll(",", ""));
  const compare = (a, b) =>
    numeric ? number(a) - number(b) : collator.compare(cellText(a, column), cellText(b, column));
  known.sort((a, b) => (descending ? compare(b, a) : compare(a, b)));
  body.append(...known, ...rows.filter((row) => !known.includes(row)));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = Array.from(table.tBodies[0].rows).find((row) => cellText(row, column) !== "–");
      const startsHigh = first !== undefined && NUMBER.test(cellText(first, column));
      const before = head.getAttribute("aria-sort");
      const descending = before === null ? startsHigh : before === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortRows(table, column, descending);
    });
  });
}

// Filters of the gallery. Their state lives in the address (#verdict=hurt&steps=3), so a filtered view can be linked.
function startGallery(form) {
  const cards = Array.from(document.querySelectorAll(".card"));
  const contents = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const buttons = Array.from(form.querySelectorAll("button"));
  const fields = Array.from(form.querySelectorAll("select, input"));
  const search = form.querySelector("input[type=search]");

  function pressed() {
    return buttons.filter((button) => button.getAttribute("aria-pressed") === "true").map((b) => b.dataset.verdict);
  }

  function readAddress() {
    const state = new URLSearchParams(location.hash.slice(1));
    const verdicts = (state.get("verdict") || "").split(",");
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(verdicts.includes(button.dataset.verdict)));
    }
    for (const field of fields) {
      const wanted = state.get(field.name) || "";
      const known = !field.options || Array.from(field.options).some((option) => option.value === wanted);
      field.value = known ? wanted : "";
    }
  }

  function writeAddress() {
    const state = new URLSearchParams();
    const verdicts = pressed();
    if (verdicts.length) state.set("verdict", verdicts.join(","));
    for (const field of fields) {
      if (field.value) state.set(field.name, field.value);
    }
    history.replaceState(null, "", "#" + state.toString());
  }

  function matches(card, verdicts, words) {
    return (
      (verdicts.length === 0 || verdicts.includes(card.dataset.verdict)) &&
      fields.every((field) => field === search || field.value === "" || card.dataset[field.name] === field.value) &&
      words.every((word) => contents.get(card).includes(word))
    );
  }

  function apply() {
    const verdicts = pressed();
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const card of cards) card.hidden = !matches(card, verdicts, words);
    const shown = cards.filter((card) => !card.hidden).length;
    document.getElementById("shown").textContent = `${shown} of ${cards.length} examples`;
    document.getElementById("none").hidden = shown > 0;
  }

  function change() {
    apply();
    writeAddress();
  }

  function step(by) {
    const shown = cards.filter((card) => !card.hidden);
    const here = shown.indexOf(document.activeElement.closest(".card"));
    const next = here < 0 ? (by > 0 ? 0 : shown.length - 1) : here + by;
    if (shown[next]) shown[next].focus();
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) return;
    if (event.key === "/") search.focus();
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "Enter" && event.target.classList.contains("card")) {
      const details = event.target.querySelector("details");
      details.open = !details.open;
    } else return;
    event.preventDefault();
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      change();
    });
  }
  for (const field of fields) field.addEventListener("input", change);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", key);
  window.addEventListener("hashchange", () => {
    if (location.hash.includes("=")) {
      readAddress();
      apply();
    }
  });
  readAddress();
  apply();
  form.hidden = false;
}

const filters = document.getElementById("filters");
if (filters) startGallery(filters);
