"""The body of a request, read within limits: JSON, or a form where it has files in it, an image and a mask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gendistill.data.images import decode_image, decode_transparency
from gendistill.serve.image_request import RefusedError

MAX_JSON = 2**22  # bytes; the longest prompt that is answered in a sentence of its own is shorter
MAX_FORM = 2**24  # bytes; no client of an image sends more for the sizes that are sampled
MAX_PIXELS = 2**25  # of an image that is sent: 100 MB once decoded, and four times that while it loses its transparency
MAX_IGNORED = 2**27  # bytes that are read and let go of before a refusal, which a client that still sends would not read
FIELDS = 32
NUMBERS = ("n", "seed", "steps", "guidance_scale", "strength")


async def json_of(request: Request) -> dict[str, Any]:
    """The object of a request: of its own type alone, since a page of strangers may send any other without asking.

    Raises:
        RefusedError: it is none, or too long.
    """
    _require_type(request, "application/json")
    try:
        given = json.loads(await _body_of(request, MAX_JSON))
    except RefusedError:
        raise
    except (ValueError, RecursionError) as error:
        raise RefusedError("body", "the request is not JSON") from error
    if not isinstance(given, dict):
        raise RefusedError("body", "the request is not a JSON object; expects one with a prompt")
    return given


async def form_of(request: Request) -> dict[str, Any]:
    """The fields of a form as `read_request` takes them: numbers as numbers, `image` and `mask` as images.

    A `mask` is white where the file is transparent, as OpenAI means it; that of `image` itself where no mask is sent and some
    of it is transparent.

    Raises:
        RefusedError: it is no form, too long, from a page of strangers, or a file is no image.
    """
    _require_own_page(request)
    _require_type(request, "multipart/form-data")
    body = await _body_of(request, MAX_FORM)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=2, max_fields=FIELDS).parse()
    except MultiPartException as error:
        raise RefusedError("body", f"the request is no form: {error.message}") from error
    try:
        return await asyncio.to_thread(_read, form)
    finally:
        await form.close()


async def _body_of(request: Request, most: int) -> bytes:
    """At most so many bytes; what is longer is read on before it is refused, as far as `MAX_IGNORED`."""
    body, length = bytearray(), 0
    async for part in request.stream():
        length += len(part)
        if length <= most:
            body += part
        elif length > MAX_IGNORED:
            break
    if length > most:
        raise RefusedError("body", f"the request is longer than {most // 2**20} MiB")
    return bytes(body)


def _require_type(request: Request, wanted: str) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != wanted:
        raise RefusedError("content-type", f"content-type: expects {wanted}")


def _require_own_page(request: Request) -> None:
    """A browser sends forms for any page without asking, but tells which one."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise RefusedError("origin", f"origin {origin[:60]!r}: expects requests of its own page, and of programs")


def _read(form: FormData) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in form.items():
        name = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            given[name] = _image(name, value)
        else:
            given[name] = _number(value) if name in NUMBERS else value
    file = next((of for of in (form.get("mask"), form.get("image"), form.get("image[]")) if isinstance(of, UploadFile)), None)
    if file is not None and (mask := _transparent(file)) is not None:
        given["mask"] = mask
    elif "mask" in given:
        raise RefusedError("mask", "mask: expects an image that is transparent where it is generated anew")
    return given


def _image(name: str, file: UploadFile) -> Image.Image:
    try:
        return decode_image(file.file, MAX_PIXELS)
    except ValueError as error:
        raise RefusedError(name, f"{name}: {error}") from error


def _transparent(file: UploadFile) -> Image.Image | None:
    file.file.seek(0)
    return decode_transparency(file.file)


def _number(text: str) -> Any:
    """What a text says; the text itself where it says no number, which is refused with its name."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
