"""The page: chat about pictures in a browser (`minigpt4 web`).

All that knows Gradio is here and in `serving.py`. What visitors say and see is kept in `session.py`; what is made of it
to be shown, in `render.py`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from minigpt4.app import render
from minigpt4.app.session import Models, Visit, Visits
from minigpt4.errors import UserError

log = logging.getLogger(__name__)
ASSETS = Path(str(resources.files("minigpt4.app"))) / "assets"

#: One example for each ability: its picture's name, what its card says, and the question.
EXAMPLES = (
    ("describe", "Describe it", "Describe this image in detail."),
    ("website", "Draft to website", "Write the HTML for this website."),
    ("funny", "What is funny?", "Why is this funny?"),
    ("recipe", "A recipe", "How do I cook this?"),
    ("advertise", "An advertisement", "Write an advertisement for this product."),
    ("poem", "A poem", "Write a short poem about this image."),
    ("story", "A story", "Tell me a story about this picture."),
    ("diagnose", "What is wrong here?", "What makes this picture unusual?"),
)
DRAFT_QUESTION = EXAMPLES[1][2]
#: The decoding of the paper's demo: temperature, top-p, repetition penalty, beams, longest answer.
PAPER = (1.0, 0.9, 1.05, 1, 300)
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


class Page:
    """The page about `models`. `blocks` is Gradio's app, `visits` who is on it; `folder` holds pictures to be shown."""

    def __init__(self, models: Models, folder: Path) -> None:
        self.models = models
        self.folder = folder
        self.visits = Visits(models)
        with gr.Blocks(title="MiniGPT-4", analytics_enabled=False, delete_cache=(600, 7200)) as self.blocks:
            gr.HTML(
                "<header><h1>MiniGPT-4</h1><p>Frozen eyes, a frozen language model, and one linear layer between them. "
                'Ask about a picture.</p><button id="theme" type="button">Dark or light</button></header>'
            )
            with gr.Tabs(elem_id="rooms"):
                with gr.Tab("Chat"), gr.Row(elem_id="chat-room"):
                    with gr.Column(scale=6, min_width=320, elem_id="talk"):
                        self._talk()
                    with gr.Column(scale=5, min_width=320, elem_id="side"):
                        self._side()
                if len(models.names) > 1:
                    with gr.Tab("Side by side"):
                        self._comparison()
            self._wire()
            self.blocks.unload(self._leave)
        self.blocks.queue(api_open=False, max_size=256)

    # -- what is on the page

    def _talk(self) -> None:
        names = list(self.models.names)
        self.model = gr.Radio(
            names, value=names[0], label="Answers come from", info="Another one starts a new conversation.",
            visible=len(names) > 1, elem_id="model",
        )  # fmt: skip
        self.chatbot = gr.Chatbot(
            label="Conversation", show_label=False, elem_id="chat", height=None, max_height="62vh", min_height=110,
            allow_file_downloads=False,
            editable="user", buttons=["copy", "copy_all"], latex_delimiters=[], allow_tags=False, layout="bubble",
            placeholder="### What shall we look at?\nShow a picture below, draw one, or start with an example.",
        )  # fmt: skip
        with gr.Group(elem_id="examples") as self.examples:
            self.cards = [
                gr.Button(title, icon=str(ASSETS / f"{name}.png"), elem_classes="card", size="sm")
                for name, title, _ in EXAMPLES
            ]
        self.composer = gr.MultimodalTextbox(
            label="Your question", show_label=False, placeholder="Ask something. Drop, paste or add pictures.",
            file_types=["image"], file_count="multiple", sources=["upload"], elem_id="composer", max_lines=8,
            max_plain_text_length=8000, autofocus=True,
            html_attributes=gr.InputHTMLAttributes(autocorrect="on", spellcheck=True),
        )  # fmt: skip
        self.status = gr.HTML(elem_id="status")
        with gr.Row(elem_id="actions"):
            self.again = gr.Button("New chat", size="sm")
            self.beside = gr.Button("Ask all models", size="sm", visible=len(names) > 1)
        gr.HTML(
            '<p class="quiet">Enter sends, Shift+Enter starts a line, / goes to the question, Esc stops an answer. '
            "The pencil at your question edits it and asks again.</p>"
        )

    def _side(self) -> None:
        with gr.Tabs(elem_id="tools") as self.tools:
            with gr.Tab("Draw", id="draw"):
                self.sketch = gr.ImageEditor(
                    label="Draft of a website", show_label=False, type="pil", sources=(), transforms=(), layers=False,
                    canvas_size=(480, 480), fixed_canvas=True, height=540, elem_id="sketch", buttons=[],
                    brush=gr.Brush(default_size=5, colors=["#1c2c6e", "#222228", "#484a54"], color_mode="fixed"),
                    eraser=gr.Eraser(default_size=24),
                )  # fmt: skip
                with gr.Row():
                    self.make = gr.Button("Make it a website", variant="primary", size="sm")
                    self.attach = gr.Button("Put it into my question", size="sm")
            with gr.Tab("Camera", id="camera"):
                self.camera = gr.Image(
                    label="Camera",
                    sources=["webcam"],
                    type="pil",
                    format="png",
                    height=360,
                    elem_id="camera",
                    buttons=[],
                )
                gr.HTML('<p class="quiet">The picture goes into your question. It is sent when you send that.</p>')
            with gr.Tab("Website", id="website"):
                self.site = gr.HTML(
                    '<p class="quiet">When an answer is a web page, it appears here.</p>', elem_id="site"
                )
                self.source = gr.Code(label="Source", language="html", interactive=False, visible=False, max_lines=16)
                self.save_site = gr.Button("Download the page", size="sm", visible=False)
            with gr.Tab("Looked at", id="looked"):
                self.heat = gr.HTML(
                    '<p class="quiet">After an answer, choose one of its words to see which part of the picture it '
                    "came from: where the language model attended as it chose the word, traced back through the "
                    "Q-Former. It is a hint, no proof.</p>",
                    elem_id="heat",
                )
                self.word = gr.Radio([], label="A word of the last answer", elem_id="words", visible=False)
                self.query = gr.Number(
                    None, label="Or a query token", precision=0, minimum=1, visible=False, elem_id="query",
                    info="The Q-Former gives the picture as so many tokens; each asks its own question of it.",
                )  # fmt: skip
            with gr.Tab("Settings", id="settings"):
                self._settings()
            with gr.Tab("Keep", id="keep"):
                gr.HTML(
                    '<p class="quiet">The conversation as a file. The HTML file is whole, with pictures and websites '
                    "in it: send it to whom you like.</p>"
                )
                with gr.Row():
                    self.keep = {
                        "md": gr.Button("Markdown", size="sm"),
                        "json": gr.Button("JSON", size="sm"),
                        "html": gr.Button("HTML to share", size="sm"),
                    }
        self.file = gr.JSON(visible=False)

    def _settings(self) -> None:
        temperature, top_p, penalty, beams, length = PAPER
        self.sliders: list[Any] = [
            gr.Slider(0, 2, temperature, step=0.05, label="Temperature",
                      info="How daring the choice of words is. 0 always takes the likeliest word."),
            gr.Slider(0.05, 1, top_p, step=0.05, label="Top-p",
                      info="Only the likeliest words that together have this probability are drawn from."),
            gr.Slider(1, 2, penalty, step=0.05, label="Repetition penalty",
                      info="Above 1, words that the answer has used already become less likely."),
            gr.Slider(1, 8, beams, step=1, label="Beams",
                      info="Above 1, so many answers are followed at once and the best is shown when it is complete; "
                      "nothing is drawn by chance."),
            gr.Slider(8, 1000, length, step=1, label="Longest answer", info="In tokens; a word has one or two."),
        ]  # fmt: skip
        self.defaults = gr.Button("Back to the paper's", size="sm")

    def _comparison(self) -> None:
        gr.HTML(
            '<p class="quiet">The same picture and question for all models. Stage 1 and stage 2 have the same eyes and '
            "the same strong language model; the BLIP-2 baseline has the same eyes and a weak one. They see alike; "
            "what they can do with it is the paper's point.</p>"
            if "BLIP-2 baseline" in self.models.names
            else '<p class="quiet">The same picture and question for all models.</p>'
        )
        self.duel = gr.MultimodalTextbox(
            label="A question for all", show_label=False, placeholder="Pictures, and a question for all models.",
            file_types=["image"], file_count="multiple", sources=["upload"], elem_id="duel",
        )  # fmt: skip
        self.duel_status = gr.HTML()
        self.duel_pictures = gr.HTML()
        with gr.Row(elem_id="columns"):
            self.columns = [gr.HTML(self._column(name, ""), elem_classes="model-answer") for name in self.models.names]

    # -- what happens when

    def _wire(self) -> None:
        changed = [
            self.chatbot, self.composer, self.status, self.examples, self.tools, self.site, self.source,
            self.save_site, self.word, self.query, self.heat,
        ]  # fmt: skip
        # Whatever runs on a model waits for its turn; what does not is quick and comes at once.
        model: dict[str, Any] = {
            "concurrency_limit": 1, "concurrency_id": "model", "show_progress": "hidden", "api_visibility": "private",
        }  # fmt: skip
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.composer.submit(self._submit, [self.composer, *self.sliders], changed, **model)
        self.composer.stop(self._stop, None, None, **quick)
        self.chatbot.retry(self._retry, self.sliders, changed, **model)
        self.chatbot.edit(self._edit, self.sliders, changed, **model)
        self.chatbot.clear(self._new, None, changed, **quick)
        self.again.click(self._new, None, changed, **quick)
        self.model.input(self._new, self.model, changed, **quick)
        for number, card in enumerate(self.cards):
            card.click(self._example(number), self.sliders, changed, **model)
        self.make.click(self._website, [self.sketch, *self.sliders], changed, **model)
        self.attach.click(self._attach, [self.sketch, self.composer], [self.composer, self.status], **quick)
        self.camera.input(self._photo, [self.camera, self.composer], [self.composer, self.camera], **quick)
        self.word.input(self._look_at_word, self.word, [self.heat, self.query, self.status], **model)
        self.query.input(self._look_at_query, self.query, [self.heat, self.word, self.status], **model)
        self.defaults.click(lambda: PAPER, None, self.sliders, **quick)
        download = "file => window.minigpt4.download(file)"
        for ending, button in self.keep.items():
            button.click(self._kept(ending), None, [self.file, self.status], **quick).then(
                None, self.file, None, js=download, api_visibility="private"
            )
        self.save_site.click(
            lambda page: ["website.html", "text/html", page], self.source, self.file, **quick
        ).then(None, self.file, None, js=download, api_visibility="private")  # fmt: skip
        if len(self.models.names) > 1:
            shown = [self.duel_status, self.duel_pictures, *self.columns]
            self.duel.submit(self._compare, [self.duel, *self.sliders], shown, **model)
            self.beside.click(self._carry_over, None, [self.duel, self.status], **quick).then(
                None, None, None, js="() => window.minigpt4.room('Side by side')", api_visibility="private"
            )

    def _visit(self, request: gr.Request) -> Visit:
        return self.visits.of(str(request.session_hash))

    def _leave(self, request: gr.Request) -> None:
        self.visits.leave(str(request.session_hash))

    def _submit(self, request: gr.Request, message: Any, *sliders: float) -> Iterator[Update]:
        yield from self._ask(self._visit(request), message["text"], message["files"], sliders)

    def _example(self, number: int) -> Callable[..., Iterator[Update]]:
        name, _, question = EXAMPLES[number]

        def ask(request: gr.Request, *sliders: float) -> Iterator[Update]:
            yield from self._ask(self._visit(request), question, [str(ASSETS / f"{name}.png")], sliders)

        return ask

    def _retry(self, data: gr.RetryData, request: gr.Request, *sliders: float) -> Iterator[Update]:
        yield from self._again(self._visit(request), data.index, None, sliders)

    def _edit(self, data: gr.EditData, request: gr.Request, *sliders: float) -> Iterator[Update]:
        yield from self._again(self._visit(request), data.index, data.value, sliders)

    def _again(self, visit: Visit, index: Any, question: Any, sliders: tuple[float, ...]) -> Iterator[Update]:
        """Ask the question of the message at `index` again, or another one in its place."""
        position = index if isinstance(index, int) else index[0]
        number = self._owners(visit)[position]
        turn = visit.turns[number]
        visit.rewind(number)
        yield from self._ask(visit, question if isinstance(question, str) else turn.question, turn.pictures, sliders)

    def _ask(self, visit: Visit, question: str, pictures: list[Any], sliders: tuple[float, ...]) -> Iterator[Update]:
        yield {
            self.composer: gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True),
            self.status: "",
            self.examples: gr.Group(visible=False),
        }
        problem = None
        try:
            for _ in visit.ask(question, pictures, decoding(*sliders)):
                yield {self.chatbot: self._messages(visit)}
        except UserError as error:
            problem = str(error)
        except Exception as error:
            log.exception("an answer failed")
            problem = f"this answer failed ({type(error).__name__}); the conversation is as it was before"
        composer: Update = {"submit_btn": True, "stop_btn": False}
        if problem is not None:  # nothing that was typed is lost
            composer["value"] = {"text": question, "files": [p for p in pictures if isinstance(p, str)]}
        yield {
            self.chatbot: self._messages(visit),
            self.composer: gr.MultimodalTextbox(**composer),
            self.examples: gr.Group(visible=not visit.turns),
            self.status: _told(problem),
            **(self._found(visit) if problem is None else {}),
        }

    def _found(self, visit: Visit) -> Update:
        """What the tools show of the last answer: its website, its words."""
        turn = visit.turns[-1]
        seen = visit.pictures
        words = [(word, number) for number, (word, _, _) in enumerate(self._words(visit))] if seen else []
        update: Update = {
            self.word: gr.Radio(choices=words, value=None, visible=bool(words)),
            self.query: gr.Number(value=None, visible=bool(words)),
            self.heat: f'<p class="quiet">{"Choose a word." if words else "No picture was shown yet."}</p>',
        }
        page = render.find_page(turn.answer)
        if page is not None:
            drawing = seen[-1] if seen else None
            update |= {
                self.site: render.website(page, drawing),
                self.source: gr.Code(value=page, visible=True),
                self.save_site: gr.Button(visible=True),
                self.tools: gr.Tabs(selected="website"),
            }
        return update

    def _messages(self, visit: Visit) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(visit.turns):
            messages += [
                {"role": "user", "content": {"path": self._shown(picture), "alt_text": "The picture that you showed"}}
                for picture in turn.pictures
            ]
            messages.append({"role": "user", "content": render.as_markdown(turn.question)})
            waiting = number == len(visit.turns) - 1 and not turn.answer and not turn.stopped
            text = "…" if waiting else render.as_markdown(turn.answer)
            messages.append({"role": "assistant", "content": f"{text}\n\n*(stopped)*" if turn.stopped else text})
        return messages

    def _owners(self, visit: Visit) -> list[int]:
        """For each of the chat's messages the number of its turn."""
        return [number for number, turn in enumerate(visit.turns) for _ in range(len(turn.pictures) + 2)]

    def _shown(self, picture: Any) -> str:
        """A file of the picture for the chat, made by us from its pixels: what was uploaded is never sent back."""
        small = picture.copy()
        small.thumbnail((768, 768))
        path = self.folder / f"{hashlib.sha256(small.tobytes()).hexdigest()[:32]}.png"
        if not path.exists():
            small.save(path)
        return str(path)

    def _stop(self, request: gr.Request) -> None:
        self._visit(request).stop.set()

    def _new(self, request: gr.Request, model: str | None = None) -> Update:
        visit = self._visit(request)
        visit.start_again(model)
        return {
            self.chatbot: [],
            self.composer: gr.MultimodalTextbox(submit_btn=True, stop_btn=False),
            self.examples: gr.Group(visible=True),
            self.status: "",
            self.word: gr.Radio(choices=[], value=None, visible=False),
            self.query: gr.Number(value=None, visible=False),
            self.heat: '<p class="quiet">After an answer, choose one of its words.</p>',
        }

    # -- pictures that are made here

    def _website(self, request: gr.Request, sketch: Any, *sliders: float) -> Iterator[Update]:
        try:
            drawing = _drawing(sketch)
        except UserError as error:
            yield {self.status: _told(str(error))}
            return
        yield from self._ask(self._visit(request), DRAFT_QUESTION, [drawing], sliders)

    def _attach(self, sketch: Any, message: Any) -> Update:
        try:
            return {self.composer: _with(message, self._shown(_drawing(sketch))), self.status: ""}
        except UserError as error:
            return {self.status: _told(str(error))}

    def _photo(self, photo: Any, message: Any) -> Update:
        return {} if photo is None else {self.composer: _with(message, self._shown(photo)), self.camera: None}

    # -- what the model looked at

    def _words(self, visit: Visit) -> list[tuple[str, int, int]]:
        from minigpt4.generation.attention import words

        if visit.chat is None or not visit.turns:
            return []
        ids, start, _ = visit.chat.reading(len(visit.turns) - 1)
        return [(word, start + a, start + b) for word, a, b in words(visit.chat.model.tokenizer, ids[start:])]

    def _look_at_word(self, request: gr.Request, number: int) -> Update:
        return self._look(self._visit(request), number, None) | {self.query: None}

    def _look_at_query(self, request: gr.Request, number: int | None) -> Update:
        return {} if number is None else self._look(self._visit(request), None, number) | {self.word: None}

    def _look(self, visit: Visit, word: int | None, query: int | None) -> Update:
        from minigpt4.generation.attention import patch_attention, token_attention

        if visit.chat is None or not visit.pictures:
            return {self.status: _told("show a picture and ask about it first")}
        model = visit.chat.model
        try:
            patches = patch_attention(model, visit.pictures)
            if word is not None:
                text, start, end = self._words(visit)[word]
                ids, _, features = visit.chat.reading(len(visit.turns) - 1)
                weights = token_attention(model, ids, features, start, end)
                about = f"“{text}”"
            else:
                assert query is not None
                if not 1 <= query <= model.num_query_tokens:
                    raise UserError(f"this model has query tokens 1 to {model.num_query_tokens}")
                weights = patches.new_zeros(len(patches), model.num_query_tokens)
                weights[:, query - 1] = 1
                about = f"query token {query}"
        except UserError as error:
            return {self.status: _told(str(error))}
        heats = list((weights[:, :, None, None] * patches).sum(1))
        return {self.heat: render.heat_maps(visit.pictures, heats, about), self.status: ""}

    # -- files

    def _kept(self, ending: str) -> Callable[[gr.Request], Update]:
        kind, write = _CHAT_FILES[ending]

        def make(request: gr.Request) -> Update:
            visit = self._visit(request)
            if not visit.turns:
                return {self.file: None, self.status: _told("there is nothing to keep yet; ask something first")}
            return {self.file: [f"minigpt4-chat.{ending}", kind, write(visit.turns, visit.model)], self.status: ""}

        return make

    # -- side by side

    @staticmethod
    def _column(name: str, answer: str) -> str:
        page = render.find_page(answer)
        shown = f"<pre>{escape(answer)}</pre>" + (render.website(page, None) if page else "")
        return f"<h2>{escape(name)}</h2>{shown}"

    def _carry_over(self, request: gr.Request) -> Update:
        visit = self._visit(request)
        if not visit.turns:
            return {self.status: _told("ask something first; it is then put to all models")}
        files = [self._shown(picture) for picture in visit.pictures[-1:]]
        return {self.duel: {"text": visit.turns[-1].question, "files": files}, self.status: ""}

    def _compare(self, message: Any, *sliders: float) -> Iterator[Update]:
        from minigpt4.data.images import open_image

        update: Update = {
            column: self._column(name, "…") for name, column in zip(self.models.names, self.columns, strict=True)
        }
        try:
            pictures = [open_image(path) for path in message["files"]]
            shown = "".join(f'<img src="{render.data_url(picture, 320)}" alt="The picture">' for picture in pictures)
            yield {self.duel_status: "", self.duel_pictures: f'<div class="strip">{shown}</div>', **update}
            for name, column in zip(self.models.names, self.columns, strict=True):
                for turn in Visit(self.models, name).ask(message["text"], pictures, decoding(*sliders)):
                    yield {column: self._column(name, turn.answer or "…")}
        except UserError as error:
            yield {self.duel_status: _told(str(error))}


def _told(problem: str | None) -> str:
    return f'<p role="alert" class="problem">{escape(problem[0].upper() + problem[1:])}.</p>' if problem else ""


def _drawing(sketch: Any) -> Any:
    drawing = (sketch or {}).get("composite")
    if drawing is None or drawing.getextrema()[-1][1] == 0:
        raise UserError("the sheet is empty; draw something first")
    return drawing


def _with(message: Any, picture: str) -> dict[str, Any]:
    return {"text": (message or {}).get("text") or "", "files": [*((message or {}).get("files") or []), picture]}


def theme() -> Any:
    """The page's colours and type: ink on warm paper, and the reader's own fonts, so that nothing is fetched."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal, neutral_hue=gr.themes.colors.stone, radius_size="lg", text_size="md",
        font=fonts, font_mono=("ui-monospace", "Menlo", "Consolas", "monospace"),
    ).set(
        body_background_fill="#faf8f4", body_background_fill_dark="#141311",
        background_fill_primary="#ffffff", background_fill_primary_dark="#1c1a18",
        background_fill_secondary="#f4f0e8", background_fill_secondary_dark="#24211e",
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        color_accent_soft="*primary_50", color_accent_soft_dark="*primary_900",
        color_accent="*primary_700", block_border_width="1px", block_shadow="none",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600", input_placeholder_color="*neutral_500",
    )  # fmt: skip
