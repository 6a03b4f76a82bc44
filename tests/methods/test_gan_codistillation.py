import dataclasses
import json
import math

import pytest
import torch
from tiny_gans import BATCH, step_of, tiny_gan, tiny_gan_trainer, tiny_method, tiny_pictures, tiny_translator

from gendistill.data.gan_batches import NoData
from gendistill.gan.architectures.resnet import ResNetGenerator
from gendistill.losses.adversarial import r1_penalty
from gendistill.losses.logits import bernoulli_kd, kd, mse_logits
from gendistill.losses.pixel import l1
from gendistill.methods.gan_config import CodistillationConfig
from gendistill.methods.gan_distillation_loss import GanDistillationLoss, GeneratorOutput
from gendistill.methods.gan_start import start_student
from gendistill.networks.pruning.compress_config import CompressConfig
from gendistill.training.state import Validation

# Nothing but the adversarial loss, and then what a test adds.
BARE = {
    "output": {"l1": 0, "perceptual": 0},
    "features": {"hints": 0},
    "distribution": {"patches": 0, "real_patches": 0},
    "discriminator": {"match": 0, "augment": []},
}
EVERYTHING = {
    "output": {"l1": 1, "l2": 1, "multiscale": 1, "perceptual": 1},
    "features": {"hints": 1, "attention": 1, "gram": 1},
    "relations": {"distance": 1, "angle": 1, "similarity": 1, "correlation": 1, "contrastive": 1},
    "distribution": {"patches": 1, "real_patches": 1},
    "discriminator": {"match": 0.1, "r1": 0.1, "gradient_penalty": 0.1, "penalty_every": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_pictures(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def own_class(tmp_path):
    """A start_student that needs no pruning, for those that ask for a second one."""
    file = tmp_path / "student.json"
    file.write_text(json.dumps({"latent_dim": 8, "num_classes": 3, "channels": [8, 8, 8], "class_dim": 4}))
    return {"compress.student": f"{ResNetGenerator.__module__}:ResNetGenerator", "compress.student_config": str(file)}


def calls(network):
    """What a network is called with and what it gives, call after call."""
    seen = []
    network.register_forward_hook(lambda _, inputs, output: seen.append((*(x.detach().clone() for x in inputs), output)))
    return seen


def judge_of(method, pair=0):
    return method.pairs[pair].unwrapped_discriminator.network


def state(network):
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def logs_of(updates):
    return {name: float(value) for update in updates for name, value in update.logs.items()}


# ---- optimizer steps and gradients


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["discriminator", "student"]),
        ({"adversarial": 0}, ["student"]),
        ({"discriminator.steps": 3}, ["discriminator"] * 3 + ["student"]),
        ({"peer": "teacher"}, ["discriminator", "teacher_discriminator", "student", "teacher"]),
        ({"peer": "student"}, ["discriminator", "peer_discriminator", "student", "peer"]),
        ({"peer": "student", "adversarial": 0}, ["student", "peer"]),
    ],
)
def test_discriminators_step_before_generators(settings, names, data, own_class):
    method = tiny_method(data=data, more=own_class, **settings)
    assert [update.optimizers[0] for update in step_of(method, data)] == names
    assert list(method.trained_parameters()) == list(method.trained_modules())
    assert set(method.trained_parameters()) == set(names)


@pytest.mark.parametrize("peer", ["none", "teacher", "student"])
def test_an_update_leaves_a_gradient_in_its_own_network_alone(peer, data, own_class):
    settings = {**EVERYTHING, "peer": peer, "output.perceptual_network": "discriminator"}
    gan = tiny_gan()
    method = tiny_method(gan, data, more=own_class, **settings)

    def learn(update):
        update.loss.backward()
        for name, parameters in method.trained_parameters().items():
            reached = [parameter.grad is not None and bool((parameter.grad != 0).any()) for parameter in parameters.values()]
            assert any(reached) == (name == update.optimizers[0]), name
        for module in method.trained_modules().values():
            module.zero_grad()

    step_of(method, data, learn=learn)
    frozen = [gan.discriminator, method.distillation_loss.perception.network]
    frozen += [] if peer == "teacher" else [gan.generator.network, method.teacher_discriminator.network]
    assert all(parameter.grad is None for network in frozen for parameter in network.parameters())
    assert all(not parameter.requires_grad for parameter in method.distillation_loss.perception.network.parameters())


def test_every_parameter_of_both_networks_learns(data):
    method = tiny_method(data=data)

    def learn(update):
        update.loss.backward()
        for name, parameter in method.trained_parameters()[update.optimizers[0]].items():
            assert parameter.grad is not None, name

    step_of(method, data, learn=learn)


def test_the_teacher_never_changes(data, tmp_path):
    gan = tiny_gan()
    method = tiny_method(gan, data, **EVERYTHING)
    theirs = (gan.generator.network, gan.discriminator, method.teacher_discriminator.network)
    before = [state(network) for network in theirs]
    ours = [state(module) for module in method.trained_modules().values()]
    tiny_gan_trainer(method, data, tmp_path, max_steps=3).train()
    for network, as_it_was in zip(theirs, before, strict=True):
        assert_same(as_it_was, state(network))
    for module, as_it_was in zip(method.trained_modules().values(), ours, strict=True):
        assert any(not torch.equal(tensor, as_it_was[name]) for name, tensor in state(module).items())


def test_the_discriminator_starts_as_the_teachers_or_fresh():
    gan = tiny_gan()
    assert_same(state(judge_of(tiny_method(gan))), state(gan.discriminator))
    fresh = tiny_method(gan, discriminator__inherit=False)
    assert state(judge_of(fresh)).keys() != state(gan.discriminator).keys()
    assert fresh.teacher_discriminator is not None
    alone = tiny_method(tiny_gan(discriminator=False))
    assert alone.teacher_discriminator is None
    assert "discriminator_match" not in logs_of(step_of(alone))


# ---- real images


def seen_as_real(method, gan, data=None):
    """Images of a step: those that the discriminator is told are real, and the teacher's."""
    evaluated, generated = calls(judge_of(method)), calls(gan.generator.network)
    step_of(method, data)
    return evaluated[0][0], generated[0][-1]


def of_step_0(data):
    return data.batch(data.rows_of_step(5, 0, BATCH), None).real


def test_without_data_the_teachers_images_of_the_same_noise_are_real():
    gan = tiny_gan()
    real, theirs = seen_as_real(tiny_method(gan, **BARE), gan)
    assert torch.equal(real, theirs)


def test_with_data_the_images_of_the_data_are(data):
    gan = tiny_gan()
    real, _ = seen_as_real(tiny_method(gan, data, **BARE), gan, data)
    assert torch.equal(real, of_step_0(data))


def test_both_takes_half_of_each(data):
    gan = tiny_gan()
    real, theirs = seen_as_real(tiny_method(gan, data, **BARE, **{"discriminator.real": "both"}), gan, data)
    assert torch.equal(real[::2], of_step_0(data)[::2])
    assert torch.equal(real[1::2], theirs[1::2])


def test_teacher_takes_its_images_though_there_are_data(data):
    gan = tiny_gan()
    real, theirs = seen_as_real(tiny_method(gan, data, **BARE, **{"discriminator.real": "teacher"}), gan, data)
    assert torch.equal(real, theirs)


def test_what_there_is_no_data_for_is_refused():
    with pytest.raises(ValueError, match=r"gan\.discriminator\.real both: expects data\.path; without data the teacher's"):
        tiny_method(discriminator__real="both")
    with pytest.raises(
        ValueError, match=r"gan\.peer teacher: trains the teacher further; expects data\.path, and gan\.adversarial"
    ):
        tiny_method(peer="teacher")


def test_classes_come_as_often_as_in_the_data(data):
    gan = tiny_gan()
    method = tiny_method(gan, data, **BARE)
    generated, evaluated = calls(gan.generator.network), calls(judge_of(method))
    for step in range(5):  # 40 of 20 rows
        step_of(method, data, step)
    assert torch.cat([labels for _, labels, _ in generated]).bincount().tolist() == [24, 8, 8]
    assert torch.equal(evaluated[0][1], generated[0][1])


def test_without_data_all_classes_are_as_likely():
    gan = tiny_gan()
    method = tiny_method(gan, adversarial=0, **BARE)
    generated = calls(gan.generator.network)
    step_of(method, batch=300)
    counts = generated[0][1].bincount(minlength=3)
    assert ((counts - 100).abs() < 5 * math.sqrt(300 * 2 / 9)).all()


def test_further_steps_of_the_discriminator_see_other_noise_of_the_same_classes():
    method = tiny_method(**BARE, **{"discriminator.steps": 2})
    evaluated, generated = calls(judge_of(method)), calls(method.pairs[0].network.network)
    step_of(method)
    (real, _), (fake, labels), (again, _), (other, of_other) = [call[:2] for call in evaluated[:4]]
    assert torch.equal(real, again)
    assert not torch.equal(fake, other)
    assert torch.equal(other, generated[1][2].detach())
    for seen in (of_other, generated[0][1], generated[1][1]):
        assert torch.equal(labels, seen)


# ---- loss terms


def test_the_loss_is_the_sum_of_its_terms_each_by_its_weight_of_the_step(data):
    weights = {"adversarial": {0: 0, 4: 1}, "output.l1": {0: 2, 4: 0}, "output.l2": 0.5, "features.hints": {2: 0, 3: 3}}
    method = tiny_method(data=data, **BARE, **weights)
    for step, expected in {
        0: {"l1": 2, "l2": 0.5},
        1: {"adversarial": 0.25, "l1": 1.5, "l2": 0.5},
        3: {"adversarial": 0.75, "l1": 0.5, "l2": 0.5, "hints": 3},
        4: {"adversarial": 1, "l2": 0.5, "hints": 3},
        9: {"adversarial": 1, "l2": 0.5, "hints": 3},
    }.items():
        update = step_of(method, data, step)[-1]
        assert update.logs.keys() == {"loss", *expected}
        total = sum(weight * update.logs[name] for name, weight in expected.items())
        torch.testing.assert_close(update.loss.detach(), total)
        torch.testing.assert_close(update.logs["loss"], total)


def test_every_loss_at_once_trains(data, tmp_path):
    method = tiny_method(data=data, **EVERYTHING)
    tiny_gan_trainer(method, data, tmp_path, max_steps=3).train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3]
    terms = {name for family in ("output", "features", "relations", "distribution") for name in EVERYTHING[family]} | {
        "adversarial"
    }
    of_discriminator = {"discriminator_loss", "discriminator_match", "discriminator_accuracy"}
    for line in losses:
        assert terms | of_discriminator <= line.keys()
        assert all(math.isfinite(value) for value in line.values())


def test_the_student_comes_to_generate_what_its_teacher_generates():
    patches = {"patches": 1, "real_patches": 0}
    method = tiny_method(adversarial=0, output={"multiscale": 1, "perceptual": 0}, distribution=patches)
    optimizer = torch.optim.Adam(method.trained_parameters()["student"].values(), 5e-3)
    losses = []

    def learn(update):
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
        losses.append(logs_of([update]))

    for _ in range(40):
        step_of(method, learn=learn)  # the same noise each time
    assert losses[0].keys() == {"loss", "l1", "multiscale", "hints", "patches"}
    for name in losses[0]:
        assert losses[-1][name] < 0.8 * losses[0][name], name


def test_patches_are_those_of_the_same_noise_and_of_any_real_image(generator):
    teachers, real = (torch.rand(4, 3, 16, 16, generator=generator) for _ in range(2))
    distillation_loss = GanDistillationLoss(
        CodistillationConfig(output={"l1": 0}, distribution={"patches": 1, "real_patches": 1}), None
    )

    def told(images):
        targets = distillation_loss.targets(GeneratorOutput(teachers), real, None, step=7)
        return {
            name: float(loss) for name, _, loss in distillation_loss.terms(GeneratorOutput(images), targets, [], None, step=7)
        }

    assert told(teachers)["patches"] == 0 < told(teachers)["real_patches"]
    assert told(teachers.flip(0))["patches"] > 0.01
    assert told(real.flip(0))["real_patches"] < 1e-6 < told(real.flip(0))["patches"]
    assert told((real * 0.9 + 0.05).flip(0))["real_patches"] > 1e-3


def test_without_a_discriminator_of_the_teacher_the_perceptual_loss_is_ignored_with_a_warning(caplog):
    method = tiny_method(
        tiny_gan(discriminator=False), output={"l1": 1, "perceptual": 1, "perceptual_network": "discriminator"}
    )
    assert "perceptual" not in logs_of(step_of(method))
    assert "gan.output.perceptual is ignored" in caplog.text


# ---- the discriminator


def test_its_logits_are_matched_with_those_of_the_teachers(data):
    method = tiny_method(data=data, **BARE, **{"discriminator.match": 0.5, "discriminator.inherit": False})
    ours, theirs = calls(judge_of(method)), calls(method.teacher_discriminator.network)
    update = step_of(method, data)[0]
    assert [torch.equal(one[0], other[0]) for one, other in zip(ours[:2], theirs, strict=True)] == [True, True]
    logits, target_logits = (torch.cat([call[-1].flatten() for call in of[:2]]) for of in (ours, theirs))
    matched = mse_logits(logits, target_logits)
    torch.testing.assert_close(update.logs["discriminator_match"], matched.detach())
    torch.testing.assert_close(update.loss, update.logs["discriminator_loss"] + 0.5 * matched)


@pytest.mark.parametrize(("step", "temperature"), [(0, 4.0), (5, 2.5), (20, 1.0)])
def test_bernoulli_matching_anneals_its_temperature(step, temperature):
    settings = {"match": 1, "match_loss": "bernoulli", "temperature": {0: 4, 10: 1}, "inherit": False, "augment": []}
    method = tiny_method(**{**BARE, "discriminator": settings})
    ours, theirs = calls(judge_of(method)), calls(method.teacher_discriminator.network)
    update = step_of(method, step=step)[0]
    logits, target_logits = (torch.cat([call[-1].flatten() for call in of[:2]]) for of in (ours, theirs))
    torch.testing.assert_close(update.logs["discriminator_match"], bernoulli_kd(logits, target_logits, temperature).detach())


@pytest.mark.parametrize("penalty", ["r1", "gradient_penalty"])
def test_a_penalty_counts_every_so_many_steps_and_so_many_times(penalty, data):
    losses = {}
    for weight in (0.0, 0.5):
        method = tiny_method(data=data, **BARE, **{f"discriminator.{penalty}": weight, "discriminator.penalty_every": 3})
        judge_of(method).eval()  # else each call brings its spectral norms nearer
        losses[weight] = [step_of(method, data, step)[0].loss.item() for step in range(7)]
    more = [other - one for one, other in zip(losses[0.0], losses[0.5], strict=True)]
    assert [abs(extra) > 1e-6 for extra in more] == [True, False, False, True, False, False, True]
    if penalty == "r1":
        batch = data.batch(data.rows_of_step(5, 0, BATCH), None)
        expected = 3 * 0.5 * r1_penalty(lambda x: method.pairs[0].unwrapped_discriminator(x, batch.labels), batch.real)
        assert more[0] == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("inherit", [True, False])
def test_patch_discriminators_train_and_match(inherit, tmp_path):
    gan, data = tiny_translator(), tiny_pictures(tmp_path / "cache", tiny_translator().generator.spec)
    method = tiny_method(gan, data, **{"discriminator.inherit": inherit, "discriminator.match": 0.1})
    evaluated = calls(judge_of(method))
    tiny_gan_trainer(method, data, tmp_path / "run", max_steps=2).train()
    assert evaluated[0][-1].ndim == 4
    (first, _) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() if "loss" in line]
    assert {"adversarial", "discriminator_match", "discriminator_accuracy", "hints"} <= first.keys()
    assert all(math.isfinite(value) for value in first.values())


def test_the_real_images_of_an_image_generator_are_its_teachers(tmp_path):
    gan = tiny_translator()
    data = tiny_pictures(tmp_path, gan.generator.spec)
    real, theirs = seen_as_real(tiny_method(gan, data, **BARE), gan, data)
    assert torch.equal(real, theirs)


# ---- peers


def test_a_teacher_that_is_trained_further_changes_and_its_current_logits_are_matched(data, tmp_path):
    gan = tiny_gan()
    method = tiny_method(gan, data, peer="teacher", **BARE, **{"discriminator.match": 1})
    before = state(gan.generator.network)
    tiny_gan_trainer(method, data, tmp_path, max_steps=2).train()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in state(gan.generator.network).items())
    assert method.teacher_discriminator.network is judge_of(method, 1)
    assert logs_of(step_of(method, data))["discriminator_match"] > 0
    judge_of(method, 1).load_state_dict(state(judge_of(method)))
    assert logs_of(step_of(method, data))["discriminator_match"] == 0


def test_a_teacher_that_is_trained_further_has_no_distillation_loss(data):
    method = tiny_method(data=data, peer="teacher")
    of_teacher = step_of(method, data)[-1]
    assert of_teacher.logs.keys() == {"teacher_loss", "teacher_adversarial"}


def test_two_students_are_held_against_the_teacher_and_each_other(own_class):
    gan = tiny_gan()
    method = tiny_method(gan, more=own_class, peer="student", **BARE, **{"output.l1": 1})
    generated = [calls(network) for network in (gan.generator.network, *(pair.network.network for pair in method.pairs))]
    logs = logs_of(step_of(method))
    teacher, student, peer = (of[0][-1].detach() for of in generated)
    assert not torch.equal(student, peer)
    assert logs["l1"] == pytest.approx(((l1(student, teacher) + l1(student, peer)) / 2).item(), rel=1e-5)
    assert logs["peer_l1"] == pytest.approx(((l1(peer, teacher) + l1(peer, student)) / 2).item(), rel=1e-5)


def test_a_teacher_that_is_trained_further_keeps_its_discriminator_though_the_students_is_random(data):
    gan = tiny_gan()
    method = tiny_method(gan, data, peer="teacher", discriminator__inherit=False)
    assert_same(state(judge_of(method, 1)), state(gan.discriminator))
    assert state(judge_of(method, 0)).keys() != state(gan.discriminator).keys()


def test_a_second_student_that_was_pruned_is_as_large_and_shows_the_same_layers():
    gan = tiny_gan()
    start = start_student(gan, CompressConfig(factor=2), NoData(), 0)
    method = tiny_method(gan, start=start, more={"compress.factor": 2}, peer="student")
    one, other = (state(pair.network.network) for pair in method.pairs)
    assert {name: of.shape for name, of in one.items()} == {name: of.shape for name, of in other.items()}
    assert not torch.equal(one["out.weight"], other["out.weight"])
    assert {"hints", "peer_hints"} <= logs_of(step_of(method)).keys()


def test_two_students_train(own_class, tmp_path):
    method = tiny_method(more=own_class, peer="student")
    before = {name: state(module) for name, module in method.trained_modules().items()}
    tiny_gan_trainer(method, None, tmp_path, max_steps=2).train()
    for name, module in method.trained_modules().items():
        assert any(not torch.equal(tensor, before[name][at]) for at, tensor in state(module).items()), name


# ---- the average


def test_the_average_follows_weights_and_running_statistics_and_warms_up():
    method = tiny_method(ema_decay=0.5, **BARE)
    networks = method.networks
    learning, average = networks.student.network, networks.average.network
    for of in (learning, average):
        for tensor in of.state_dict().values():
            tensor.fill_(1)
    expected = 1.0
    for step, value in enumerate((4.0, -2.0, 7.0, 3.0, 5.0, -1.0, 0.5, 2.0, 6.0, 1.0), 1):
        for tensor in learning.state_dict().values():
            tensor.fill_(value)
        method.after_step(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert decay == 0.5
    for name, tensor in average.state_dict().items():
        whole = not tensor.is_floating_point()
        torch.testing.assert_close(tensor, torch.full_like(tensor, 1 if whole else expected), msg=name)
    assert any("running_var" in name for name in average.state_dict())


def test_the_average_neither_learns_nor_shares_with_the_student(data, tmp_path):
    method = tiny_method(data=data)
    tiny_gan_trainer(method, data, tmp_path, max_steps=2).train()
    average = method.networks.average.network
    assert not average.training
    assert all(not parameter.requires_grad for parameter in average.parameters())
    assert average.state_dict().keys() == method.networks.student.network.state_dict().keys()
    assert all("regressor" not in name for name in method.networks.averaged)


# ---- collapse and saturation


def test_a_collapsed_student_ends_training_with_a_reason_of_one_sentence():
    method = tiny_method(collapse_diversity=0.5)
    for diversity in (0.3, 0.45):
        method.report_diversity(diversity)
        assert method.stop_reason({}) is None, "the diversity still grows"
    method.report_diversity(0.8)
    assert method.stop_reason({}) is None
    method.report_diversity(0.4)
    reason = method.stop_reason({"loss": 1.0})
    assert reason.startswith("the student collapses, its images are 0.40 times as diverse as the teacher's and were 0.80")
    assert "gan.collapse_diversity 0.5" in reason
    assert "\n" not in reason


def test_a_saturated_discriminator_ends_training_after_30_logs():
    method = tiny_method(collapse_saturation=0.9)
    for _ in range(29):
        assert method.stop_reason({"discriminator_accuracy": 0.95}) is None
    assert "the discriminator is saturated, its accuracy is 95.0% or more for 30 logs" in method.stop_reason(
        {"discriminator_accuracy": 0.97}
    )
    assert method.stop_reason({"discriminator_accuracy": 0.5}) is None
    assert tiny_method(collapse_saturation=1).stop_reason({"discriminator_accuracy": 1.0}) is None


def test_diversity_and_accuracy_survive_a_resume():
    first = tiny_method(collapse_saturation=0.9)
    first.report_diversity(0.8)
    for _ in range(29):
        first.stop_reason({"discriminator_accuracy": 0.95})
    saved = json.loads(json.dumps(first.state_dict()))
    second = tiny_method(collapse_saturation=0.9)
    second.load_state_dict(saved)
    assert "saturated" in second.stop_reason({"discriminator_accuracy": 0.95})
    second.report_diversity(0.4)
    assert "collapses" in second.stop_reason({})


def test_watching_can_be_switched_off():
    method = tiny_method(collapse_diversity=0)
    method.report_diversity(0.9)
    method.report_diversity(0.0)
    assert method.stop_reason({}) is None


# ---- batches in pieces


def test_a_batch_in_pieces_gives_the_same_gradients(tmp_path):
    """Without batch norms and the patches of all images of a batch, which pieces change."""
    gan = tiny_translator()
    data, moments = tiny_pictures(tmp_path / "cache", gan.generator.spec), []
    for pieces in (1, 4):
        method = tiny_method(
            gan, data, **{"features.hints": 0, "discriminator.match": 0.1, "distribution": {"patches": 1, "real_patches": 0}}
        )
        run = tiny_gan_trainer(
            method, data, tmp_path / str(pieces), max_steps=1, gradient_accumulation_steps=pieces, learning_rate=1e-7
        )
        run.train()
        held = run.checkpoints.load_last().optimizers
        moments.append({name: tensor for name, tensor in held.items() if name.endswith(".exp_avg")})
    assert moments[0].keys() == moments[1].keys()
    for whose in ("student.", "discriminator."):
        one, other = (torch.cat([of[name].flatten() for name in of if name.startswith(whose)]) for of in moments)
        assert one.norm() > 0
        assert (one - other).norm() < 1e-3 * one.norm()


def test_it_trains_in_pieces_with_batch_norms_too(data, tmp_path):
    run = tiny_gan_trainer(tiny_method(data=data), data, tmp_path, max_steps=2, gradient_accumulation_steps=2)
    run.validate = lambda step: Validation(-float(step), {})
    assert run.train().best_step == 2


class WithClassHead(torch.nn.Module):
    """A discriminator as in AC-GANs: a logit, and logits of the classes."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 4, 3)
        self.real, self.kind = torch.nn.Linear(4, 1), torch.nn.Linear(4, 3)

    def forward(self, x):
        features = self.features(x).mean((2, 3))
        return self.real(features), self.kind(features)


def test_heads_of_classes_are_matched_by_their_softened_distributions():
    torch.manual_seed(0)
    gan = dataclasses.replace(tiny_gan(), discriminator=WithClassHead(), discriminator_source=None)
    method = tiny_method(
        gan, discriminator__inherit=True, discriminator__match=1, discriminator__temperature=4, discriminator__augment=[]
    )
    ours = method.pairs[0].unwrapped_discriminator.network
    torch.nn.init.normal_(ours.kind.weight)
    torch.nn.init.normal_(ours.real.weight)
    seen = []
    ours.register_forward_hook(lambda _, given, output: seen.append((given[0], output[1].detach())))
    update = step_of(method)[0]
    theirs = method.teacher_discriminator.network
    expected = [kd(classes, theirs(images)[1], 4.0) for images, classes in seen[:2]]
    torch.testing.assert_close(update.logs["discriminator_match"], torch.stack(expected).mean())
    assert update.logs["discriminator_match"] > 0
