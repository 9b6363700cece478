"use strict";
const facts = JSON.parse(document.body.dataset.facts);
const at = (id) => document.getElementById(id);
const share = (value) => `${(100 * value).toLocaleString("en", { maximumSignificantDigits: 3 })} %`;
const digits = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4, useGrouping: false });
const noun = facts.kind === "image" ? "picture" : "text";
const TYPES = { avif: "image/avif", bmp: "image/bmp", gif: "image/gif", jp2: "image/jp2", jpg: "image/jpeg", jpeg: "image/jpeg", pgm: "image/x-portable-graymap",
  png: "image/png", ppm: "image/x-portable-pixmap", tif: "image/tiff", tiff: "image/tiff", webp: "image/webp" };
let asked = 0;
let shown = null;

at("limit").textContent = `${facts.formats.join(", ")}, up to ${(facts.maxBytes / 1e6).toLocaleString("en")} MB`;
at("rule").textContent = `Inputs with a p-value of at most ${digits(1 - facts.keep)} are flagged: at most ${share(1 - facts.keep)} of the familiar ones, in expectation.`;
document.querySelector(".scale .flagged").style.width = `${100 * (1 - facts.keep)}%`;

function show(kind, title, sentence) {
  at("result").className = kind;
  at("result").hidden = false;
  at("verdict").textContent = title;
  at("sentence").textContent = sentence;
  at("status").textContent = "";
  at("verdict").focus({ preventScroll: true });
  at("result").scrollIntoView({ block: "nearest" });
}

function tell(answer) {
  const name = answer.class_name === undefined ? `class ${answer.class}` : answer.class_name;
  const usual = `${share(answer.p_value)} of the calibration samples look at least as unusual`;
  at("class").textContent = answer.class_name === undefined ? String(answer.class) : `${answer.class_name} (${answer.class})`;
  at("confidence").textContent = share(answer.confidence);
  at("p-value").textContent = digits(answer.p_value);
  at("score").textContent = answer.score === null ? "infinite" : digits(answer.score);
  document.querySelector(".scale .mark").style.left = `${100 * answer.p_value}%`;
  if (answer.is_ood) {
    show("unfamiliar", "Flagged: unfamiliar",
      `The model says ${name}, but this ${noun} is unlike those that it was made for: at most ${usual}.`);
  } else {
    show("familiar", "Not flagged: familiar", `The model says ${name}, and this ${noun} is not unusual: about ${usual}.`);
  }
}

async function ask(body, type) {
  const turn = ++asked;
  at("status").textContent = "Asking the model ...";
  try {
    const response = await fetch("score", { method: "POST", headers: { "Content-Type": type }, body });
    const found = await response.json();
    if (turn !== asked) return;
    if (response.ok) tell(found);
    else show("failed", "No verdict", `The service refused the ${noun}: ${found.detail}.`);
  } catch (error) {
    if (turn === asked) show("failed", "No verdict", "The service could not be reached. Is it still running?");
  }
}

function picture(file) {
  if (shown !== null) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  const image = at("preview");
  image.onload = () => { image.className = image.naturalWidth < 100 ? "small" : ""; at("figure").hidden = false; };
  image.onerror = () => { at("figure").hidden = true; };
  image.alt = `The picture ${file.name}`;
  image.src = shown;
  at("name").textContent = file.name;
  if (file.size > facts.maxBytes) {
    asked += 1;
    show("failed", "No verdict", `The file has ${(file.size / 1e6).toFixed(1)} MB, more than the service takes.`);
    return;
  }
  ask(file, TYPES[file.name.toLowerCase().split(".").pop()] || file.type || "application/octet-stream");
}

at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  if (file) picture(file);
  at("file").value = "";
});
for (const name of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(name, (event) => {
    if (name !== "dragleave") event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    const [file] = name === "drop" && facts.kind === "image" ? event.dataTransfer.files : [];
    if (file) picture(file);
  });
}
document.addEventListener("paste", (event) => {
  const [file] = facts.kind === "image" ? event.clipboardData.files : [];
  if (file) picture(file);
});
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(JSON.stringify({ text: at("text").value }), "application/json");
});
