"""Captions in Python."""

import numpy
import pytest
import torch
from PIL import Image

import captioner


@pytest.fixture(scope="module")
def model(run):
    return captioner.load(run)


@pytest.fixture(scope="module")
def photos(scenes):
    return sorted((scenes / "images").glob("test_*.png"))


def test_a_path_a_picture_and_a_tensor_say_the_same(model, photos) -> None:
    path = photos[0]
    image = Image.open(path).convert("RGB")
    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)
    captions = [
        model.caption(path),
        model.caption(str(path)),
        model.caption(image),
        model.caption(pixels),
        model.caption(pixels.float() / 255),
    ]
    assert len({one.text for one in captions}) == 1
    assert model.tokenizer.split(captions[0].text) == list(captions[0].words)


def test_a_list_gives_a_list_in_its_order(model, photos) -> None:
    together = model.caption(photos, batch_size=4)
    assert len(together) == 6
    assert [one.text for one in together] == [model.caption(path).text for path in photos]
    assert model.caption([]) == []


def test_log_probs_are_those_of_the_decoder(model, photos) -> None:
    """Reading the caption back, teacher-forced, gives the same log probabilities."""
    found = model.caption(photos[0], beam_size=3, length_penalty=0.7, max_length=12)
    words = model.tokenizer.vocabulary
    tokens = [words.id(word) for word in found.words]
    inputs = torch.tensor([[words.start, *tokens]])
    (features,) = model.encode([model.prepare(photos[0])])
    log_probs = torch.log_softmax(model.model.decoder(features, inputs), dim=-1)[0]
    targets = [*tokens, words.end][: len(found.log_probs)]
    expected = [float(log_probs[t, token].detach()) for t, token in enumerate(targets)]
    assert found.log_probs == pytest.approx(expected, abs=1e-4)
    assert found.log_prob == pytest.approx(sum(expected), abs=1e-4)
    assert found.score == pytest.approx(sum(expected) / len(targets) ** 0.7, abs=1e-4)
    assert found.as_dict()["words"] == list(found.words)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beam": 3}, "did you mean beam_size"),
        ({"beam_size": 0}, "beam_size=0"),
        ({"max_length": "long"}, "max_length='long'"),
    ],
)
def test_wrong_options_are_refused(model, photos, options, says) -> None:
    with pytest.raises(ValueError, match=says):
        model.caption(photos[0], **options)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.zeros(1, 5, 5), "give \\[3, height, width\\]"),
        (torch.full((3, 5, 5), 7.0), "must lie in \\[0, 1\\]"),
        (torch.full((3, 5, 5), torch.nan), "must lie in \\[0, 1\\]"),
    ],
)
def test_wrong_tensors_are_refused(model, image, says) -> None:
    with pytest.raises(ValueError, match=says):
        model.caption(image)


def test_wrong_devices_are_refused(run) -> None:
    with pytest.raises(ValueError, match="device='abacus' is not there"):
        captioner.load(run, device="abacus")


def test_cached_and_live_features_give_the_same_captions(run, scenes) -> None:
    from captioner.config import compose
    from captioner.evaluation import evaluate

    model = captioner.load(run)
    config = model.config
    decoding = compose(["decoding=beam"])["decoding"]
    texts = []
    for cache in (True, False):
        result = evaluate(
            model,
            data=config["data"],
            decoding=decoding,
            loader={**config["loader"], "cache": cache},
            split="train",
        )
        texts.append([one.text for one in result.captions])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1
