"""A scheduler that is changed for a while is put back, whatever happens meanwhile."""

from types import SimpleNamespace

import pytest

from gendistill.samplers.scheduler_of import scheduler_of


def test_the_scheduler_is_another_inside_the_block_and_its_own_afterwards():
    pipeline = SimpleNamespace(scheduler="its own")
    with scheduler_of(pipeline, "another"):
        assert pipeline.scheduler == "another"
        with scheduler_of(pipeline, "a third"):
            assert pipeline.scheduler == "a third"
        assert pipeline.scheduler == "another"
    assert pipeline.scheduler == "its own"


def test_the_scheduler_is_put_back_after_an_error():
    pipeline = SimpleNamespace(scheduler="its own")
    with pytest.raises(KeyboardInterrupt), scheduler_of(pipeline, "another"):
        raise KeyboardInterrupt
    assert pipeline.scheduler == "its own"
