"""The OpenAI-compatible endpoint: `/v1/images/generations`, `/v1/images/edits` and `/v1/models`."""

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

from gendistill.samplers.tasks import TaskError
from gendistill.serve.body import form_of, json_of
from gendistill.serve.image_request import RefusedError, read_request
from gendistill.serve.studio import Studio
from gendistill.serve.worker import BusyError, Generated

POLL_SECONDS = 0.5  # between two checks for a disconnected client


def images_api(studio: Studio) -> APIRouter:
    """Routes for the models of a studio.

    A request is JSON with `prompt` and optionally `model`, `n`, `size`, `seed`, `steps`, `guidance_scale`. The response has
    PNGs in base64 and their seeds under `data`, `seconds`, and `warnings`. Errors have the format of OpenAI's API: 400 with the
    field in `param`, 429 if the queue is full. A request with an initial image is a form, with additional fields `image`,
    `mask` and `strength`.
    """
    router = APIRouter(prefix="/v1")
    started = int(time.time())

    @router.get("/models")
    async def models() -> dict[str, Any]:
        entries = [{"id": name, "object": "model", "created": started, "owned_by": "gendistill"} for name in studio.offers]
        return {"object": "list", "data": entries}

    @router.post("/images/generations")
    async def generations(request: Request) -> JSONResponse:
        return await answer(request, json_of)

    @router.post("/images/edits")
    async def edits(request: Request) -> JSONResponse:
        return await answer(request, _edit_of)

    async def answer(request: Request, read: Callable[[Request], Awaitable[dict[str, Any]]]) -> JSONResponse:
        try:
            fields = await read(request)
            _require_supported(fields)
            image_request = await asyncio.to_thread(read_request, fields, studio.offers, studio.limits)
            generated = await _when_generated(studio.worker.submit(image_request), request)
        except RefusedError as error:
            return refusal(400, str(error), error.field)
        except TaskError as error:
            return refusal(400, str(error), "image")
        except BusyError as error:
            return refusal(429, str(error), headers={"Retry-After": "1"})
        except asyncio.CancelledError:
            raise
        except Exception as error:  # of the sampling: the client gets an error, and the server continues
            return refusal(500, f"sampling failed: {str(error).strip() or type(error).__name__}")
        images = await asyncio.to_thread(lambda: [png_of(image) for image in generated.images])
        seed = image_request.seed
        data = [{"b64_json": base64.b64encode(png).decode(), "seed": seed + number} for number, png in enumerate(images)]
        details = {"seconds": round(generated.seconds, 4), "warnings": studio.advice(image_request)}
        return JSONResponse({"created": int(time.time()), "data": data, **details})

    return router


def refusal(status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the form of OpenAI's API: status, sentence, and the field that is wrong."""
    kinds = {429: "rate_limit_error", 500: "server_error"}
    error = {"message": message, "type": kinds.get(status, "invalid_request_error"), "param": field, "code": None}
    return JSONResponse({"error": error}, status, headers)


def png_of(image: Tensor) -> bytes:
    """The PNG of an image uint8 (H, W, C)."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(2).numpy() if image.shape[2] == 1 else image.numpy()).save(file, "PNG")
    return file.getvalue()


async def _edit_of(request: Request) -> dict[str, Any]:
    fields = await form_of(request)
    if fields.get("image") is None:
        raise RefusedError("image", "image: expects an image file")
    return fields


def _require_supported(fields: dict[str, Any]) -> None:
    if (form := fields.get("response_format")) not in (None, "b64_json"):
        raise RefusedError("response_format", f"response_format {str(form)[:40]!r}: expects b64_json")
    if fields.get("stream") not in (None, False, "false"):
        raise RefusedError("stream", "stream: expects false; images are sent after sampling")


async def _when_generated(generating: Future[Generated], request: Request) -> Generated:
    """Wait for the images; cancel the request if the client disconnects."""
    waiting = asyncio.wrap_future(generating)
    try:
        while True:
            done, _ = await asyncio.wait([waiting], timeout=POLL_SECONDS)
            if done:
                return waiting.result()
            if await request.is_disconnected():
                raise BusyError("the client has disconnected")
    finally:
        generating.cancel()
