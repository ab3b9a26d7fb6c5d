"""Patching and image dependence, against reading the caption with the other image."""

import numpy as np
import pytest
import torch

import captioner
from captioner.inspection.patching import image_dependence, mean_features, patch


@pytest.fixture(scope="module")
def model(run):
    return captioner.load(run)


@pytest.fixture(scope="module")
def photos(scenes):
    return sorted((scenes / "images").glob("test_*.png"))


def test_x_0_and_h_of_another_image_give_its_log_probabilities(model, photos) -> None:
    """X_0 is all that the model has of the image, and h_t is all that a word depends on."""
    table = patch(model, photos[0], photos[1])
    text = model.caption(photos[0]).text
    ours, others = (model.trace(photo, caption=text) for photo in photos[:2])
    expected = np.array(others.log_probs) - ours.log_probs
    assert table.words == ours.words
    np.testing.assert_allclose(table.image, expected, atol=1e-5)
    np.testing.assert_allclose(np.diag(table.states["cell.hidden"]), expected, atol=1e-5)
    for changes in table.states.values():
        assert not np.tril(changes, -1).T.any() or changes.shape[0] == 1
        assert (np.tril(changes, -1) == 0).all()  # a word does not depend on later steps
    assert np.abs(expected).max() > 0.01


def test_an_image_patched_with_itself_changes_nothing(model, photos) -> None:
    table = patch(model, photos[0], photos[0])
    assert not table.image.any()
    assert not any(changes.any() for changes in table.states.values())


def test_image_dependence_is_a_divergence_from_the_mean_image(model, photos) -> None:
    trace, divergences = image_dependence(model, photos[0])
    [features] = model.encode([model.prepare(photos[0])])
    decoder = model.model.decoder
    mean = mean_features(decoder, features)
    assert decoder.standardise(decoder.read(mean)).abs().max() < 1e-4
    tokens = [model.tokenizer.vocabulary.start, *model.tokenizer.encode(trace.text)]
    inputs = torch.tensor([tokens])
    with torch.no_grad():
        p, q = (decoder(one, inputs)[0].log_softmax(-1) for one in (features, mean))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(divergences, expected.numpy(), atol=1e-4)
    assert (divergences >= -1e-9).all()
    assert divergences.max() > 0.01


def test_an_ensemble_is_refused(run, photos) -> None:
    with pytest.raises(ValueError, match="load one model"):
        patch(captioner.load([run, run]), photos[0], photos[1])
