// The keys of a page. Each presses the button or link that names it, so that there is one way to do
// a thing. Keys that come while an answer is under way wait for it: none is lost.
"use strict";

const MOST_WAITING = 16;
const NAMED = /^([a-z0-9]|enter)$/;
const ARROW = /^arrow(left|right|up|down)$/; // they scroll, where no button has them
const SMALL_PX = 256; // pictures below are shown with their pixels
const waiting = [];
let underWay = 0;
let listening = false; // a button pressed before htmx has taken it over does nothing

// What a key is called here. On a keyboard of other letters, its place counts.
function named(event) {
  const key = event.key.toLowerCase();
  if (NAMED.test(key)) return key;
  const place = /^(?:Key|Digit|Numpad)([A-Z0-9])$/.exec(event.code);
  return place ? place[1].toLowerCase() : key;
}

// What is not to be seen is not to be judged: keys that judge wait for a picture that still loads,
// and ask once more for one that is broken.
function pump() {
  while (listening && waiting.length && underWay === 0) {
    if (buttonOf(waiting[0])?.dataset.judges !== undefined && loading()) return;
    press(waiting.shift());
  }
}

function press(key) {
  if (key === "gone" && !broken()) return;
  let button = buttonOf(key);
  if (button?.dataset.judges !== undefined && broken()) button = buttonOf("gone");
  if (button && !button.disabled) button.click();
}

function buttonOf(key) {
  return document.querySelector(`[data-key="${key}"]`);
}

function loading() {
  return [...document.querySelectorAll(".frame img, .cell img")].some((image) => !image.complete);
}

function broken() {
  const pictures = [...document.querySelectorAll(".frame img")];
  return pictures.some((picture) => picture.complete && picture.naturalWidth === 0);
}

function scale(picture) {
  picture.classList.toggle("small", picture.naturalWidth < SMALL_PX);
}

// After a change of what the page shows.
function look() {
  const send = document.querySelector(".sweep .main");
  if (send) send.disabled = loading();
  if (broken() && waiting[0] !== "gone") waiting.unshift("gone");
  pump();
}

// Arrow keys in the grid: to the neighbour, a row being as long as it is on this screen.
function move(key) {
  const cells = [...document.querySelectorAll(".cell:not([disabled])")];
  if (!cells.length) return false;
  const at = cells.indexOf(document.activeElement);
  const top = cells[0].getBoundingClientRect().top;
  const columns = cells.filter((cell) => cell.getBoundingClientRect().top === top).length;
  const steps = { arrowleft: -1, arrowright: 1, arrowup: -columns, arrowdown: columns };
  const ends = { home: 0, end: cells.length - 1 };
  if (!(key in steps) && !(key in ends)) return false;
  const to = key in ends ? ends[key] : at < 0 ? 0 : at + steps[key];
  cells[Math.min(cells.length - 1, Math.max(0, to))].focus();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const key = named(event);
  const pressable = event.target.closest("a, button:not(.cell)");
  if (key === "enter" && pressable) return; // the browser presses what has the focus
  if (move(key)) return event.preventDefault();
  if (event.repeat || !(NAMED.test(key) || (ARROW.test(key) && buttonOf(key)))) return;
  event.preventDefault();
  if (waiting.length < MOST_WAITING) waiting.push(key);
  pump();
});

function trouble(text) {
  const line = document.getElementById("trouble");
  line.textContent = text;
  line.hidden = !text;
}

document.addEventListener("htmx:beforeSend", () => { underWay += 1; });
document.addEventListener("htmx:afterRequest", () => {
  underWay = Math.max(0, underWay - 1);
  setTimeout(pump); // after the swap
});
document.addEventListener("htmx:afterSwap", () => {
  trouble("");
  look();
});
document.addEventListener("htmx:sendError", () => {
  waiting.length = 0;
  trouble("No answer: the last key was not kept, all before it were. Start the command again and open the address that it prints.");
});
document.addEventListener("htmx:responseError", (event) => {
  waiting.length = 0;
  trouble(`The last key was not kept: ${event.detail.xhr.responseText.trim() || event.detail.xhr.status}`);
});

document.addEventListener("load", (event) => {
  if (!(event.target instanceof HTMLImageElement)) return;
  scale(event.target);
  look();
}, true);

// A picture that cannot be shown: the page goes to the next one, and a sweep leaves it out.
document.addEventListener("error", (event) => {
  if (!(event.target instanceof HTMLImageElement)) return;
  const cell = event.target.closest(".cell");
  if (cell) {
    cell.disabled = true;
    cell.closest("li").querySelector("input").remove();
  }
  look();
}, true);
[...document.images].forEach(scale);
document.addEventListener("DOMContentLoaded", () => { // after htmx, whose script comes first
  listening = true;
  look();
});
