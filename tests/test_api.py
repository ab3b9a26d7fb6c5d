"""Captions in Python."""

import copy
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor

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


def test_a_path_a_picture_and_a_tensor_give_the_same_caption(model, photos) -> None:
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
    assert len({caption.text for caption in captions}) == 1
    assert model.tokenizer.split(captions[0].text) == list(captions[0].words)


def test_a_list_gives_a_list_in_its_order(model, photos) -> None:
    together = model.caption(photos, batch_size=4)
    assert len(together) == 6
    assert [caption.text for caption in together] == [model.caption(path).text for path in photos]
    assert model.caption([]) == []


def test_one_picture_is_accepted_as_several(model, photos) -> None:
    (caption,) = model.caption_each(photos[0])
    assert caption == model.caption(photos[0])
    for nothing in ({}, {"a.png": 1}, 7, None):
        with pytest.raises(ValueError, match=f"type {type(nothing).__name__} is not accepted"):
            model.caption(nothing)


def test_log_probs_are_those_of_the_decoder(model, photos) -> None:
    """Reading the caption back, teacher-forced, gives the same log probabilities."""
    caption = model.caption(photos[0], beam_size=3, length_penalty=0.7, max_length=12)
    words = model.tokenizer.vocabulary
    tokens = [words.id(word) for word in caption.words]
    inputs = torch.tensor([[words.start, *tokens]])
    (features,) = model.encode([model.prepare(photos[0])])
    log_probs = torch.log_softmax(model.model.decoder(features, inputs), dim=-1)[0]
    targets = [*tokens, words.end][: len(caption.log_probs)]
    expected = [float(log_probs[t, token].detach()) for t, token in enumerate(targets)]
    assert caption.log_probs == pytest.approx(expected, abs=1e-4)
    assert caption.log_prob == pytest.approx(sum(expected), abs=1e-4)
    assert caption.score == pytest.approx(sum(expected) / len(targets) ** 0.7, abs=1e-4)
    assert caption.as_dict()["words"] == list(caption.words)


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
        (torch.full((3, 5, 5), 7.0), "must be in \\[0, 1\\]"),
        (torch.full((3, 5, 5), torch.nan), "must be in \\[0, 1\\]"),
    ],
)
def test_wrong_tensors_are_refused(model, image, says) -> None:
    with pytest.raises(ValueError, match=says):
        model.caption(image)


def test_wrong_devices_are_refused(run) -> None:
    with pytest.raises(ValueError, match="device='abacus' is not known"):
        captioner.load(run, device="abacus")


def test_cached_and_live_features_give_the_same_captions(run, scenes) -> None:
    from captioner.config import compose
    from captioner.evaluation.evaluate import evaluate

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
            metrics=["bleu"],
        )
        texts.append([caption.text for caption in result.captions])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def test_in_bfloat16_too_cached_and_live_features_give_the_same_captions(run, tmp_path) -> None:
    from captioner.evaluation.evaluate import evaluate

    half = captioner.load(run, device="cpu")
    half.model.encoder.precision = "bf16"  # by name, so that a processor without it emulates it
    assert half.model.encoder.computes_in == torch.bfloat16
    config = half.config
    texts = []
    for cache in (True, False):
        loader = {**config["loader"], "cache": cache, "cache_folder": str(tmp_path)}
        common = {"decoding": {"beam_size": 3}, "split": "train", "metrics": ["bleu"]}
        result = evaluate(half, data=config["data"], loader=loader, **common)
        texts.append([caption.text for caption in result.captions])
    assert texts[0] == texts[1]


def test_a_checkpoint_without_a_precision_computes_in_float32(run, photos, tmp_path) -> None:
    from captioner.checkpoints import checkpoint

    content = checkpoint.read(run).lightning
    del content["captioner"]["config"]["encoder"]["precision"]
    torch.save(content, tmp_path / "old.ckpt")
    old = captioner.load(tmp_path / "old.ckpt")
    assert old.model.encoder.computes_in == torch.float32
    assert old.caption(photos[0]).text


def test_each_image_gets_its_caption_or_its_error_in_order(model, photos, tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    wanted = [photos[0], tmp_path / "gone.png", photos[1], tmp_path / "broken.png", *photos[2:]]
    expected = model.caption(photos)
    for batch_size in (1, 2, 5, 99):
        results = list(model.caption_each(wanted, batch_size=batch_size))
        assert isinstance(results[1], FileNotFoundError)
        assert isinstance(results[3], ValueError)
        good = [result for result in results if not isinstance(result, Exception)]
        assert [caption.text for caption in good] == [caption.text for caption in expected]
    with pytest.raises(ValueError, match=r"broken.png"):
        model.caption(wanted[2:])
    with pytest.raises(ValueError, match="batch_size=0"):
        model.caption(photos, batch_size=0)


def test_batches_encoded_side_by_side_stay_in_order(model, photos, monkeypatch) -> None:
    expected = [caption.text for caption in model.caption(photos)]
    assert len(set(expected)) > 1
    encode, places = model.encode, iter(range(99))
    ended = [threading.Event() for _ in range(3)]

    def late(images):
        place = next(places)
        if place < 2:  # three batches are encoded at once, and the first one ends last
            assert ended[place + 1].wait(timeout=300), "batches wait for one another"
        try:
            return encode(images)
        finally:
            if place < 3:
                ended[place].set()

    monkeypatch.setattr(model, "encode", late)
    monkeypatch.setattr("captioner.data.pipeline.CORES", 3)
    assert [caption.text for caption in model.caption_each(photos, batch_size=1)] == expected


def test_the_largest_network_begins_and_features_keep_their_order(photos) -> None:
    model = captioner.load("flickr8k")
    (encoder,) = model.encoders
    sizes = [sum(w.numel() for w in network.parameters()) for network in encoder.backbone.networks]
    assert sorted(sizes) == sizes  # named from the smallest to the largest
    prepared = [model.prepare(path) for path in photos[:2]]
    (features,) = model.encode(prepared)
    together = encoder(torch.stack([pixels for (pixels,) in prepared]))
    assert torch.equal(features.pooled, together.pooled)
    assert torch.equal(features.grid, together.grid)
    started = []

    def encode(index, part, images):
        started.append(part)
        return type(model)._encode_part(model, index, part, images)

    model._encode_part = encode
    model.encode(prepared)
    assert started == [2, 1, 0]


@pytest.mark.parametrize(("cores", "left"), [(2, 1), (6, 2), (16, 3)])
def test_decoding_uses_the_cores_that_encoders_do_not_use(
    cores, left, model, photos, monkeypatch
) -> None:
    monkeypatch.setattr("captioner.data.pipeline.CORES", cores)
    caption, threads = model.caption_features, []
    monkeypatch.setattr(
        model,
        "caption_features",
        lambda *a, **o: threads.append(torch.get_num_threads()) or caption(*a, **o),
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        list(model.caption_each(photos, batch_size=2))
        assert set(threads) == {left}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def cores_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.fixture
def cores():
    """The caller uses 2 cores, new threads use 3."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.set_num_threads, 3).result()
    assert (torch.get_num_threads(), cores_of_a_new_thread()) == (2, 3)
    yield lambda: (torch.get_num_threads(), cores_of_a_new_thread())
    torch.set_num_threads(before)


@pytest.mark.reliability("shared objects")
def test_the_number_of_threads_of_the_caller_is_unchanged(cores, model, photos) -> None:
    model.caption(photos, batch_size=2)
    assert cores() == (2, 3)


@pytest.mark.reliability("shared objects")
def test_the_number_of_threads_is_unchanged_after_an_exception(
    cores, model, photos, monkeypatch
) -> None:
    def fail(*_):
        raise RuntimeError("broken network")

    monkeypatch.setattr(model.encoders[0], "forward", fail)
    with pytest.raises(RuntimeError, match="broken network"):
        model.caption(photos, batch_size=2)
    assert cores() == (2, 3)
    monkeypatch.undo()
    monkeypatch.setattr("captioner.data.pipeline._limit_thread", fail)  # while threads start
    with pytest.raises(RuntimeError):
        model.caption(photos, batch_size=2)
    assert cores() == (2, 3)


@pytest.mark.reliability("shared objects")
def test_the_number_of_threads_is_unchanged_if_calls_overlap(cores, model, photos) -> None:
    expected = [caption.text for caption in model.caption(photos)]
    first, second = (model.caption_each(photos, batch_size=2) for _ in range(2))
    texts = [next(first).text, next(second).text]
    assert cores() == (2, 3)
    first.close()
    assert cores() == (2, 3)
    texts += [caption.text for caption in second]
    assert texts == [expected[0], *expected]
    assert cores() == (2, 3)


@pytest.mark.reliability("shared objects")
def test_settings_and_random_states_of_the_caller_are_unchanged(model, photos) -> None:
    def settings():
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().tolist(),
            numpy.random.get_state()[1].tolist(),
            random.getstate(),
        )

    before = settings()
    results = model.caption_each(photos, batch_size=2, temperature=1.0, captions=2)
    next(results)
    assert settings() == before  # also between two captions
    list(results)
    assert settings() == before


@pytest.mark.reliability("shared objects")
def test_threads_may_share_a_captioner(run, photos) -> None:
    options = [{}, {"beam_size": 3}, {"temperature": 1.0, "seed": 3}, {"max_length": 4}]
    expected = [
        [caption.text for caption in captioner.load(run).caption(photos, **o)] for o in options
    ]
    assert len({tuple(texts) for texts in expected}) > 2
    shared = captioner.load(run)
    start = threading.Barrier(8)

    def work(number: int) -> list[str]:
        start.wait()
        return [
            caption.text for caption in shared.caption(photos, batch_size=2, **options[number % 4])
        ]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == expected * 2


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.reliability("shared objects")
@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_gives_the_same_captions_and_has_its_own_weights(name, used, run, photos) -> None:
    original = captioner.load([run, run])
    expected = captioner.load([run, run]).caption(photos, beam_size=2)
    if used:
        original.caption(photos[0])
    copied = COPIES[name](original)
    assert copied.caption(photos, beam_size=2) == expected
    assert len(copied.encoders) == 1  # still shared by its models
    assert copied.encoders[0] is copied.models[0].encoder
    green = copied.tokenizer.vocabulary.id("green")
    for model in copied.models:
        with torch.no_grad():
            model.decoder.output.bias.fill_(-100)[green] = 100
    assert set(copied.caption(photos[0], max_length=3).words) == {"green"}
    changed = name == "copy"  # which has the same models
    assert (original.caption(photos, beam_size=2) != expected) == changed


@pytest.mark.parametrize("cores", [1, 3])
def test_only_a_few_batches_are_read_ahead(cores, model, photos, monkeypatch) -> None:
    monkeypatch.setattr("captioner.data.pipeline.CORES", cores)
    taken: list[int] = []

    def endless():
        while True:
            taken.append(1)
            yield photos[len(taken) % len(photos)]

    results = model.caption_each(endless(), batch_size=3)
    for number in range(1, 13):
        assert not isinstance(next(results), Exception)
        assert len(taken) <= number + (3 + 2 * cores) * 3
    results.close()


def test_several_captions_of_an_image(model, photos) -> None:
    caption = model.caption(photos[0], beam_size=4, captions=4)
    scores = [caption.score, *(alternative.score for alternative in caption.alternatives)]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert caption.text == model.caption(photos[0], beam_size=4).text
    assert len({caption.text, *(alternative.text for alternative in caption.alternatives)}) == 4
    assert caption.as_dict()["alternatives"][0]["text"] == caption.alternatives[0].text


def test_samples_depend_on_the_file_not_on_the_batch(model, photos) -> None:
    options = {"temperature": 1.0, "top_p": 0.95, "captions": 2}

    def texts(images, seed: int = 3, **more) -> list[list[str]]:
        captions = model.caption(images, seed=seed, **options, **more)
        return [
            [caption.text, *(alternative.text for alternative in caption.alternatives)]
            for caption in captions
        ]

    together = texts(photos, batch_size=4)
    assert together == [texts([path])[0] for path in photos]
    assert together[::-1] == texts(photos[::-1], batch_size=5)
    assert together != texts(photos, seed=4)


def test_required_words_banned_words_and_prefix(model, photos) -> None:
    plain = model.caption(photos[0])
    banned = model.caption(photos[0], banned_words=[plain.words[1], "a word it never heard"])
    assert plain.words[1] not in banned.words
    caption = model.caption(photos[0], required_words=["three green", "fish"], beam_size=3)
    assert "three green" in caption.text
    assert "fish" in caption.words
    assert not caption.note
    begun = model.caption(photos[0], prefix="The picture")
    assert begun.text.startswith("the picture ")
    short = model.caption(photos[0], required_words=["three green fish"], max_length=2)
    assert short.missing == ("three green fish",)
    assert short.note == "without 'three green fish'"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"required_words": ["gren"]}, "cannot generate 'gren'.*did you mean green"),
        ({"prefix": "an elephant"}, "prefix='an elephant': the model cannot generate"),
        ({"required_words": ["..."]}, "has no word"),
        ({"required_words": ["green"], "banned_words": ["green"]}, "is banned by banned_words"),
        ({"prefix": "a green fish", "max_length": 3}, "has 3 words; set max_length to 4 or more"),
    ],
)
def test_words_outside_the_vocabulary_are_refused(model, photos, options, says) -> None:
    with pytest.raises(ValueError, match=says):
        model.caption(photos[0], **options)


def test_an_ensemble_averages_its_models(run, photos, tmp_path) -> None:
    """Two models: the probability of each word is the mean of theirs."""
    from captioner.checkpoints import checkpoint

    content = checkpoint.read(run).lightning
    torch.manual_seed(1)
    name = "model.decoder.output.weight"
    noise = 0.3 * torch.randn_like(content["state_dict"][name])
    content["state_dict"][name] = content["state_dict"][name] + noise
    torch.save(content, tmp_path / "other.ckpt")
    both = captioner.load([run, tmp_path / "other.ckpt"])
    assert len(both.encoders) == 1  # both have the same encoder, so the image is encoded once
    caption = both.caption(photos[0], beam_size=2)
    words = both.tokenizer.vocabulary
    tokens = [words.id(word) for word in caption.words]
    inputs = torch.tensor([[words.start, *tokens]])
    probs = []
    for path in (run, tmp_path / "other.ckpt"):
        single = captioner.load(path)
        (features,) = single.encode([single.prepare(photos[0])])
        with torch.no_grad():
            probs.append(torch.softmax(single.model.decoder(features, inputs), dim=-1)[0])
    mean = ((probs[0] + probs[1]) / 2).log()
    expected = [float(mean[t, token]) for t, token in enumerate([*tokens, words.end])]
    assert caption.log_probs == pytest.approx(expected[: len(caption.log_probs)], abs=1e-4)


def test_an_ensemble_of_one_model_twice_changes_nothing(run, model, photos) -> None:
    twice = captioner.load([run, run])
    for average in ("probability", "log_probability"):
        captions = twice.caption(photos, beam_size=3, ensemble=average)
        assert [c.text for c in captions] == [c.text for c in model.caption(photos, beam_size=3)]


def test_models_of_different_vocabularies_are_refused_as_an_ensemble(run, tmp_path) -> None:
    from captioner.checkpoints import checkpoint

    content = checkpoint.read(run).lightning
    words = content["captioner"]["tokenizer"]["words"]
    content["captioner"]["tokenizer"]["words"] = [*words[:-2], words[-1], words[-2]]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="another vocabulary"):
        captioner.load([run, tmp_path / "other.ckpt"])
