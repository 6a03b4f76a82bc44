"""The images endpoint that applications speak: OpenAI's `/v1/images/generations` and `/v1/images/edits`, the list of models."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from PIL import Image
from torch import Tensor

from gendistill.serve.body import form_of, json_of
from gendistill.serve.image_request import RefusedError, read_request
from gendistill.serve.studio import Studio
from gendistill.serve.worker import BusyError, Generated

STILL_THERE = 0.5  # seconds between two looks at whether somebody waits


def images_api(studio: Studio) -> APIRouter:
    """Routes for a studio's models.

    A request is JSON: `prompt`, and as far as wanted `model`, `n`, `size`, `seed`, `steps`, `guidance_scale`. The answer holds
    PNGs in base64 under `data`, the seed of each, `seconds`, and `warnings`. What is not sampled is answered as OpenAI
    answers it: 400 with the field in `param`, 429 where too many wait. To begin at an image it is a form, with `image`, `mask`
    and `strength` besides.
    """
    router = APIRouter(prefix="/v1")
    started = int(time.time())

    @router.get("/models")
    async def models() -> dict[str, Any]:
        known = [{"id": name, "object": "model", "created": started, "owned_by": "gendistill"} for name in studio.offers]
        return {"object": "list", "data": known}

    @router.post("/images/generations")
    async def generations(request: Request) -> JSONResponse:
        return await answer(request, json_of)

    @router.post("/images/edits")
    async def edits(request: Request) -> JSONResponse:
        return await answer(request, _edit_of)

    async def answer(request: Request, read: Callable[[Request], Awaitable[dict[str, Any]]]) -> JSONResponse:
        try:
            given = await read(request)
            _require_usual(given)
            asked = await asyncio.to_thread(read_request, given, studio.offers, studio.limits)
            generated = await _when_generated(studio.worker.submit(asked), request)
        except RefusedError as error:
            return refusal(400, str(error), error.field)
        except BusyError as error:
            return refusal(429, str(error), headers={"Retry-After": "1"})
        except asyncio.CancelledError:
            raise
        except Exception as error:  # of the sampling: who asked is told, and the server goes on
            return refusal(500, f"it could not be sampled: {str(error).strip() or type(error).__name__}")
        images = await asyncio.to_thread(lambda: [png_of(of) for of in generated.images])
        data = [{"b64_json": base64.b64encode(png).decode(), "seed": asked.seed + number} for number, png in enumerate(images)]
        told = {"seconds": round(generated.seconds, 4), "warnings": studio.advice(asked)}
        return JSONResponse({"created": int(time.time()), "data": data, **told})

    return router


def refusal(status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    kinds = {429: "rate_limit_error", 500: "server_error"}
    error = {"message": message, "type": kinds.get(status, "invalid_request_error"), "param": field, "code": None}
    return JSONResponse({"error": error}, status, headers)


def png_of(image: Tensor) -> bytes:
    """A PNG of uint8 (H, W, C)."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(2).numpy() if image.shape[2] == 1 else image.numpy()).save(file, "PNG")
    return file.getvalue()


async def _edit_of(request: Request) -> dict[str, Any]:
    given = await form_of(request)
    if given.get("image") is None:
        raise RefusedError("image", "image: expects the file of an image")
    return given


def _require_usual(given: dict[str, Any]) -> None:
    if (form := given.get("response_format")) not in (None, "b64_json"):
        raise RefusedError("response_format", f"response_format {str(form)[:40]!r}: expects b64_json; no image is kept here")
    if given.get("stream") not in (None, False, "false"):
        raise RefusedError("stream", "stream: expects false; images come when they are sampled")


async def _when_generated(generating: Future[Generated], request: Request) -> Generated:
    """What was sampled; given up where nobody waits for it any more."""
    waiting = asyncio.wrap_future(generating)
    try:
        while True:
            done, _ = await asyncio.wait([waiting], timeout=STILL_THERE)
            if done:
                return waiting.result()
            if await request.is_disconnected():
                raise BusyError("nobody waits any more")
    finally:
        generating.cancel()
