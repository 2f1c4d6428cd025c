import numpy as np
import pytest

from embedding.encoders.query_fusion import fuse_vectors
from embedding.encoders.sentence_encoder import ZeroVector, unit_rows


def test_the_order_is_that_of_the_mean_of_the_scores_with_each():
    random = np.random.default_rng(1)
    words, picture = unit_rows(random.normal(size=(2, 8)))
    gallery = unit_rows(random.normal(size=(50, 8)))

    scores = gallery @ fuse_vectors([words, picture])

    means = (gallery @ words + gallery @ picture) / 2
    assert np.argsort(-scores).tolist() == np.argsort(-means).tolist()
    assert np.linalg.norm(fuse_vectors([words, picture])) == pytest.approx(1)


def test_one_vector_is_left_as_it_is():
    [vector] = unit_rows(np.array([[1.0, 2.0]]))

    assert fuse_vectors([vector]) is vector


def test_opposites_have_no_direction():
    [vector] = unit_rows(np.array([[1.0, 2.0]]))

    with pytest.raises(ZeroVector):
        fuse_vectors([vector, -vector])
