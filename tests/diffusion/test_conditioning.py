import pytest
import torch

from gendistill.samplers.conditioning import Conditioning


def some(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        prompt_embeds=torch.randn(count, 5, 3, generator=generator),
        time_ids=torch.randn(count, 6, generator=generator),
        class_labels=torch.randint(10, (count,), generator=generator),
    )


def assert_same(one, other):
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert tensor.dtype == other.tensors()[name].dtype
        assert torch.equal(tensor, other.tensors()[name]), name


def test_tensors_restore_the_conditioning_and_leave_out_what_is_not_there():
    assert list(some().tensors()) == ["prompt_embeds", "time_ids", "class_labels"]
    assert_same(Conditioning(**some().tensors()), some())
    assert Conditioning().tensors() == {}


def test_pieces_cut_out_and_concatenated_are_the_whole():
    whole = some()
    assert_same(Conditioning.cat([whole[:2], whole[2:5], whole[5:]]), whole)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert_same(whole[order][order.argsort()], whole)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float32),
    ],
)
def test_parts_of_any_dtypes_are_concatenated_in_one_that_holds_both_and_that_autocast_concatenates(one, other, both):
    parts = [some().to("cpu", one), some(seed=1).to("cpu", other)]
    whole = Conditioning.cat(parts)
    assert whole["prompt_embeds"].dtype == both
    assert whole["class_labels"].dtype == torch.int64
    assert_same(whole, Conditioning.cat([part.to("cpu", both) for part in parts]))


def test_parts_that_hold_other_conditions_are_refused():
    with pytest.raises(ValueError, match="conditions prompt_embeds, time_ids, class_labels, guidance_scale cannot follow"):
        Conditioning.cat([some(), some().with_guidance(torch.ones(6))])


def test_a_condition_of_any_name_is_one_like_the_others_and_none_can_be_replaced():
    masked = Conditioning(**some().tensors(), prompt_mask=torch.ones(6, 5))
    assert list(masked) == ["prompt_embeds", "time_ids", "class_labels", "prompt_mask"]
    assert masked[:2]["prompt_mask"].shape == (2, 5)
    assert masked.get("pooled_embeds") is None
    assert "pooled_embeds" not in masked
    with pytest.raises(TypeError):
        masked["prompt_mask"] = torch.zeros(6, 5)


def test_where_takes_row_by_row_and_one_row_stands_for_all():
    ours, other = some(), some(seed=1)
    chosen = torch.tensor([True, False, True, True, False, False])
    for there in (other, other[2:3]):
        picked = ours.where(chosen, there)
        for row in range(6):
            from_other = there[:1] if len(there["prompt_embeds"]) == 1 else there[row : row + 1]
            assert_same(picked[row : row + 1], ours[row : row + 1] if chosen[row] else from_other)
    assert_same(ours.where(torch.ones(6, dtype=torch.bool), other), ours)


def test_expand_repeats_one_condition_without_copying_it():
    one = some(1)
    expanded = one.expand(4)
    assert_same(expanded, Conditioning.cat([one] * 4))
    assert expanded["prompt_embeds"].data_ptr() == one["prompt_embeds"].data_ptr()


def test_to_casts_floats_only():
    cast = some().to("cpu", torch.float16)
    assert cast["prompt_embeds"].dtype == torch.float16
    assert cast["class_labels"].dtype == torch.int64
    assert_same(some().to("cpu"), some())
    assert_same(some().to("cpu", torch.float64).to("cpu", torch.float32), some())


def test_guidance_is_added_and_taken_away_without_touching_the_original():
    plain = some()
    guided = plain.with_guidance(torch.full((6,), 3.0))
    assert "guidance_scale" not in plain
    assert torch.equal(guided["guidance_scale"], torch.full((6,), 3.0))
    assert_same(guided.with_guidance(None), plain)


def test_no_conditions_at_all_pass_through_everything():
    nothing = Conditioning()
    assert_same(Conditioning.cat([nothing[:2], nothing.expand(3), nothing.where(torch.tensor([True]), nothing)]), nothing)


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
def test_conditions_of_any_dtypes_are_concatenated_without_loss(autocast):
    parts = [some().to("cpu", dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float16)]
    for chosen in (parts, parts[:1], parts[:2], parts[1:3]):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            whole = Conditioning.cat(chosen)
        for number, part in enumerate(chosen):
            assert_same(whole[6 * number : 6 * number + 6], part.to("cpu", torch.float32))
