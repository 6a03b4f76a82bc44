import json
import logging
import math
import socket
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gendistill.metrics.cost import measured_memory as memory
from gendistill.metrics.cost.components import (
    REST,
    Component,
    charged,
    flops_by_component,
    parameters_by_dtype,
    seconds_by_component,
)
from gendistill.metrics.cost.efficiency import images_generated, measure, time_batch
from gendistill.metrics.cost.energy import measure_energy
from gendistill.metrics.cost.measured_memory import available_memory, peak_memory, ran_out

CPU = torch.device("cpu")
MEBI = 2**20


class Generator(nn.Module):
    """A model with an encoder, a network that is called in every step, and a decoder that is called by a method."""

    def __init__(self, steps=3, guided=False):
        super().__init__()
        self.encoder, self.network, self.decoder = nn.Linear(8, 16), nn.Conv2d(4, 4, 3, padding=1), Decoder()
        self.steps, self.guided = steps, guided

    @property
    def components(self):
        return {
            "encoder": Component(self.encoder),
            "network": Component(self.network),
            "decoder": Component(self.decoder, "decode"),
        }

    @torch.no_grad()
    def __call__(self, count):
        x = self.encoder(torch.zeros(count, 8)).view(count, 4, 2, 2)
        for _ in range(self.steps):
            x = self.network(torch.cat([x, x]))[:count] if self.guided else self.network(x)
        return self.decoder.decode(x)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(16, 5)

    def decode(self, x):
        return self.out(x.flatten(1))


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def flops_of(module, *inputs):
    return flops_by_component(lambda: module(*inputs), {"it": Component(module)})["it"]


def test_warm_up_is_left_out_of_the_seconds_of_a_batch():
    calls = []

    def generate(count):
        calls.append(count)
        time.sleep(0.5 if len(calls) == 1 else 0.02)

    batch = time_batch(generate, 4, warmup=1, repeats=3)
    assert calls == [4] * 4
    assert 0.02 <= batch.seconds <= batch.seconds_p90 < 0.2
    assert batch.images_per_second == pytest.approx(4 / batch.seconds)


@pytest.mark.parametrize(("guided", "samples"), [(False, 3), (True, 6)])
def test_network_calls_are_the_samples_that_went_through_it(guided, samples):
    model = Generator(steps=3, guided=guided)
    costs = measure(model, model.components, network="network", batch_sizes=[1], repeats=1, energy_seconds=0)
    assert costs.network_calls == samples
    assert costs.components["network"].calls == 3
    assert costs.components["encoder"].samples == costs.components["decoder"].samples == 1


def test_samples_are_counted_where_a_network_is_called_by_keywords():
    module = nn.Linear(3, 3)
    with charged({"it": Component(module)}, time.perf_counter) as charges:
        module(input=torch.zeros(7, 3))
    assert charges.samples == {"it": 7}


def test_parameters_are_told_by_dtype():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 5, bias=False).half())
    assert parameters_by_dtype(model) == {"float32": 100, "float16": 50}


def test_flops_of_convolution_and_linear_are_the_closed_forms():
    assert flops_of(nn.Linear(7, 11), torch.zeros(5, 7)) == 2 * 5 * 7 * 11
    stride_2 = nn.Conv2d(3, 8, 5, stride=2, padding=2)
    assert flops_of(stride_2, torch.zeros(2, 3, 16, 16)) == 2 * 2 * 8 * 8 * 8 * 3 * 5 * 5
    assert flops_of(nn.Conv2d(6, 6, 3, padding=1, groups=3), torch.zeros(1, 6, 4, 4)) == 2 * 6 * 4 * 4 * 2 * 3 * 3


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_fused_attention_of_a_cpu_is_counted(mode):
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    with mode():
        flops = flops_of(Attention(), torch.zeros(2, 3, 10, 8), torch.zeros(2, 3, 20, 8), torch.zeros(2, 3, 20, 8))
    assert flops == 2 * 2 * 3 * 10 * 20 * (8 + 8)


@torch.no_grad()
def test_an_encoder_layer_of_torch_that_runs_as_one_kernel_is_counted():
    length, width, inner = 6, 8, 16
    layer = nn.TransformerEncoderLayer(width, 2, inner, batch_first=True).eval()
    projections, attention, feed_forward = 4 * width * width, 2 * length * width, 2 * width * inner
    expected = 2 * 3 * length * (projections + attention + feed_forward)
    assert flops_of(layer, torch.zeros(3, length, width)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_flops_are_charged_to_the_component_that_works():
    model = Generator(steps=3)
    flops = flops_by_component(lambda: model(2), model.components)
    network = 3 * 2 * 2 * 4 * 2 * 2 * 4 * 3 * 3
    assert flops == {"encoder": 2 * 2 * 8 * 16, "network": network, "decoder": 2 * 2 * 16 * 5, REST: 0}


def test_a_component_within_another_is_charged_by_itself():
    outer = nn.Sequential(Sleeper(0.05), Sleeper(0.1))
    components = {"outer": Component(outer), "inner": Component(outer[1])}
    spent = seconds_by_component(lambda: (time.sleep(0.02), outer(torch.zeros(1))), components, CPU).spent
    assert 0.05 <= spent["outer"] < 0.1
    assert 0.1 <= spent["inner"] < 0.15
    assert 0.02 <= spent[REST] < 0.07


def test_the_parts_of_the_time_sum_to_the_whole():
    model = Generator()
    costs = measure(model, model.components, network="network", batch_sizes=[1], repeats=1, energy_seconds=0)
    parts = [component.seconds for component in costs.components.values()]
    assert min(parts) > 0
    assert sum(parts) + costs.rest_seconds == pytest.approx(costs.split_seconds)


def test_watching_leaves_no_trace_even_after_an_error():
    model = Generator()
    with charged(model.components, time.perf_counter):
        assert "decode" in vars(model.decoder)
        with pytest.raises(RuntimeError):
            model.network(torch.zeros(1, 99, 2, 2))
    assert "decode" not in vars(model.decoder)
    assert "forward" not in vars(model.network)


@pytest.mark.parametrize("by_kernel", [True, False])
def test_peak_memory_is_that_of_the_work_and_not_of_larger_work_before(monkeypatch, by_kernel):
    if not by_kernel:
        monkeypatch.setattr(memory, "_reset_high_water", lambda: False)

    def work(mebibytes):
        def allocate():
            held = torch.ones(mebibytes * MEBI // 4)
            time.sleep(0.03)  # several looks, where it is sampled
            del held

        return allocate

    large, small = peak_memory(work(200), CPU), peak_memory(work(50), CPU)
    assert ("high-water" in large.method) is by_kernel
    assert large.working / MEBI == pytest.approx(200, abs=8)
    assert small.working / MEBI == pytest.approx(50, abs=8)


def test_available_memory_is_less_than_a_petabyte_and_more_than_nothing():
    assert 0 < available_memory() < 2**50


def test_batch_sizes_stop_where_memory_runs_out_and_say_so():
    model = Generator()

    def generate(count):
        return model(count) if count < 4 else torch.empty(2**52)

    costs = measure(generate, model.components, network="network", batch_sizes=[8, 2, 4], repeats=1, energy_seconds=0)
    assert [batch.batch_size for batch in costs.batches] == [1, 2]
    assert "stopped at 4, which does not fit" in costs.notes[0]


def test_a_batch_that_would_not_fit_is_not_tried_on_a_cpu():
    model, tried = Generator(), []

    def generate(count):
        tried.append(count)
        torch.ones(64 * MEBI // 4)  # more than an allocator keeps of what was freed before
        return model(min(count, 2))

    costs = measure(generate, model.components, network="network", batch_sizes=[1, 10**9], repeats=1, energy_seconds=0)
    assert set(tried) == {1}
    assert "stopped before 1000000000, which would need about" in costs.notes[0]


def test_an_error_that_is_not_of_memory_is_not_hidden():
    model = Generator()

    def generate(count):
        return model(count) if count == 1 else model.network(torch.zeros(1, 99, 2, 2))

    with pytest.raises(RuntimeError, match="99 channels"):
        measure(generate, model.components, network="network", batch_sizes=[2], repeats=1, energy_seconds=0)


def test_what_torch_says_when_memory_runs_out_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert ran_out(caught.value)
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory."))
    assert not ran_out(RuntimeError("shapes do not agree"))


def test_progress_counts_every_image_whether_or_not_the_list_is_finished():
    for most in (4, 10**12):
        model, done = Generator(), []

        def generate(count, model=model):
            torch.ones(4 * MEBI)
            return model(count)

        measure(generate, model.components, network="network", batch_sizes=[2, most], energy_seconds=0, progress=done.append)
        assert sum(done) == images_generated([2, most])


def test_energy_is_measured_in_silence_without_files_and_without_network(tmp_path, monkeypatch, capfd):
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    logger = logging.getLogger("codecarbon")
    before = (logger.disabled, logger.level, list(logger.handlers))
    energy, why = measure_energy(lambda count: torch.ones(300, 300) @ torch.ones(300, 300), 2, seconds=1.5, country="FRA")
    assert energy is not None, why
    assert why == ""
    assert energy.watt_hours == pytest.approx(sum(energy.parts.values()))
    assert energy.watt_hours > 0
    assert 1.5 <= energy.seconds < 6
    assert "electricity: France" in energy.method
    world, _ = measure_energy(lambda count: time.sleep(0.1), 1, seconds=0.3)
    assert world.co2_grams / world.watt_hours > 3 * energy.co2_grams / energy.watt_hours  # France's is of little CO2
    assert list(tmp_path.iterdir()) == []
    assert asked == []
    assert capfd.readouterr() == ("", "")
    assert before == (logger.disabled, logger.level, list(logger.handlers))


def test_energy_without_codecarbon_is_nothing_and_says_why(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "codecarbon", None)
    model = Generator()
    costs = measure(model, model.components, network="network", batch_sizes=[1], repeats=1, energy_seconds=1)
    assert costs.energy is None
    assert costs.notes == ("energy: not measured, the package codecarbon is not installed.",)


def test_costs_survive_json():
    model = Generator()
    costs = measure(
        model, model.components, network="network", batch_sizes=[2], repeats=2, energy_seconds=0, setting={"steps": 3}
    )
    stored = json.loads(json.dumps(costs.to_dict()))
    assert stored["components"].keys() == costs.components.keys()
    assert costs.latency == stored["batches"][0]["seconds"]
    assert costs.flops == sum(component["flops"] for component in stored["components"].values())
    assert costs.parameter_bytes == 4 * costs.parameters == 4 * (8 * 16 + 16 + 4 * 4 * 9 + 4 + 16 * 5 + 5)
    assert math.isfinite(costs.images_per_second)


@pytest.mark.parametrize("wrong", [{"batch_sizes": [0]}, {"repeats": 0}, {"warmup": 0}])
def test_numbers_below_one_are_refused(wrong):
    model = Generator()
    with pytest.raises(ValueError, match="expects 1 or more of each"):
        measure(model, model.components, network="network", **wrong)


def test_a_network_that_is_no_component_is_refused():
    model = Generator()
    with pytest.raises(ValueError, match="network: got 'unet', expects one of the components: encoder, network, decoder"):
        measure(model, model.components, network="unet")


def test_short_calls_are_repeated_until_they_took_long_enough_and_progress_still_counts_what_it_said():
    calls, told = [], []
    network = nn.Linear(4, 4)

    def generate(count):
        calls.append(count)
        time.sleep(0.01)
        network(torch.zeros(count, 4))

    components = {"network": Component(network)}
    measure(
        generate,
        components,
        network="network",
        batch_sizes=(1,),
        repeats=2,
        min_seconds=0.2,
        energy_seconds=0,
        progress=told.append,
    )
    assert 10 <= len(calls) - 1 - 4 <= 20  # without the warm-up, three split runs and the counting
    assert sum(told) == images_generated((1,), repeats=2)
