
// Asking. What the server answers is shown as text, never as markup.
const form = document.getElementById("ask-form");
const drop = document.getElementById("drop");
const dropText = document.getElementById("drop-text");
const dropHint = dropText.textContent;
const preview = document.getElementById("preview");
const file = document.getElementById("file");
const question = document.getElementById("question");
const task = document.getElementById("task");
const send = document.getElementById("send");
const state = document.getElementById("state");
let media = null; // base64

function say(text, failed = false) {
  state.textContent = text;
  state.classList.toggle("error", failed);
}

function forget() {
  media = null;
  file.value = "";
  preview.hidden = true;
  preview.removeAttribute("src");
  dropText.textContent = dropHint;
}

function take(address, name) {
  media = address.slice(address.indexOf(",") + 1);
  const isImage = address.startsWith("data:image/");
  preview.hidden = !isImage;
  if (isImage) preview.src = address;
  dropText.textContent = name;
  say("");
}

function read(chosen) {
  if (!chosen) return;
  if (chosen.size > Number(form.dataset.limit)) {
    say(`${chosen.name} is larger than ${Number(form.dataset.limit) / 1e6} MB`, true);
    return;
  }
  const reader = new FileReader();
  reader.addEventListener("load", () => take(reader.result, chosen.name));
  reader.addEventListener("error", () => say(`${chosen.name} cannot be read`, true));
  reader.readAsDataURL(chosen);
}

file.addEventListener("change", () => read(file.files[0]));
for (const [kind, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", over);
    if (kind === "drop") read(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) read(event.clipboardData.files[0]);
});
document.getElementById("clear").addEventListener("click", () => {
  forget();
  question.value = "";
  say("");
  question.focus();
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  send.disabled = true;
  say("the model reads …");
  try {
    const reply = await fetch("ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text: question.value, task: task.value, media }),
    });
    const answer = await reply.json();
    if (reply.ok) {
      show(answer);
      say("");
    } else say(answer.error, true);
  } catch (error) {
    say("no answer: is twn inspect still running?", true);
  } finally {
    send.disabled = false;
  }
});

function node(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function tile(name, value, detail) {
  const shown = document.getElementById(`answer-${name}`);
  shown.textContent = value;
  shown.nextElementSibling.replaceChildren(detail);
}

function percent(fraction) {
  return `${(100 * fraction).toFixed(1)} %`;
}

function bar(probability, threshold) {
  const made = node("div", "bar");
  const filled = node("span");
  filled.style.width = percent(probability).replace(" ", "");
  const mark = node("i");
  mark.style.left = percent(threshold).replace(" ", "");
  made.append(filled, mark);
  return made;
}

function neighbours(mode, found, before) {
  const rank = new Map(before.map((other, index) => [other.key, index]));
  const rows = found.map((neighbour, index) => {
    const row = node("li");
    row.append(node("span", "rank", String(index + 1)));
    if (neighbour.picture) {
      const picture = node("img");
      picture.src = neighbour.picture;
      picture.alt = "";
      row.append(picture);
    }
    const name = node("span", neighbour.text ? "name" : "name key", neighbour.text || neighbour.key);
    const was = rank.get(neighbour.key);
    if (before.length && was !== index) {
      name.append(node("span", "move count", was === undefined ? "new" : was > index ? `↑${was - index}` : `↓${index - was}`));
    }
    row.append(name, node("span", "score", neighbour.score.toFixed(3)));
    return row;
  });
  document.getElementById(`near-${mode}`).replaceChildren(...rows);
}

function show(answer) {
  const gated = answer.probability !== null;
  tile("probability", gated ? percent(answer.probability) : "–", gated ? bar(answer.probability, answer.threshold) : "no gate");
  tile("decision", gated ? (answer.think ? "thinks" : "does not think") : "–", gated ? `above ${percent(answer.threshold)}` : "");
  tile("tokens", String(answer.tokens.cot), `${answer.tokens.prompt} of the prompt`);
  const { discriminative, generative } = answer.seconds;
  tile("time", `${generative.toFixed(2)} s`, `${discriminative.toFixed(2)} s without thinking`);
  document.getElementById("cot").textContent = answer.cot || "(empty)";
  if (answer.malformed) document.getElementById("cot").append("\n(did not close: the embedding without it is used)");
  const near = answer.neighbours;
  neighbours("discriminative", near.discriminative, []);
  neighbours("generative", near.generative, near.discriminative);
  for (const mode of ["discriminative", "generative"]) {
    const used = gated && (mode === "generative") === answer.think;
    document.getElementById(`near-${mode}`).parentElement.classList.toggle("used", used);
  }
  document.getElementById("answer").hidden = false;
  const title = document.getElementById("answer-title");
  title.focus({ preventScroll: true });
  title.scrollIntoView({ block: "start" });
}

// A decision with a picture can be asked again: its text and its thumbnail go into the form.
for (const card of document.querySelectorAll(".card")) {
  const picture = card.querySelector("img");
  if (!picture) continue;
  const again = node("button", "again", "Ask this again");
  again.type = "button";
  again.addEventListener("click", () => {
    forget();
    question.value = card.querySelector("h3").textContent;
    take(picture.src, "the picture of this decision");
    task.value = "";
    form.scrollIntoView({ block: "center" });
    send.focus({ preventScroll: true });
  });
  card.append(again);
}
