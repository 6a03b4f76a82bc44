"""Rows, gaps, stored figures and the page that shows them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel
from fresh_process import ran

from gendistill.evaluation import teacher_plans
from gendistill.evaluation.entries import open_entries
from gendistill.evaluation.evaluate import evaluate
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.evaluator import build_evaluator
from gendistill.evaluation.reporting.page import Gallery
from gendistill.evaluation.student_report import StudentComparison, best_rows, write_report
from gendistill.evaluation.teacher_plans import (
    SEARCHED,
    TEACHER_PLANS,
    TEACHER_STEPS,
    Gap,
    calls_a_step,
    gaps,
    load_rows,
    relative_call_cost,
    save_rows,
    stored_rows,
    teacher_scheduler,
)
from gendistill.metrics.features.feature_extractor import extract
from gendistill.metrics.pairs.fidelity import psnr
from gendistill.metrics.protocol import Evaluation, EvaluationProtocol
from gendistill.samplers import FewStepSampler

HELD_OUT = "assets/emoji/heldout-*.tar.gz"
PROTOCOL = EvaluationProtocol(
    metric="fd-emoji",
    extractor="emoji",
    weights_hash="0" * 16,
    resize="none",
    num_samples=10,
    reference="emoji",
    reference_count=100,
    seed=0,
    prompts="10 sampled",
    guidance_scale=1.0,
    num_inference_steps=4,
    versions={},
)


def row(distance, calls, *, steps=None, sampler="ddim", model="teacher", scale=1.0):
    protocol = dataclasses.replace(PROTOCOL, num_inference_steps=steps or calls, guidance_scale=scale)
    return Evaluation(model, sampler, calls, {"fd-emoji": distance, "clip_score": 40.0}, 0.01, protocol)


TEACHER = [
    row(30.0, 50, steps=50),
    row(20.0, 100, steps=50, scale=3.0),
    row(60.0, 4),
    row(50.0, 4, steps=2, scale=3.0, sampler="dpm-solver++"),
    row(80.0, 2),
    row(100.0, 1),
]


def test_the_gap_reaches_from_the_best_solver_within_as_many_calls_to_the_best_teacher():
    student = [row(26.0, 4, model="student"), row(50.0, 2, model="student"), row(100.0, 1, model="student")]
    measured = gaps(student, TEACHER)
    assert measured[0] == Gap(4, student=26.0, free=50.0, teacher=20.0)
    assert [gap.closed for gap in measured] == pytest.approx([0.8, 0.5, 0.0])


def test_a_better_row_within_fewer_calls_counts_for_more_calls_too():
    student = [row(26.0, 4, model="student")]
    assert gaps(student, [*TEACHER[:3], row(40.0, 2)])[0].free == 40.0


def test_every_plan_of_the_teacher_fits_its_number_of_calls():
    few = [(steps, scale) for _, steps, scale in TEACHER_PLANS if steps != TEACHER_STEPS]
    assert {steps * calls_a_step(scale) for steps, scale in few} == {8, 4, 2, 1}
    assert min(steps for steps, _ in few) == 1


def test_stored_rows_are_used_only_under_the_same_protocol(tmp_path):
    save_rows(TEACHER, tmp_path / "evaluation.json")
    assert stored_rows(tmp_path, row(1.0, 4, model="student")) == TEACHER
    other = dataclasses.replace(TEACHER[0], protocol=dataclasses.replace(PROTOCOL, num_samples=11))
    assert stored_rows(tmp_path, other) == []
    assert stored_rows(tmp_path / "nowhere", TEACHER[0]) == []


def test_the_report_is_one_file_that_loads_nothing(tmp_path):
    student = [row(26.0, 4, model="student")]
    gallery = Gallery("student <b>", torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ["a <script> prompt", "another"])
    write_report(tmp_path / "r.html", "title", StudentComparison(student, TEACHER, gaps(student, TEACHER)), [gallery])
    page = (tmp_path / "r.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert "<script>" not in page
    assert "0.80" in page


def test_the_table_shows_each_best_row_of_the_teacher_once():
    student = [row(26.0, calls, model="student") for calls in (4, 2, 1)]
    shown = best_rows(student, TEACHER)
    assert shown[0].scores["fd-emoji"] == 20.0
    assert len(shown) == len([r for n, r in enumerate(shown) if r not in shown[:n]])


def test_prompts_are_sampled_by_frequency_and_the_same_for_the_same_seed(evaluation_cache):
    options = {"num": 3000, "caption": "subcategory", "cache": str(evaluation_cache)}
    evaluator = build_evaluator(EvaluationConfig(HELD_OUT, **options))
    again = build_evaluator(EvaluationConfig(HELD_OUT, **options))
    assert (evaluator.prompts, evaluator.seeds) == (again.prompts, again.seeds)
    assert build_evaluator(EvaluationConfig(HELD_OUT, seed=1, **options)).prompts != evaluator.prompts
    assert evaluator.reference.statistics.count == 754
    stored = load_rows(Path("assets/tiny-sd/evaluation.json"))[0].protocol  # which an evaluation of 2,000 prompts finds
    assert stored.prompts == evaluator.prompt_source.replace("3000", "2000").replace("heldout", "train")
    assert stored.reference == evaluator.reference_name.replace("heldout", "train")
    assert evaluator.prompts.count("google emoji of person role") > 5 * evaluator.prompts.count("google emoji of mail")


def test_a_teacher_is_evaluated_from_the_command_line_and_the_same_twice(tiny_folder, evaluation_cache, tmp_path, monkeypatch):
    command = ["evaluate", str(tiny_folder), "--reference", HELD_OUT, "--caption", "subcategory", "--num", "4"]
    command += ["--cache", str(evaluation_cache)]
    done = ran(*command, "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["teacher"]
    assert len(rows) == len(TEACHER_PLANS)
    assert [r["network_calls"] for r in rows[:4]] == [50, 100, 100, 100]
    assert len(json.loads((tmp_path / "evaluation.json").read_text())) == len(rows)
    config = EvaluationConfig(HELD_OUT, caption="subcategory", num=4, out=tmp_path / "b", cache=str(tmp_path / "b"))
    monkeypatch.setattr(teacher_plans, "TEACHER_PLANS", TEACHER_PLANS[3:])  # once in 50 steps is enough
    again = evaluate(str(tiny_folder), config).teacher
    # A value that lies between two of the 256 levels of an image may be rounded either way in another process.
    assert [row.scores for row in again] == [pytest.approx(row["scores"], rel=1e-4) for row in rows[3:]]


def test_a_model_is_evaluated_in_half_precision(tiny_folder, evaluation_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_plans, "TEACHER_PLANS", TEACHER_PLANS[-1:])

    def evaluated(dtype):
        options = {"caption": "subcategory", "num": 4, "out": str(tmp_path), "cache": str(evaluation_cache)}
        return evaluate(str(tiny_folder), reference=HELD_OUT, dtype=dtype, **options).teacher[0]

    half, single = evaluated("bfloat16"), evaluated(None)
    assert (half.protocol.dtype, single.protocol.dtype) == ("bfloat16", "float32")
    assert "in bfloat16" in half.protocol.describe()
    assert half.scores != single.scores
    assert half.scores == pytest.approx(single.scores, rel=0.1)
    assert open_entries([str(tiny_folder)], [1], dtype="bfloat16")[0].samplers[1].dtype is torch.bfloat16
    with pytest.raises(ValueError, match="dtype half: expects one of float16, bfloat16, float32"):
        evaluated("half")
    with pytest.raises(ValueError, match="--dtype bfloat16: expects a diffusion model; assets/tiny-gan is a GAN"):
        evaluate("assets/tiny-gan", reference=HELD_OUT, dtype="bfloat16")


@pytest.fixture(scope="module")
def halved_comparison(halved_run, evaluation_cache):
    return evaluate(str(halved_run), EvaluationConfig(HELD_OUT, caption="subcategory", num=4, cache=str(evaluation_cache)))


def test_all_students_of_a_run_are_evaluated_at_several_guidance_scales(halved_run, halved_comparison):
    rows = [(row.model, row.network_calls, row.protocol.guidance_scale) for row in halved_comparison.student]
    assert rows == [("student-2", 2, 3.0), ("student-1", 1, 3.0)]
    moved = [(row.model, row.protocol.guidance_scale) for row in halved_comparison.slider]
    assert moved == [(name, scale) for name in ("student-2", "student-1") for scale in (1.0, 2.0)]
    assert [gap.network_calls for gap in halved_comparison.gaps] == [2, 1]
    stored = json.loads((halved_run / "evaluation.json").read_text())
    assert stored["slider"][0]["scores"] == halved_comparison.slider[0].scores
    page = (halved_run / "report.html").read_text()
    assert "numbers are guidance scales" in page
    assert "student-1" in page


def test_a_student_is_evaluated_in_the_precision_of_its_teachers_stored_figures(
    halved_run, tiny_folder, evaluation_cache, tmp_path, monkeypatch
):
    monkeypatch.setattr(teacher_plans, "TEACHER_PLANS", TEACHER_PLANS[:1])
    teacher = shutil.copytree(tiny_folder, tmp_path / "teacher")
    options = {"reference": HELD_OUT, "caption": "subcategory", "num": 4, "cache": str(evaluation_cache)}
    stored = evaluate(str(teacher), dtype="bfloat16", **options).teacher
    compared = evaluate(str(halved_run), teacher=str(teacher), steps=[1], out=str(tmp_path / "student"), **options)
    assert {row.protocol.dtype for row in compared.student} == {"bfloat16"}
    assert compared.teacher == stored


def test_fidelity_compares_with_the_teacher_at_the_same_guidance(halved_run, halved_comparison, tiny_folder, evaluation_cache):
    row = next(row for row in halved_comparison.slider if (row.model, row.protocol.guidance_scale) == ("student-2", 2.0))
    evaluator = build_evaluator(EvaluationConfig(HELD_OUT, caption="subcategory", num=4, cache=str(evaluation_cache)))
    teacher, student = (FewStepSampler.from_pretrained(folder) for folder in (tiny_folder, halved_run / "student-2"))
    teacher.pipeline.scheduler = teacher_scheduler("ddim", teacher.pipeline)
    pairs = evaluator.generate(student, 2, 2.0), evaluator.generate(teacher, TEACHER_STEPS, 2.0)
    cosine = torch.cosine_similarity(*(extract(evaluator.extractor, images) for images in pairs))
    assert row.scores["psnr"] == pytest.approx(psnr(*pairs).mean().item())
    assert row.scores["feature_cosine"] == pytest.approx(cosine.mean().item(), rel=1e-5)  # features of batches of other sizes


def test_steps_that_no_student_of_a_run_was_trained_for_are_refused(halved_run, evaluation_cache):
    with pytest.raises(ValueError, match=r"^steps \[3\]: the run has students of other step counts: student-2, student-1$"):
        evaluate(
            str(halved_run),
            EvaluationConfig(HELD_OUT, caption="subcategory", num=4, steps=[3], cache=str(evaluation_cache)),
        )


def test_a_searched_grid_does_not_affect_the_gap():
    student = [row(26.0, 4, model="student")]
    searched = row(27.0, 4, sampler=SEARCHED)
    assert gaps(student, [*TEACHER, searched]) == gaps(student, TEACHER)
    assert searched in best_rows(student, [*TEACHER, searched])


def test_the_gap_of_a_smaller_student_is_measured_at_equal_cost():
    student = [row(26.0, 4, model="student")]
    assert gaps(student, TEACHER, call_cost=0.5) == [Gap(4, student=26.0, free=80.0, teacher=20.0)]


def test_a_student_with_as_many_steps_as_its_teacher_is_reported_by_its_relative_distance(tmp_path):
    student = [row(25.0, 50, model="student")]
    assert gaps(student, TEACHER, call_cost=0.5) == []
    comparison = StudentComparison(student, TEACHER, call_cost=0.5)
    caption = comparison.table().caption
    assert caption.startswith("1.25× the teacher's fd-emoji, in 50 steps: student 25.00, teacher 20.00; a call of the student ")
    gallery = Gallery("student", torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a prompt"])
    write_report(tmp_path / "r.html", "title", comparison, [gallery])
    page = (tmp_path / "r.html").read_text()
    assert "1.25×" in page
    assert "0.50 of the teacher&#39;s multiply-accumulates" in page


def test_the_cost_of_a_call_is_its_multiply_accumulates():
    absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    full, half = (
        SimpleNamespace(
            pipeline=StableDiffusionPipeline(
                unet=tiny_unet(width), scheduler=DDIMScheduler(), requires_safety_checker=False, **absent
            )
        )
        for width in (16, 8)
    )
    pixels = UNet2DModel(
        8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
    )
    assert relative_call_cost(full, full) == 1.0
    assert 0.2 < relative_call_cost(half, full) < 0.5
    assert relative_call_cost(SimpleNamespace(pipeline=DDPMPipeline(pixels, DDIMScheduler())), full) == 1.0


def tiny_unet(width):
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=8,
    )
