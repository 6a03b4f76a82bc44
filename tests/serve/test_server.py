"""`gendistill serve` in a process of its own: what applications, people in a browser and strangers get of it."""

import base64
import io
import json
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from fresh_process import gendistill
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from gendistill.samplers import FewStepSampler, StudentSpec, to_uint8
from gendistill.samplers.tasks import Task

TINY_SD, PROMPT = Path("assets/tiny-sd").resolve(), "google emoji of food fruit"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """tiny-sd as if it were its own student of 4 steps."""
    folder = tmp_path_factory.mktemp("serve") / "student"
    shutil.copytree(TINY_SD, folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    settings = {**scheduler, "timestep_spacing": "trailing"}
    spec = StudentSpec("consistency", str(TINY_SD), (4, 2, 1), "ddim", "DDIMScheduler", settings, "baked", 2.0)
    spec.scheduler().save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DDIMScheduler"]}))
    spec.save(folder)
    return folder


class Server:
    """`gendistill serve`, asked by its address."""

    def __init__(self, student, log, *given):
        log.touch()
        self.process = gendistill(["serve", student, "--port", "0", *given], log)
        while not (at := re.search(r"at (http://[\d.]+:\d+),", self.text)):
            assert not self.process.ended_within(0.1), self.text
        self.address = at[1]

    @property
    def text(self):
        return self.process.text

    @property
    def memory(self):
        """MiB that it holds now."""
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def ask(self, given, **headers):
        """The status and the answer to what is asked of the images endpoint."""
        body = given if isinstance(given, bytes) else json.dumps(given).encode()
        headers = {"content-type": "application/json", **headers}
        request = urllib.request.Request(f"{self.address}/v1/images/generations", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def end(self, how=signal.SIGTERM):
        self.process.signal(how)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def server(student, tmp_path_factory):
    made = Server(student, tmp_path_factory.mktemp("log") / "log.txt")
    yield made
    made.end()


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_an_application_that_speaks_openai_gets_the_images_that_the_sampler_samples(server, student):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["student", "teacher"]
    answer = client.images.generate(prompt=PROMPT, n=2, model="student", size="32x32", extra_body={"seed": 5})
    sampler = FewStepSampler.from_pretrained(student)
    wanted = to_uint8(next(iter(sampler.images([PROMPT] * 2, [5, 6]))))
    for image, ours in zip(answer.data, wanted, strict=True):
        assert np.abs(pixels(image.b64_json).astype(int) - ours.permute(1, 2, 0).numpy()).max() <= 1
    with pytest.raises(openai.BadRequestError, match="steps -1: expects a whole number from 1 to 100"):
        client.images.generate(prompt=PROMPT, extra_body={"steps": -1})


def png_file(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_an_application_edits_a_image_where_its_mask_is_transparent(server, student):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")
    begun = pixels(client.images.generate(prompt=PROMPT, extra_body={"seed": 5}).data[0].b64_json)
    mask = Image.new("RGBA", (32, 32), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    given = {"image": png_file(Image.fromarray(begun)), "prompt": "google emoji of animals", "n": 2}
    answer = client.images.edit(**given, mask=png_file(mask), extra_body={"seed": 9, "strength": 1.0})
    assert [of.seed for of in answer.data] == [9, 10]
    edited = pixels(answer.data[0].b64_json).astype(int)
    changed = np.abs(edited - begun).mean((0, 2))
    assert changed[:14].mean() > 3 * changed[18:].mean()  # what a decoder makes of latents reaches a little further

    task = Task(torch.from_numpy(begun).permute(2, 0, 1)[None] / 255, torch.ones(1, 1, 32, 32), 1.0)
    task.masks[..., 16:] = 0
    wanted = to_uint8(next(iter(FewStepSampler.from_pretrained(student).images([given["prompt"]], [9], task=task))))
    assert np.abs(edited - wanted[0].permute(1, 2, 0).numpy()).max() <= 1

    anew = client.images.edit(**given, extra_body={"seed": 9, "strength": 0.5})
    assert np.abs(pixels(anew.data[0].b64_json).astype(int) - edited).mean() > 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"image": b"no image"}, "image: image: cannot be decoded"),
        ({"image": png_file(Image.new("1", (6000, 6000)))}, "image: image: cannot be decoded (6000x6000 is more than"),
        ({"mask": png_file(Image.new("RGB", (8, 8)))}, "mask: expects an image that is transparent in the area to generate"),
        ({"extra_body": {"strength": "1e9"}}, "strength 1000000000.0: expects a number from 0 to 1"),
        ({"n": 10_000}, "n 10000: expects a whole number from 1 to 8"),
        (
            {"extra_headers": {"origin": "http://evil.example"}},
            "origin 'http://evil.example': expects a request of this page",
        ),
        ({"image": bytes(2**25)}, "the request is longer than 16 MiB"),
        ({"response_format": "url"}, "response_format 'url': expects b64_json"),
    ],
)
def test_an_edit_that_may_not_be_asked_for_is_one_sentence(server, given, sentence):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(**{"image": png_file(Image.new("RGB", (8, 8))), "prompt": "a", **given})
    assert refused.value.body["message"].startswith(sentence)
    assert server.ask({"prompt": "a"})[0] == 200


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"prompt": "x" * 2**20}, "prompt: 1,048,576 characters; expects at most 2,000"),
        ({"prompt": "x" * 2**23}, "the request is longer than 4 MiB"),
        ({"prompt": "a", "n": 10_000}, "n 10000: expects a whole number from 1 to 8"),
        ({"prompt": "a", "steps": -1}, "steps -1: expects a whole number from 1 to 100"),
        ({"prompt": "a", "model": "../../etc/passwd"}, "model '../../etc/passwd': expects student or teacher"),
        ({"prompt": "a", "size": "100000x100000"}, "size '100000x100000': expects WIDTHxHEIGHT, multiples of 8 up to 32"),
        ({"prompt": "a", "response_format": "url"}, "response_format 'url': expects b64_json"),
        ({"prompt": "a", "stream": True}, "stream: expects false"),
        (b"[" * 100_000, "the request is not JSON"),
        (b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", "the request is not JSON"),
        (b"\xff\xfe", "the request is not JSON"),
        ([1, 2], "the request is not a JSON object"),
    ],
)
def test_what_may_not_be_asked_is_one_sentence(server, given, sentence):
    status, told = server.ask(given)
    assert status == 400
    assert json.loads(told)["error"]["message"].startswith(sentence)
    assert len(told) < 400


def test_a_page_of_strangers_cannot_ask(server):
    assert server.ask({"prompt": "a"}, **{"content-type": "text/plain"})[0] == 400
    assert server.ask({"prompt": "a"}, host="evil.example")[0] == 400
    assert server.ask({"prompt": "a"}, host=server.address.removeprefix("http://"))[0] == 200


def test_200_requests_at_once_by_eight_lose_none_and_leave_memory_flat(server):
    def ask(number):
        status, answer = server.ask({"prompt": f"{PROMPT} {number}", "seed": number, "steps": 4})
        return status, answer["data"][0]["seed"], pixels(answer["data"][0]["b64_json"]).shape

    with ThreadPoolExecutor(8) as people:
        first = list(people.map(ask, range(100)))
        before = server.memory
        second = list(people.map(ask, range(100, 300)))
    assert first + second == [(200, number, (32, 32, 3)) for number in range(300)]
    assert server.memory - before < 32


@pytest.fixture(scope="module")
def browser():
    at = next(filter(None, map(shutil.which, BROWSERS)), None)
    if at is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}: `make browser`")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=at, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def page(server, browser):
    """The page as it is opened, which asks nobody else for anything."""
    opened = browser.new_page(viewport={"width": 1100, "height": 900})
    asked = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("dialog", lambda dialog: pytest.fail(f"a script of the prompt ran: {dialog.message}"))
    opened.goto(server.address)
    opened.locator("#prompt textarea").wait_for()
    yield opened
    opened.close()
    assert [url for url in asked if not url.startswith((server.address, "data:", "blob:"))] == []


def test_a_person_types_a_prompt_presses_the_button_and_sees_both_images_and_their_times(page, tmp_path):
    page.fill("#prompt textarea", PROMPT)
    page.fill("#seed input", "7")
    page.fill("#teacher-steps input", "10")
    page.click("#sample")
    for name in ("student", "teacher"):
        expect(page.locator(f"#{name}-image img")).to_have_count(1, timeout=60_000)
        page.wait_for_function(f"document.querySelector('#{name}-image img').naturalWidth == 32")
    expect(page.locator("#student-time textarea")).to_have_value(re.compile(r"^\d+\.\d\d s, 4 steps$"))
    expect(page.locator("#teacher-time textarea")).to_have_value(
        re.compile(r"^\d+\.\d\d s, 10 steps: [\d.]+ times the student's")
    )
    shown = [page.evaluate(f"document.querySelector('#{name}-image img').src") for name in ("student", "teacher")]
    assert shown[0] != shown[1]
    page.screenshot(path=tmp_path / "page.png")


@pytest.mark.parametrize(
    ("field", "typed", "sentence"),
    [
        ("#student-steps input", "-1", "steps -1: expects a whole number from 1 to 100"),
        ("#teacher-guidance input", "1e9", "guidance_scale 1000000000: expects a number from 0 to 30"),
        ("#prompt textarea", "x" * 2**20, "prompt: 1,048,576 characters; expects at most 2,000"),
    ],
)
def test_a_person_who_types_nonsense_reads_a_sentence(page, field, typed, sentence):
    page.fill("#prompt textarea", PROMPT)
    page.fill("#teacher-steps input", "1")
    page.fill(field, typed)
    page.click("#sample")
    expect(page.locator("#notice textarea")).to_have_value(re.compile(re.escape(sentence)), timeout=30_000)


def test_a_student_that_is_not_sampled_as_it_wants_says_so(page, server):
    page.fill("#prompt textarea", PROMPT)
    page.fill("#student-steps input", "3")
    page.fill("#teacher-steps input", "1")
    page.click("#sample")
    sentence = "steps 3: the student was made for 4, 2, 1; other step counts usually give worse images"
    expect(page.locator("#notice textarea")).to_have_value(sentence, timeout=30_000)
    assert server.ask({"prompt": PROMPT, "steps": 3})[1]["warnings"] == [sentence]
    assert server.ask({"prompt": PROMPT})[1]["warnings"] == []


def test_html_in_a_prompt_is_a_text(page):
    page.fill("#prompt textarea", "<img src=x onerror=alert(1)><script>alert(2)</script>")
    page.fill("#teacher-steps input", "1")
    page.click("#sample")
    expect(page.locator("#teacher-image img")).to_have_count(1, timeout=30_000)
    assert page.locator("img[src='x']").count() == 0


def test_the_end_finishes_what_is_sampled_and_leaves_at_once(student, tmp_path):
    server = Server(student, tmp_path / "log.txt", "--no-teacher", "--max-images", "16")
    with ThreadPoolExecutor(2) as people:
        generating = people.submit(server.ask, {"prompt": PROMPT, "steps": 60, "n": 4})
        while not generating.done() and json.load(urllib.request.urlopen(f"{server.address}/health"))["sampling"] == 0:
            time.sleep(0.01)
        started = time.monotonic()
        assert server.end(signal.SIGINT) == 0
        assert time.monotonic() - started < 20
        status, answer = generating.result()
    assert (status, len(answer["data"])) == (200, 4)
    assert "Traceback" not in server.text


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--teacher", "nowhere"], "error: model nowhere does not exist"),
        (["--teacher", "a", "--no-teacher"], "error: --teacher and --no-teacher: expects one of them"),
        (["--host", "203.0.113.1"], "error: --host 203.0.113.1"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(student, given, sentence, tmp_path):
    process = gendistill(["serve", student, *given], tmp_path / "said.txt")
    assert process.wait(120) == 2
    assert sentence in process.text
    assert "Traceback" not in process.text


def test_a_port_that_is_taken_is_one_sentence(server, student, tmp_path):
    port = server.address.rpartition(":")[2]
    process = gendistill(["serve", student, "--no-teacher", "--port", port], tmp_path / "said.txt")
    assert process.wait(120) == 2
    assert f"--host 127.0.0.1 --port {port}: address already in use" in process.text
    assert server.ask({"prompt": "a"})[0] == 200
