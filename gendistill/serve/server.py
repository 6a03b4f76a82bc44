"""The server: page and endpoint in one application, bound to this machine alone, ended cleanly."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gendistill.serve.address import is_this_machine
from gendistill.serve.images_api import images_api
from gendistill.serve.studio import Studio
from gendistill.serve.web_page import CSS, THEME, page_of
from gendistill.serve.worker import Worker

LET_GO = 2  # seconds after the last image in which answers leave; pages that look on are cut off then


def application(studio: Studio, host: str) -> FastAPI:
    """The page at `/`, the endpoint at `/v1`, `/health`."""
    app = FastAPI(title="gendistill", docs_url=None, redoc_url=None, openapi_url=None)
    if is_this_machine(host):  # else a stranger's page could send its visitors here under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", host])

    @app.get("/health")
    async def health() -> dict[str, object]:
        return {"status": "ok", "waiting": studio.worker.waiting, "sampling": studio.worker.generating}

    app.include_router(images_api(studio))
    return gr.mount_gradio_app(
        app,
        page_of(studio),
        path="/",
        footer_links=[],
        theme=THEME,
        css=CSS,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="1kb",
    )


def run(studio: Studio, listening: socket.socket, started: Callable[[str], None] = lambda address: None) -> None:
    """Serve until the process is told to end: what is being sampled is finished, what waits is refused.

    Args:
        started: called with the address when it can be asked.
    """
    host, port = listening.getsockname()[:2]
    address = f"http://{'localhost' if host == '0.0.0.0' else host}:{port}"
    config = uvicorn.Config(application(studio, host), log_level="warning", timeout_graceful_shutdown=LET_GO, lifespan="on")
    _Server(config, studio.worker, lambda: started(address)).run([listening])


class _Server(uvicorn.Server):
    """Ends the sampling before the connections, so that nobody is left without an answer."""

    def __init__(self, config: uvicorn.Config, worker: Worker, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._worker, self._told = worker, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._told()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl-C and SIGTERM are how a server ends, no errors; a second Ctrl-C does not wait for those that look on."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._worker.end)
        await super().shutdown(sockets)
