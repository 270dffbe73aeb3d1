"use strict";
// Conversations are kept in the visitor's own browser: texts in one store, images (by conversation and token) in another.
(() => {
  const MOST = 200, IMAGES = 30;  // conversations that are kept; images that are brought back to the server
  const asked = request => new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  const opening = new Promise((resolve, reject) => {
    const request = indexedDB.open("minigpt4", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("chats", {keyPath: "id"});
      request.result.createObjectStore("images");
    };
    asked(request).then(resolve, reject);
  });
  opening.catch(() => {});  // is told where the list is
  const store = async (name, mode = "readwrite") => (await opening).transaction(name, mode).objectStore(name);
  const find = async id => asked((await store("chats", "readonly")).get(id));
  const all = async () => (await asked((await store("chats", "readonly")).getAll())).sort((a, b) => b.time - a.time);
  const save = async chat => asked((await store("chats")).put(chat));
  const forget = async id => {
    held.delete(id);
    await asked((await store("images")).delete(IDBKeyRange.bound(`${id}/`, `${id}0`)));
    await asked((await store("chats")).delete(id));
  };

  // The conversation on the screen, for this tab: it comes back when the page is loaded again.
  const current = id => { try { sessionStorage.setItem("minigpt4-chat", id); } catch { /* no storage here */ } };
  const open = () => { try { return sessionStorage.getItem("minigpt4-chat"); } catch { return null; } };

  const held = new Map(), stored = new Map(), waiting = new Map(), apart = new Map(), deleted = new Set();
  let busy = false;
  // Keeps an image of a conversation, which the server has for some time. It is asked for once in a page's life, for
  // this is called with each piece of an answer.
  const fetched = async (id, token, key) => {
    if (await asked((await store("images", "readonly")).get(key))) return;
    const answer = await fetch(`gradio_api/file=${token}`);
    if (!answer.ok) throw new Error(`${token} is not on the server`);
    const found = await answer.blob();
    if (await find(id)) await asked((await store("images")).put(found, key));  // else it was deleted meanwhile
  };
  const image = (id, token) => {
    const key = `${id}/${token}`, failed = error => console.warn("this image is not kept:", error);
    if (!stored.has(key)) stored.set(key, fetched(id, token, key).catch(failed));
    return stored.get(key);
  };
  // Another tab went on with a conversation that this one has: from here on this one's is kept beside it, as another.
  const part = async (chat, name) => {
    const id = Array.from(crypto.getRandomValues(new Uint8Array(8)), byte => byte.toString(16).padStart(2, "0")).join("");
    const images = await store("images"), range = IDBKeyRange.bound(`${chat.id}/`, `${chat.id}0`);
    const [keys, files] = await Promise.all([asked(images.getAllKeys(range)), asked(images.getAll(range))]);
    await Promise.all(keys.map((key, i) => asked(images.put(files[i], id + key.slice(chat.id.length)))));
    held.delete(chat.id);
    held.set(id, Object.assign(chat, {id}));
    apart.set(name, id);
    if (open() === name) current(id);
  };
  const keep = async told => {
    const mine = held.get(apart.get(told.id) ?? told.id), theirs = mine?.time && await find(mine.id);
    if (theirs && theirs.time !== mine.time) await part(mine, told.id);
    const id = apart.get(told.id) ?? told.id, chat = held.get(id) ?? await find(id) ?? {id, name: "", turns: []};
    held.set(id, chat);
    if (deleted.has(id) || (!told.turn && chat.turns.length <= told.at)) return;
    chat.turns.length = Math.min(chat.turns.length, told.at);
    if (told.turn) chat.turns[told.at] = told.turn;
    if (!chat.turns.length) return forget(id);
    chat.name ||= chat.turns[0].question.trim().slice(0, 60);
    await save(Object.assign(chat, {model: told.model ?? chat.model, system: told.system ?? chat.system, time: Date.now()}));
    // After the texts, which do not wait for them: the page may be closed while an image is on its way.
    for (const token of told.turn?.images ?? []) image(id, token);
    for (const old of (await all()).slice(MOST)) await forget(old.id);
  };
  const told = async () => {
    const value = document.querySelector("#kept data")?.value;
    if (!value) return;
    const news = JSON.parse(value);
    if (news.current) current(apart.get(news.id) ?? news.id);
    waiting.set(`${news.id}/${news.at}`, news);  // a longer answer takes the place of a shorter one
    if (busy) return;
    busy = true;
    try {
      while (waiting.size) {
        const [key, next] = waiting.entries().next().value;
        waiting.delete(key);
        await keep(next).catch(error => console.warn("this chat is not kept:", error));
      }
    } finally { busy = false; }
  };

  // What the hidden button sends to the server: the conversation that is to be opened, its images uploaded anew.
  let wanted = null, brought = false;
  const bring = async () => {
    brought = true;
    const chat = wanted && await find(wanted).catch(() => null);
    if (!chat) return [{text: "", files: []}];
    const last = chat.turns.at(-1), blobs = [], turns = [], tokens = chat.turns.flatMap(turn => turn.images);
    await Promise.all(tokens.map(token => image(chat.id, token)));
    const images = await store("images", "readonly");
    if (!last.ended && !last.cut) Object.assign(last, {ended: true, stopped: true, cut: true});
    for (const turn of [...chat.turns].reverse()) {
      const found = (await Promise.all(turn.images.map(token => asked(images.get(`${chat.id}/${token}`))))).filter(Boolean);
      const taken = blobs.length + found.length <= IMAGES ? found : [];
      blobs.unshift(...taken);
      turns.unshift({question: turn.question, answer: turn.answer, stopped: turn.stopped, cut: !!turn.cut,
        unfamiliar: !!turn.unfamiliar, images: taken.length});
    }
    await save(chat);
    held.set(chat.id, chat);
    apart.delete(chat.id);
    const files = [];
    while (blobs.length) {
      const form = new FormData();
      blobs.splice(0, 8).forEach(blob => form.append("files", blob, "image.png"));
      const answer = await fetch("gradio_api/upload", {method: "POST", body: form}).catch(() => null);
      if (!answer?.ok) return [{text: "", files: []}];
      files.push(...(await answer.json()).map(path => ({path, meta: {_type: "gradio.FileData"}})));
    }
    return [{text: JSON.stringify({id: chat.id, model: chat.model, system: chat.system ?? "", turns}), files}];
  };
  const reopen = id => {
    wanted = id;
    document.querySelector("#open-chat").click();
  };

  const element = (tag, properties, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const list = async () => {
    document.querySelector("#chats")?.remove();
    const dialog = element("dialog", {id: "chats", ariaLabel: "My chats"}), rows = element("ul", {});
    const close = element("button", {type: "button", textContent: "Close", onclick: () => dialog.remove()});
    const chats = await all().catch(() => null);
    for (const chat of chats ?? []) {
      const count = chat.turns.length, when = new Date(chat.time).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
      const name = element("input", {value: chat.name, maxLength: 80, ariaLabel: "Name"});
      name.onchange = async () => {
        const named = {name: name.value.trim() || chat.name};
        Object.assign(held.get(chat.id) ?? {}, named);
        await save(Object.assign(await find(chat.id), named));
      };
      rows.append(element("li", {}, name,
        element("span", {textContent: `${chat.model ?? ""} · ${count} question${count > 1 ? "s" : ""} · ${when}`}),
        element("button", {type: "button", textContent: "Open", onclick: () => { dialog.remove(); reopen(chat.id); }}),
        element("button", {type: "button", textContent: "Delete", onclick: async () => {
          if (!confirm(`Delete “${name.value}”?`)) return;
          deleted.add(chat.id);  // an answer to it may still be coming
          await forget(chat.id);
          if (open() === chat.id) [...document.querySelectorAll("#actions button")].find(b => b.textContent.includes("New chat")).click();
          list();
        }})));
    }
    const state = !chats ? "This browser keeps nothing for this page (a private window?)."
      : (chats.length ? "" : "There is none yet. ") + "They are kept in this browser, on your machine, and nowhere else.";
    dialog.append(element("h2", {textContent: "My chats"}), close, rows, element("p", {textContent: state}));
    document.body.append(dialog);
    dialog.showModal();
  };
  document.addEventListener("click", event => { if (event.target.closest("#my-chats button")) list(); });

  Object.assign(window.minigpt4, {bring});
  const start = () => {
    window.minigpt4.built("#kept", kept => new MutationObserver(told).observe(kept, {attributes: true, childList: true, subtree: true}));
    window.minigpt4.built("#open-chat", async () => {
      const id = open();
      if (!id || !await find(id).catch(() => null)) return;
      wanted = id;
      const patience = setInterval(() => {  // the button is there some time before it takes a click
        if (brought) clearInterval(patience);
        else document.querySelector("#open-chat").click();
      }, 500);
    });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
