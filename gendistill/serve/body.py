"""Request bodies, read within limits: JSON, or a form with the files of an image and a mask."""

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

MAX_JSON = 2**22  # bytes; more than the longest prompt that gets an error message about its length
MAX_FORM = 2**24  # bytes; enough for an image and a mask in the sizes that are sampled
MAX_PIXELS = 2**25  # of a received image: 100 MB decoded, and four times that during the compositing of transparency
MAX_IGNORED = 2**27  # bytes that are read and discarded before an error: a client that is still sending would not read it
FIELDS = 32
NUMBERS = ("n", "seed", "steps", "guidance_scale", "strength")


async def json_of(request: Request) -> dict[str, Any]:
    """The JSON object of a request. The content type must be JSON, as other web pages can send other types without permission.

    Raises:
        RefusedError: the body is not a JSON object, or too long.
    """
    _require_type(request, "application/json")
    try:
        fields = json.loads(await _body_of(request, MAX_JSON))
    except RefusedError:
        raise
    except (ValueError, RecursionError) as error:
        raise RefusedError("body", "the request is not JSON") from error
    if not isinstance(fields, dict):
        raise RefusedError("body", "the request is not a JSON object; expects an object with a prompt")
    return fields


async def form_of(request: Request) -> dict[str, Any]:
    """The fields of a form for `read_request`: numbers as numbers, `image` and `mask` as images.

    A `mask` is white where the file is transparent, as in OpenAI's API; without a `mask`, transparent pixels of `image` are the
    mask.

    Raises:
        RefusedError: the body is not a form or too long, another web page sent it, or a file is not an image.
    """
    _require_own_page(request)
    _require_type(request, "multipart/form-data")
    body = await _body_of(request, MAX_FORM)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=2, max_fields=FIELDS).parse()
    except MultiPartException as error:
        raise RefusedError("body", f"the request is not a form: {error.message}") from error
    try:
        return await asyncio.to_thread(_read, form)
    finally:
        await form.close()


async def _body_of(request: Request, max_bytes: int) -> bytes:
    """The body, of at most `max_bytes`; a longer body is read up to `MAX_IGNORED` and rejected."""
    body, length = bytearray(), 0
    async for part in request.stream():
        length += len(part)
        if length <= max_bytes:
            body += part
        elif length > MAX_IGNORED:
            break
    if length > max_bytes:
        raise RefusedError("body", f"the request is longer than {max_bytes // 2**20} MiB")
    return bytes(body)


def _require_type(request: Request, expected: str) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != expected:
        raise RefusedError("content-type", f"content-type: expects {expected}")


def _require_own_page(request: Request) -> None:
    """Raise RefusedError for requests of other web pages: a browser sends forms for any page, with the page's origin."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise RefusedError("origin", f"origin {origin[:60]!r}: expects a request of this page, or of a program")


def _read(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in form.items():
        name = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            fields[name] = _image(name, value)
        else:
            fields[name] = _number(value) if name in NUMBERS else value
    files = (form.get("mask"), form.get("image"), form.get("image[]"))
    file = next((value for value in files if isinstance(value, UploadFile)), None)
    if file is not None and (mask := _transparent(file)) is not None:
        fields["mask"] = mask
    elif "mask" in fields:
        raise RefusedError("mask", "mask: expects an image that is transparent in the area to generate")
    return fields


def _image(name: str, file: UploadFile) -> Image.Image:
    try:
        return decode_image(file.file, MAX_PIXELS)
    except ValueError as error:
        raise RefusedError(name, f"{name}: {error}") from error


def _transparent(file: UploadFile) -> Image.Image | None:
    file.file.seek(0)
    return decode_transparency(file.file)


def _number(text: str) -> Any:
    """The number in a text; the text itself if it is not a number, which `read_request` rejects with the field's name."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
