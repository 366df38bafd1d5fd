"use strict";
// Every stream runs all the time, in step; what is heard is a matter of gains. So a switch keeps the place.
(() => {
  const player = document.getElementById("player");
  if (!player) return;
  const { seconds, streams } = JSON.parse(document.getElementById("sound").textContent);
  const FADE = 0.008; // seconds: no click, and no gap
  const AHEAD = 0.05; // seconds from the order to the first sample, the same for every stream
  const play = document.getElementById("play");
  const seek = document.getElementById("seek");
  const clock = document.getElementById("clock");
  const message = document.getElementById("message");
  const radios = (name) => [...player.querySelectorAll(`input[name=${name}]`)];
  const chosen = (name) => radios(name).find((one) => one.checked)?.value ?? "";

  let context = null;
  let voices = null; // by key: { buffer, gain, source }
  let loading = null;
  let playing = false;
  let zero = 0; // the context's time at which the place was 0
  let place = 0; // seconds, while nothing plays

  const key = () => (chosen("source") === "mixture" ? "mixture" : `${chosen("stem")}-${chosen("source")}`);
  const at = () => (playing ? Math.max(0, context.currentTime - zero) % seconds : place);

  function bytes(text) {
    return Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer;
  }

  async function load() {
    message.textContent = "decoding…";
    context = new (window.AudioContext ?? window.webkitAudioContext)();
    voices = {};
    await Promise.all(
      Object.entries(streams).map(async ([name, text]) => {
        const buffer = await context.decodeAudioData(bytes(text));
        const gain = context.createGain();
        gain.gain.value = 0;
        gain.connect(context.destination);
        voices[name] = { buffer, gain, source: null };
      }),
    );
    message.textContent = "";
  }

  function start() {
    const when = context.currentTime + AHEAD;
    for (const voice of Object.values(voices)) {
      voice.source = context.createBufferSource();
      voice.source.buffer = voice.buffer;
      voice.source.loop = true;
      voice.source.loopEnd = Math.min(seconds, voice.buffer.duration);
      voice.source.connect(voice.gain);
      voice.source.start(when, place);
    }
    zero = when - place;
    playing = true;
    mix();
    requestAnimationFrame(frame);
  }

  function stop() {
    place = at();
    playing = false;
    for (const voice of Object.values(voices)) {
      voice.source.stop();
      voice.source.disconnect();
    }
  }

  function mix() {
    if (!voices) return;
    const now = context.currentTime;
    for (const [name, { gain }] of Object.entries(voices)) {
      gain.gain.cancelScheduledValues(now);
      gain.gain.setValueAtTime(gain.gain.value, now);
      gain.gain.linearRampToValueAtTime(name === key() ? 1 : 0, now + FADE);
    }
  }

  async function toggle() {
    if (playing) {
      stop();
    } else {
      try {
        loading ??= load();
        await loading;
        await context.resume();
        if (!playing) start();
      } catch (error) {
        loading = null;
        message.textContent = `this browser does not play it: ${error.message}`;
      }
    }
    show();
  }

  function go(to) {
    const target = Math.min(Math.max(to, 0), seconds - 0.001);
    if (playing) {
      stop();
      place = target;
      start();
    } else {
      place = target;
    }
    show();
  }

  function choose(name, value) {
    const radio = radios(name).find((one) => one.value === value);
    if (!radio || radio.disabled) return;
    radio.checked = true;
    changed();
  }

  // What the radios say: pictures and words of the stem, and what is heard.
  function changed() {
    const stem = chosen("stem");
    for (const one of player.querySelectorAll("[data-stem]")) {
      one.hidden = one.dataset.stem !== "" && one.dataset.stem !== stem;
    }
    const difference = radios("source").find((one) => one.value === "difference");
    difference.disabled = !(`${stem}-difference` in streams);
    if (difference.disabled && difference.checked) choose("source", "reference");
    for (const one of player.querySelectorAll(".stream")) {
      one.classList.toggle("on", one.querySelector("input").checked);
    }
    mix();
  }

  function show() {
    const now = at();
    play.setAttribute("aria-label", playing ? "Pause" : "Play");
    player.classList.toggle("playing", playing);
    player.style.setProperty("--at", now / seconds);
    seek.value = now;
    seek.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${seconds.toFixed(1)} seconds`);
    clock.textContent = `${now.toFixed(1)} / ${seconds.toFixed(1)} s`;
  }

  function frame() {
    if (!playing) return;
    show();
    requestAnimationFrame(frame);
  }

  function point(event) {
    const box = event.currentTarget.getBoundingClientRect();
    go(((event.clientX - box.left) / box.width) * seconds);
  }

  function next(name, step) {
    const every = radios(name);
    const index = every.findIndex((one) => one.checked);
    choose(name, every[(index + step + every.length) % every.length].value);
  }

  // Keys work in the player, and outside of it while it is seen and nothing else has the focus.
  let seen = false;
  new IntersectionObserver(([entry]) => (seen = entry.isIntersecting), { threshold: 0.3 }).observe(player);
  const step = Math.min(1, seconds / 10);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inside = player.contains(event.target);
    if (!inside && !(seen && event.target === document.body)) return;
    const native = event.target instanceof HTMLInputElement && event.key.startsWith("Arrow");
    if (native || (event.target === play && [" ", "Enter"].includes(event.key))) return;
    const sources = radios("source");
    const actions = {
      " ": toggle,
      ArrowLeft: () => go(at() - step),
      ArrowRight: () => go(at() + step),
      ArrowUp: () => next("stem", -1),
      ArrowDown: () => next("stem", 1),
    };
    sources.forEach((one, index) => (actions[String(index + 1)] = () => choose("source", one.value)));
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  });

  play.addEventListener("click", toggle);
  seek.addEventListener("input", () => go(Number(seek.value)));
  for (const radio of [...radios("stem"), ...radios("source")]) radio.addEventListener("change", changed);
  for (const one of player.querySelectorAll(".pictures")) {
    one.addEventListener("pointerdown", (event) => {
      one.setPointerCapture(event.pointerId);
      point(event);
    });
    one.addEventListener("pointermove", (event) => {
      if (one.hasPointerCapture(event.pointerId)) point(event);
    });
  }
  changed();
  show();
})();
