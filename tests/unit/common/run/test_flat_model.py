"""A model that lies in several places is one to whoever reads it."""

import numpy as np
import pytest

from common.run.flat_model import STRETCH, JoinedModel, hash_model, stretches


@pytest.mark.parametrize("lengths", [(1,), (STRETCH, STRETCH), (3, 0, STRETCH + 1, 2), ()])
def test_joined_parts_read_as_one_array(lengths: tuple[int, ...]) -> None:
    source = np.random.default_rng(1)
    parts = [source.normal(size=length).astype(np.float32) for length in lengths]
    whole, joined = np.concatenate([np.zeros(0, np.float32), *parts]), JoinedModel(parts)
    assert len(joined) == len(whole)
    assert np.array_equal(joined[:], whole)
    assert hash_model(joined) == hash_model(whole)
    for stretch in (*stretches(len(whole)), slice(1, 4), slice(2, 2), slice(len(whole) - 1, len(whole) + 5)):
        assert np.array_equal(joined[stretch], whole[stretch])
