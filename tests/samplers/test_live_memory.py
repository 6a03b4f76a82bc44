"""What a computation holds at most, against what can be counted by hand; and what a pipeline takes, by placement."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from fresh_process import ran
from torch import nn
from torch.utils.checkpoint import checkpoint

from gendistill.samplers.offload.live_memory import LiveBytes, bytes_of, peak_bytes
from gendistill.samplers.offload.memory_model import PLACEMENTS, MetaNetworks, Needs, fastest_that_fits
from gendistill.sampling.placement_plan import plan_sampling

KIB = 1024


def meta(*shape):
    return torch.empty(*shape, device="meta")


def test_what_is_let_go_of_does_not_count():
    def work():
        x = meta(256)  # 1 KiB each
        for _ in range(5):
            x = x + 1
        return x

    assert peak_bytes(work) == 2 * KIB


def test_what_was_there_before_does_not_count_and_views_are_free():
    x = meta(16, 256)
    assert peak_bytes(lambda: x.view(256, 16).t()[3:]) == 0
    assert peak_bytes(lambda: (x + 1).view(-1)) == 16 * KIB


def test_what_is_kept_for_the_gradient_counts():
    x = meta(256).requires_grad_()

    def work():
        y = x
        for _ in range(4):
            y = y.exp()  # keeps what it makes
        y.sum().backward()

    assert peak_bytes(work) >= 4 * KIB
    with torch.no_grad():
        assert peak_bytes(lambda: x.exp().exp().exp().exp()) == 2 * KIB


def test_attention_never_holds_its_matrix():
    query = meta(1, 4, 4096, 16)
    made = peak_bytes(lambda: F.scaled_dot_product_attention(query, query, query))
    assert made < 3 * query.numel() * 4
    learns = query.clone().requires_grad_()
    assert peak_bytes(lambda: F.scaled_dot_product_attention(learns, learns, learns).sum().backward()) < 10 * query.numel() * 4


@pytest.mark.parametrize("reentrant", [True, False])
def test_attention_that_a_checkpoint_computes_again_never_holds_its_matrix(reentrant):
    query = meta(1, 4, 4096, 16).requires_grad_()

    def work():
        made = checkpoint(lambda x: F.scaled_dot_product_attention(x, x, x), query, use_reentrant=reentrant)
        made.sum().backward()

    assert peak_bytes(work) < 10 * query.numel() * 4
    assert query.grad.shape == query.shape


def test_attention_of_numbers_and_of_other_threads_stays_what_it_is(generator):
    query, key, value = torch.randn(3, 1, 2, 8, 4, generator=generator)
    wanted = F.scaled_dot_product_attention(query, key, value)
    with ThreadPoolExecutor(1) as other:

        def work():
            found.append(F.scaled_dot_product_attention(query, key, value))
            counter = LiveBytes()
            other.submit(attend_on_meta, counter).result()
            found.append(counter.peak)

        def attend_on_meta(counter):
            with counter:
                F.scaled_dot_product_attention(*meta(3, 1, 2, 512, 4))

        found = []
        peak_bytes(work)
    torch.testing.assert_close(found[0], wanted)
    assert found[1] > 2 * 512 * 512 * 4  # torch's own choice there, which holds the matrix


def test_convolutions_may_be_copied():
    layer = nn.Conv2d(8, 8, 3, padding=1, bias=False, device="meta").requires_grad_(False)
    x = meta(1, 8, 32, 32)
    size = 8 * 32 * 32 * 4
    assert peak_bytes(lambda: layer(x)) == size
    assert peak_bytes(lambda: layer(x), copies_of_convolutions=True) == 3 * size + bytes_of([layer])


def test_weights_that_are_shared_count_once():
    one = nn.Linear(8, 8, bias=False)
    assert bytes_of([one, nn.Sequential(one, nn.ReLU())]) == 8 * 8 * 4


def test_every_placement_takes_less_than_the_one_before(tiny_folder):
    needs = MetaNetworks.from_configs(tiny_folder).needs((32, 32), 2, guided=True, dtype=torch.float32, cpu=True)
    peaks = [needs.peak(placement) for placement in PLACEMENTS]
    assert all(after <= before for before, after in pairwise(peaks))
    assert peaks[-1] < peaks[0]


def test_the_fastest_that_fits_is_taken():
    needs = Needs(text=10, network=50, decoder=5, largest_layer=4, encode=1, denoise=10, decode=20, decode_tiled=3)
    assert [needs.peak(placement) for placement in PLACEMENTS] == [85, 75, 65, 60, 14]
    assert [fastest_that_fits(needs, free).name for free in (85, 84, 70, 60, 20)] == [of.name for of in PLACEMENTS]
    assert fastest_that_fits(needs, 13) is None


def test_the_weights_of_stable_diffusion_are_known():
    """859.5 M, 123.1 M and 83.7 M parameters in half precision."""
    networks = MetaNetworks.from_configs("sd1")
    for module in (*networks.text, networks.network, networks.decoder):
        module.half()
    assert bytes_of([networks.network]) == pytest.approx(2 * 859.52e6, rel=1e-4)
    assert bytes_of(networks.text) == pytest.approx(2 * 123.06e6, rel=1e-3)
    assert bytes_of([networks.decoder]) == pytest.approx(2 * 83.65e6, rel=1e-3)


def test_a_plan_from_the_command_line(tiny_folder):
    done = ran("plan", tiny_folder, "--sample", "--batch", "2")
    assert "predicted" in done.stdout
    assert "text-encoder-offload" in done.stdout
    assert "nobody has measured it on a GPU" in " ".join(done.stderr.split())
    done = ran("plan", tiny_folder, "--size", "33x32")
    assert done.returncode == 2
    assert "size 33x32: expects WIDTHxHEIGHT in multiples of 4 pixels" in " ".join(done.stderr.split())


def test_larger_images_and_more_of_them_take_more(tiny_folder):
    small, large, many = (
        plan_sampling(str(tiny_folder), size=size, batch=batch).needs
        for size, batch in (("32x32", 1), ("64x64", 1), ("32x32", 4))
    )
    assert large.denoise > 2 * small.denoise
    assert many.decode > 2 * small.decode
    assert large.network == small.network
