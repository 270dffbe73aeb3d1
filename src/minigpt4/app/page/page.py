"""The page: chat about images in a browser (`minigpt4 web`). What happens on it is here, controls in `layout.py`."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError

from minigpt4.app.page import render
from minigpt4.app.page.layout import ASSETS, DRAFT_QUESTION, DRAWN, LOOKED_AT, NO_IMAGE, PHOTOS, Layout
from minigpt4.app.page.session import DRAFTS, MAX_QUESTION, KeptChat, Models, Turn, Visit, Visits, opened
from minigpt4.app.page.uploads import Uploads
from minigpt4.errors import UserError
from minigpt4.images import seen, size_of
from minigpt4.telling import UNFAMILIAR

log = logging.getLogger(__name__)
_CHAT_FILES = {
    "md": ("text/markdown", render.conversation_markdown),
    "json": ("application/json", render.conversation_json),
    "html": ("text/html", render.conversation_page),
}
#: What a handler may change, and to what.
Update = dict[Any, Any]


def decoding(temperature: float, top_p: float, penalty: float, beams: float, length: float) -> dict[str, Any]:
    """The settings of `Chat.ask` that the page's sliders say."""
    settings: dict[str, Any] = {"max_new_tokens": int(length), "repetition_penalty": float(penalty)}
    if beams > 1:
        return {**settings, "num_beams": int(beams)}
    if temperature == 0:
        return {**settings, "do_sample": False}
    return {**settings, "do_sample": True, "temperature": float(temperature), "top_p": float(top_p)}


class Page(Layout):
    """The page about `models`. `visits` are the conversations on it; `uploads` holds images, sent and shown."""

    def __init__(self, models: Models, uploads: Uploads) -> None:
        first = models.names[models.first]
        super().__init__(list(models.names), DRAWN if "pocket" in first else PHOTOS, models.suggested(models.first))
        self.models, self.uploads, self.visits = models, uploads, Visits(models)
        with self.blocks:
            self._wire()
            self.blocks.unload(self._leave)
            gr.api(_refuse, api_visibility="private", concurrency_limit=None)
        #: The number of the event that fails with the message that is its input.
        self.refusal = next(number for number, event in self.blocks.fns.items() if event.fn is _refuse)
        self.blocks.queue(api_open=False, max_size=256)

    def _wire(self) -> None:
        changed = [
            self.chatbot, self.composer, self.status, self.examples, self.tools, self.site, self.source,
            self.save_site, self.word, self.query, self.heat, self.sheet_status, self.kept,
        ]  # fmt: skip
        # Fewer answers at once than Gradio has threads, so that what is quick comes at once. Gradio preprocesses
        # nothing: the gate has checked the inputs, and Gradio would decode images without a limit.
        common: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
        model: dict[str, Any] = {"concurrency_limit": 32, "concurrency_id": "model", **common}
        quick: dict[str, Any] = {"concurrency_limit": None, **common}
        self.composer.submit(self._submit, [self.composer, *self.sliders], changed, **model)
        self.composer.stop(self._stop, None, None, **quick)
        self.chatbot.retry(self._retry, self.sliders, changed, **model)
        self.chatbot.edit(self._edit, self.sliders, changed, **model)
        self.chatbot.clear(self._new, None, changed, **quick)
        self.again.click(self._new, None, changed, **quick)
        self.model.input(self._change_model, self.model, changed, **quick)
        for number, card in enumerate(self.cards):
            card.click(self._example(number), self.sliders, [*changed, self.model], **model)
        self.make.click(self._website, [self.sketch, *self.sliders], [*changed, self.model], **model)
        self.attach.click(self._attach, [self.sketch, self.composer], [self.composer, self.sheet_status], **quick)
        self.camera.input(self._photo, [self.camera, self.composer], [self.composer, self.camera], **quick)
        self.word.input(self._look_at_word, self.word, [self.heat, self.query], trigger_mode="always_last", **model)
        self.query.input(self._look_at_query, self.query, [self.heat, self.word], trigger_mode="always_last", **model)
        self.system.blur(self._set_system, self.system, None, **quick)
        back = "() => window.minigpt4.bring()"
        self.reopen.click(self._resume, self.brought, [*changed, self.model, self.system], js=back, **quick)
        self.defaults.click(lambda: self.start, None, self.sliders, **quick)
        save: dict[str, Any] = {"js": "file => window.minigpt4.download(file)", "api_visibility": "private"}
        for ending, button in self.keep.items():
            button.click(self._kept(ending), None, [self.file, self.keep_status], **quick).then(None, self.file, **save)
        site = self.save_site.click(lambda page: ["website.html", "text/html", page], self.source, self.file, **quick)
        site.then(None, self.file, **save)
        if len(self.models.names) > 1:
            shown = [self.duel, self.duel_status, self.duel_images, *self.columns]
            self.duel.stop(self._stop_beside, None, self.duel, **quick)
            self.duel.submit(self._compare, [self.duel, *self.sliders], shown, **model)
            # What stands in the box: Gradio's own copy of it is a moment late.
            typed = "{files: [], ...given[0], text: document.querySelector('#composer textarea').value}"
            # What comes while the room is being shown would be lost.
            shown_first = "window.minigpt4.room('Side by side'); await new Promise(done => setTimeout(done, 250));"
            enter = f"async (...given) => {{ given[0] = {typed}; {shown_first} return given; }}"
            again: dict[str, Any] = {"js": enter, "trigger_mode": "multiple", **model}  # also while they answer
            self.beside.click(self._ask_all, [self.composer, *self.sliders], shown, **again)

    def events(self) -> dict[int, list[Any]]:
        """The inputs of each event that the page may send, by its number; the rest is JavaScript, or for us alone."""
        events, other = self.blocks.fns.items(), (None, self._leave, _refuse)
        return {number: list(event.inputs) for number, event in events if event.fn not in other}

    def awaits(self, session: str) -> bool:
        """Whether there are answers for this session, or will be."""
        return session in self.blocks._queue.pending_messages_per_session

    def _visit(self, request: gr.Request) -> Visit:
        return self.visits.of(str(request.session_hash))

    def _leave(self, request: gr.Request) -> None:
        self.visits.drop([str(request.session_hash)])

    def _shown(self, visit: Visit, images: list[Any]) -> list[str]:
        """Files of the images that the gate gives to this visitor."""
        # The gate composes a session's name of the visitor's cookie and Gradio's own.
        return [self.uploads.show(visit.key[:32], image) for image in images]

    def _submit(self, request: gr.Request, message: Any, *sliders: float) -> Iterator[Update]:
        yield {self.composer: gr.MultimodalTextbox(value=None)}
        yield from self._ask(self._visit(request), message["text"], _paths(message), sliders)

    def _example(self, number: int) -> Callable[..., Iterator[Update]]:
        file, _, question = self.shown_examples[number]

        def ask(request: gr.Request, *sliders: float) -> Iterator[Update]:
            yield from self._ask_of_drafts(self._visit(request), question, [str(ASSETS / file)], sliders)

        return ask

    def _website(self, request: gr.Request, sketch: Any, *sliders: float) -> Iterator[Update]:
        try:
            drawing = _drawing(sketch)
        except UserError as error:
            yield {self.sheet_status: render.problem(str(error))}
        else:
            yield from self._ask_of_drafts(self._visit(request), DRAFT_QUESTION, [drawing], sliders)

    def _ask_of_drafts(
        self, visit: Visit, question: str, images: list[Any], sliders: tuple[float, ...]
    ) -> Iterator[Update]:
        """As `_ask`, but a draft starts a chat with the model that reads drafts, which first describes it.

        What it has said, it can copy: of pages that are asked for at once, two in five lack an element.
        """
        if question == DRAFT_QUESTION:
            if DRAFTS in self.names and visit.model != DRAFTS:
                visit.start_again(DRAFTS)
                yield self._opened(visit, LOOKED_AT) | {self.model: DRAFTS}
            said, describe, name = len(visit.turns), DRAWN[0][2], visit.name
            yield from self._ask(visit, describe, images, (0, 1, 1, *sliders[3:]))
            if visit.name != name or len(visit.turns) == said or visit.turns[-1].stopped:
                return
            images = []
        yield from self._ask(visit, question, images, sliders)

    def _retry(self, data: gr.RetryData, request: gr.Request, *sliders: float) -> Iterator[Update]:
        yield from self._again(self._visit(request), data.index, None, sliders)

    def _edit(self, data: gr.EditData, request: gr.Request, *sliders: float) -> Iterator[Update]:
        asked = unescape(data.value).replace("!\\[", "![").replace("]\\(", "](").replace("]\\:", "]:")  # Markdown
        yield from self._again(self._visit(request), data.index, asked, sliders)

    def _again(self, visit: Visit, place: int, question: str | None, sliders: tuple[float, ...]) -> Iterator[Update]:
        """Ask the question of the message at `place` again, or `question` instead."""
        for number, turn in enumerate(visit.turns):
            place -= len(turn.images) + 2  # the messages of a turn
            if place < 0:
                question = turn.question if question is None else question
                yield from self._ask(visit, question, turn.images, sliders, number)
                return
        told = render.problem("This visit was idle for too long; ask anew")
        yield {self.chatbot: self._messages(visit), self.status: told}

    def _ask(
        self, visit: Visit, question: str, images: list[Any], sliders: tuple[float, ...], after: int | None = None
    ) -> Iterator[Update]:
        yield {
            self.composer: gr.MultimodalTextbox(submit_btn=False, stop_btn=True),
            self.status: "",
            self.sheet_status: "",
            self.examples: gr.Group(visible=False),
        }
        if question == DRAFT_QUESTION:  # a page is code: no chance, and its tags may come again
            sliders = (0, 1, 1, *sliders[3:])
        problem, name, at, begun = None, visit.name, len(visit.turns[:after]), False
        try:
            if not (images or any(turn.images for turn in visit.turns[:after])):
                raise UserError(NO_IMAGE)
            for turn in visit.ask(question, images, decoding(*sliders), after):
                begun = begun or after is None or bool(turn.answer or turn.ended)  # else what was there may come back
                kept = {self.kept: self._to_keep(visit, name, at, turn)} if begun else {}
                yield {self.chatbot: self._messages(visit), **kept}
        except Exception as error:
            problem = _explained(error)
        busy = visit.answering.locked()  # with another question of this visitor
        composer: Update = {"submit_btn": not busy, "stop_btn": busy}
        found: Update = {self.kept: self._to_keep(visit, name, at)} if problem is not None and begun else {}
        new = all(turn.question != question for turn in visit.turns) or any(isinstance(image, str) for image in images)
        if problem is not None and new:  # nothing that was typed is lost
            files = [image if isinstance(image, str) else self._shown(visit, [image])[0] for image in images]
            composer["value"] = {"text": question, "files": files}
        elif problem is None and visit.turns and visit.name == name:  # else another chat is on the page meanwhile
            found = self._found(visit)
        yield found | {
            self.chatbot: self._messages(visit),
            self.composer: gr.MultimodalTextbox(**composer),
            self.examples: gr.Group(visible=not visit.turns),
            self.status: render.problem(problem),
        }

    def _to_keep(self, visit: Visit, name: str, at: int, turn: Turn | None = None) -> str:
        """For the browser: a conversation has this turn as its `at`th and last one, or no more than `at` turns."""
        told: dict[str, Any] = {"id": name, "at": at, "current": visit.name == name, "turn": None}
        if turn is not None:
            names = [Path(file).name for file in turn.files]
            told |= {"model": visit.model, "system": visit.system} if visit.name == name and not at else {}
            told["turn"] = {"question": turn.question, "answer": turn.answer, "images": names, "ended": turn.ended,
                            "stopped": turn.stopped, "unfamiliar": turn.unfamiliar}  # fmt: skip
        return render.kept(told)

    def _resume(self, request: gr.Request, kept: Any) -> Update:
        """Take up a conversation that the visitor's browser kept: as JSON, and its images."""
        visit = self._visit(request)
        try:
            visit.resume(KeptChat.model_validate_json(kept["text"]), _paths(kept))
        except (ValidationError, UserError) as error:
            told = str(error) if isinstance(error, UserError) else "its images were not sent, or its record is damaged"
            return {self.status: render.problem(f"This chat could not be opened again: {told}")}
        hint = "Ask about it again to see which part of the image a word comes from."
        return self._opened(visit, hint) | {self.model: visit.model, self.system: visit.system}

    def _set_system(self, request: gr.Request, text: str) -> None:
        self._visit(request).system = text[:MAX_QUESTION].strip()

    def _found(self, visit: Visit) -> Update:
        """What the tools show of the last answer: its website, its words."""
        last, images = len(visit.turns) - 1, visit.images
        words = [(word, f"{last}.{n}") for n, (word, _, _) in enumerate(self._words(visit, last) if images else [])]
        update = self._to_choose(words, "Choose a word." if words else "No image was shown yet.")
        page = render.find_page(visit.turns[-1].answer)
        if page is not None:
            update |= {
                self.site: render.website(page, images[-1] if images else None),
                self.source: gr.Code(value=page, visible=True),
                self.save_site: gr.Button(visible=True),
                self.tools: gr.Tabs(selected="website"),
            }
        return update

    def _to_choose(self, words: list[tuple[str, str]], hint: str) -> Update:
        return {
            self.word: gr.Radio(choices=words, value=None, visible=bool(words)),
            self.query: gr.Number(value=None, visible=bool(words)),
            self.heat: render.hint(hint),
        }

    def _messages(self, visit: Visit) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(visit.turns):
            if not (turn.files and all(map(os.path.exists, turn.files))):  # asked again with every piece of an answer
                turn.files = self._shown(visit, turn.images)
            waiting = number == len(visit.turns) - 1 and not turn.answer and not turn.ended
            text = "…" if waiting else render.as_markdown(turn.answer)
            text = f"> {UNFAMILIAR}.\n\n{text}" if turn.unfamiliar else text
            shown = [{"path": file, "alt_text": "Your image"} for file in turn.files]
            asked = [*shown, render.as_markdown(turn.question)]
            messages += [{"role": "user", "content": content} for content in asked]
            end = "cut off: the page was closed" if turn.cut else "stopped" if turn.stopped else ""
            messages.append({"role": "assistant", "content": f"{text}\n\n*({end})*" if end else text})
        return messages

    def _stop(self, request: gr.Request) -> None:
        self._visit(request).stop.set()

    def _stop_beside(self, request: gr.Request) -> Any:
        self._visit(request).stop_beside()
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)  # before the answers' end: one may ask again

    def _new(self, request: gr.Request) -> Update:
        new = self._change_model(request, None)
        return new | {self.composer: gr.MultimodalTextbox(value=None, submit_btn=True, stop_btn=False)}

    def _change_model(self, request: gr.Request, model: str | None) -> Update:
        """Start a new chat; what is typed stays."""
        visit = self._visit(request)
        visit.start_again(model)
        return self._opened(visit, LOOKED_AT)

    def _opened(self, visit: Visit, hint: str) -> Update:
        return {
            self.chatbot: self._messages(visit),
            self.composer: gr.MultimodalTextbox(submit_btn=True, stop_btn=False),
            self.examples: gr.Group(visible=not visit.turns),
            self.status: "",
            self.kept: self._to_keep(visit, visit.name, len(visit.turns)),
            **self._to_choose([], hint),
        }

    def _attach(self, request: gr.Request, sketch: Any, message: Any) -> Update:
        try:
            return {self.composer: self._with(request, message, _drawing(sketch)), self.sheet_status: ""}
        except UserError as error:
            return {self.sheet_status: render.problem(str(error))}

    def _photo(self, request: gr.Request, photo: Any, message: Any) -> Update:
        if photo is None:
            return gr.skip()
        return {self.composer: self._with(request, message, opened(photo["path"])), self.camera: None}

    def _with(self, request: gr.Request, message: Any, image: Any) -> dict[str, Any]:
        return {"text": message["text"], "files": [*_paths(message), *self._shown(self._visit(request), [image])]}

    def _words(self, visit: Visit, turn: int) -> list[tuple[str, int, int]]:
        from minigpt4.app.page.attention import words

        if visit.chat is None:
            return []
        ids, start, _ = visit.chat.reading(turn)
        return [(word, start + a, start + b) for word, a, b in words(visit.chat.model.tokenizer, ids[start:])]

    def _look_at_word(self, request: gr.Request, place: str) -> Update:
        """`place`: the number of the turn, and that of the word in its answer; a newer answer may be coming."""
        found = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", place)
        if found is None:
            return gr.skip()
        return self._look(self._visit(request), int(found[1]), int(found[2])) | {self.query: None}

    def _look_at_query(self, request: gr.Request, number: int | None) -> Update:
        if number is None:
            return gr.skip()
        visit = self._visit(request)
        return self._look(visit, len(visit.turns) - 1 - visit.answering.locked(), None, number) | {self.word: None}

    def _look(self, visit: Visit, turn: int, word: int | None, query: int = 0) -> Update:
        from minigpt4.app.page.attention import patch_attention, token_influence

        if visit.chat is None or not visit.images or not 0 <= turn < len(visit.chat.history) // 2:
            return {self.heat: render.problem("Ask again to see it" if visit.images else NO_IMAGE)}
        model = visit.chat.model
        try:
            ids, _, features = visit.chat.reading(turn)
            images = [image for each in visit.turns[: turn + 1] for image in each.images]
            images = images[len(images) - len(features) :]  # those that the LLM read of
            with self.models.alone:
                patches = patch_attention(model, images)
                if word is not None:
                    text, start, end = self._words(visit, turn)[word]
                    weights, about = token_influence(model, ids, features, start, end), f"“{text}”"
                elif 1 <= query <= model.num_query_tokens:
                    weights, about = patches.new_zeros(len(patches), model.num_query_tokens), f"query token {query}"
                    weights[:, query - 1] = 1
                else:
                    raise UserError(f"This model has query tokens 1 to {model.num_query_tokens}")
        except Exception as error:
            return {self.heat: render.problem(_explained(error))}
        heats = list((weights[:, :, None, None] * patches).sum(1))
        shown = [seen(image, *size_of(model.image_processor)) for image in images]
        return {self.heat: render.heat_maps(shown, heats, about)}

    def _kept(self, ending: str) -> Callable[[gr.Request], Update]:
        kind, write = _CHAT_FILES[ending]

        def make(request: gr.Request) -> Update:
            visit = self._visit(request)
            if not visit.turns:
                return {self.file: None, self.keep_status: render.problem("There is nothing to keep yet")}
            return {self.file: [f"minigpt4-chat.{ending}", kind, write(visit.turns, visit.model)], self.keep_status: ""}

        return make

    def _ask_all(self, request: gr.Request, message: Any, *sliders: float) -> Iterator[Update]:
        """What is typed and attached, or else the last question and image, for all models."""
        visit = self._visit(request)
        text = message["text"].strip() or (visit.turns[-1].question if visit.turns else "")
        files = _paths(message) or self._shown(visit, visit.images[-1:])
        yield {self.duel: {"text": text, "files": files}}
        yield from self._compare(request, {"text": text, "files": [{"path": file} for file in files]}, *sliders)

    def _compare(self, request: gr.Request, message: Any, *sliders: float) -> Iterator[Update]:
        visit = self._visit(request)
        columns, problem = dict(zip(self.compared, self.columns, strict=True)), None
        before = beside = visit.beside
        try:
            images = [opened(path) for path in _paths(message)]
            if not images:
                raise UserError(NO_IMAGE)
            shown = "".join(render.image_tag(image, 320, "The image") for image in images)
            yield {
                self.duel: gr.MultimodalTextbox(submit_btn=False, stop_btn=True),
                self.duel_status: "",
                self.duel_images: f'<div class="strip">{shown}</div>',
                **{column: render.model_answer(name, "…") for name, column in columns.items()},
            }
            for turns in visit.ask_beside(list(columns), message["text"], images, decoding(*sliders)):
                beside = visit.beside if beside is before else beside
                yield {columns[name]: render.model_answer(name, turn.answer or "…", turn.ended, turn.unfamiliar)
                       for name, turn in turns.items()}  # fmt: skip
        except Exception as error:
            problem = _explained(error)
        if visit.beside and visit.beside is not beside and (problem is None or beside is not before):  # asked anew
            return
        yield {
            self.duel: gr.MultimodalTextbox(submit_btn=True, stop_btn=False),
            self.duel_status: render.problem(problem),
        }


def _refuse(message: str) -> None:
    raise gr.Error(message, print_exception=False)


def _explained(error: Exception) -> str:
    """One line for the visitor; what is not a mistake of theirs goes to the log too."""
    if isinstance(error, UserError):
        return str(error)
    log.error("an answer failed", exc_info=error)
    return f"This failed ({type(error).__name__}); the conversation is as it was before"


def _paths(message: Any) -> list[str]:
    return [file["path"] for file in message["files"]]


def _drawing(sketch: Any) -> Any:
    drawing = opened(sketch["composite"]["path"]) if sketch else None
    if drawing is None or drawing.convert("L").getextrema()[0] == 255:  # the sheet is white
        raise UserError("The sheet is empty; draw something first")
    return drawing
