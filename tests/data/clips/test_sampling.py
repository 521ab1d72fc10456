"""The order of training."""

from __future__ import annotations

from src.data.clips import EpochSampler


class TestSampler:
    def test_every_clip_once_in_an_order_of_the_epoch(self):
        sampler = EpochSampler(20, seed=3)
        orders = []
        for epoch in (0, 1, 0):
            sampler.epoch = epoch
            drawn = list(sampler)
            assert {e for e, _ in drawn} == {epoch}
            orders.append([i for _, i in drawn])
        assert sorted(orders[0]) == list(range(20))
        assert orders[0] == orders[2] != orders[1]
        assert [i for _, i in EpochSampler(20, seed=4)] != orders[0]

    def test_it_begins_after_the_clips_that_were_done(self):
        sampler = EpochSampler(10, seed=0)
        whole = list(sampler)
        sampler.skip = 4
        assert list(sampler) == whole[4:]
        assert len(sampler) == 6

    def test_nothing_is_left_after_all_of_them(self):
        sampler = EpochSampler(10, seed=0)
        sampler.skip = 10
        assert list(sampler) == []
        assert len(sampler) == 0
