"""Serves the page on an address, and leaves nothing behind."""

import contextlib
import fcntl
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from minigpt4.app.page.session import MAX_FILE, Models
from minigpt4.errors import UserError
from minigpt4.local_web import allowed_hosts, listen, url

PREFIX = "minigpt4-page-"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder that is gone when the page ends. One of a page that was killed goes now: nobody holds its lock."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, Path(folder, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for other in Path(folder).parent.glob(f"{PREFIX}*/lock"):
            with contextlib.suppress(OSError):
                if other.parent.lstat().st_uid == os.getuid():
                    with other.open() as its:
                        fcntl.flock(its, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(other.parent)
        yield Path(folder)


def serve_page(models: Models, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM; `ready` gets its address. Raises UserError if that cannot be had."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else uvicorn ends the process by it, files and all
    with _folder() as folder, listen(host, port) as listening:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")  # read, and made, when Gradio is imported
        # Gradio makes clients when it is imported, which break on some proxies; on loopback there are none.
        proxies = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
        try:
            import gradio as gr
            import uvicorn
            from fastapi import FastAPI
        except ImportError as error:
            raise UserError(f"the page needs Gradio ({error}): pip install 'minigpt4-vlm[web]'") from None
        finally:
            os.environ.update(proxies)
        from minigpt4.app.page.gate import PageGate
        from minigpt4.app.page.layout import ASSETS, theme
        from minigpt4.app.page.page import Page
        from minigpt4.app.page.uploads import Uploads

        gr.set_static_paths([folder, ASSETS])  # else Gradio copies each file that it shows
        page = Page(models, Uploads(folder))
        names = ("signs.json", "page.css", "page.js", "chats.js", "signs.js")
        signs, style, *scripts = ((ASSETS / name).read_text(encoding="utf-8") for name in names)
        # Not as Gradio's `css`, which it rewrites to hold for a part of the page only.
        head = f"<style>{style}</style>" + "".join(f"<script>{script}</script>" for script in scripts)
        head = head.replace("SIGNS;", f"{signs.strip()};")
        app = gr.mount_gradio_app(
            FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page.blocks, "/", theme=theme(), head=head,
            footer_links=[], show_error=True, max_file_size=MAX_FILE, ssr_mode=False, run_history=False,
        )  # fmt: skip
        models.warm_up()
        ready(url(host, listening))
        gate = PageGate(app, page, allowed_hosts(host))
        try:
            config = uvicorn.Config(gate, ws="none", log_level="warning", timeout_graceful_shutdown=2)
            uvicorn.Server(config).run([listening])
        finally:
            page.visits.drop(list(page.visits.held))
            models.close()
            gc.freeze()  # Python would look through all of torch and Gradio once more, for seconds
