"""A Captioner has no hidden state: captions do not depend on earlier calls.

Changed weights take effect, the number of threads is unchanged, it may be shared and copied.
"""

import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch

import captioner
from captioner import api
from captioner.models.encoders import encoder

pytestmark = pytest.mark.reliability("shared objects")


@pytest.fixture
def model(run):
    return captioner.load(run)


@pytest.fixture(scope="module")
def photos(scenes):
    return sorted((scenes / "images").glob("*.png"))[:20]


def captions_of(model, images, **options) -> list[tuple]:
    captions = model.caption(images, **options)
    return [(caption.text, caption.log_probs) for caption in captions]


def test_captions_do_not_depend_on_earlier_calls(run, model, photos) -> None:
    """Equal to the last digit, also after a batch of twenty images."""
    first = captions_of(model, photos[:1])
    captions_of(model, photos, beam_size=3)
    assert captions_of(model, photos[:1]) == first
    reloaded = captioner.load(run)
    captions_of(reloaded, photos)
    assert captions_of(reloaded, photos[:1]) == first


def changes():
    """Ways to change a weight; torch does not count all of them in its version counter."""

    def in_place(weight):
        with torch.no_grad():
            weight.mul_(-1)

    def by_data(weight):
        weight.data.mul_(-1)

    def by_numpy(weight):
        numpy.negative(weight.detach().numpy(), out=weight.detach().numpy())

    def swapped(weight):
        weight.data[:] = weight.data.flip(0)  # the same values elsewhere

    def set_anew(weight):
        weight.data = -weight.data

    return [in_place, by_data, by_numpy, swapped, set_anew]


@pytest.mark.parametrize("part", ["decoder.output.weight", "encoder.backbone.conv_head.weight"])
@pytest.mark.parametrize("change", changes(), ids=lambda function: function.__name__)
def test_changed_weights_take_effect(run, model, photos, change, part) -> None:
    before = captions_of(model, photos[:3])
    untouched = captioner.load(run)
    change(untouched.model.get_parameter(part))
    expected = captions_of(untouched, photos[:3])
    assert expected != before
    change(model.model.get_parameter(part))
    assert captions_of(model, photos[:3]) == expected


def test_loaded_weights_and_new_layers_take_effect(run, model, photos) -> None:
    before = captions_of(model, photos[:3])
    state = copy.deepcopy(model.model.state_dict())
    state["decoder.output.weight"] = -state["decoder.output.weight"]
    model.model.load_state_dict(state)
    assert captions_of(model, photos[:3]) != before
    sound = captioner.load(run)
    model.model.decoder.output = sound.model.decoder.output
    assert captions_of(model, photos[:3]) == before


@pytest.mark.reliability("shared objects")
@pytest.mark.parametrize("part", ["decoder.output", "encoder.backbone.conv_head"])
def test_hooks_take_effect_as_long_as_they_are_registered(model, photos, part) -> None:
    before = captions_of(model, photos[:3])
    layer, calls = model.model.get_submodule(part), []
    for _ in range(2):
        hook = layer.register_forward_hook(lambda *_: calls.append(1))
        captions_of(model, photos[:1])
        assert calls
        hook.remove()
        calls.clear()
        assert captions_of(model, photos[:3]) == before and not calls


def test_changed_types_take_effect(model, photos) -> None:
    before = captions_of(model, photos[:3])
    model.model.decoder.double()
    model.model.decoder.float()
    assert captions_of(model, photos[:3]) == before


def test_a_model_trained_in_the_meantime_captions_without_dropout(model, photos) -> None:
    before = captions_of(model, photos[:3])
    model.model.train()
    assert captions_of(model, photos[:3]) == before
    model.model.decoder.train()
    assert captions_of(captioner.api.Captioner.load(model.paths), photos[:3]) == before
    assert captions_of(model, photos[:3]) == before


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_gives_the_same_captions_and_is_independent(model, photos, copied, used) -> None:
    if used:
        captions_of(model, photos)
    copy_of_model = copied(model)
    expected = captions_of(model, photos[:3])
    assert captions_of(copy_of_model, photos[:3]) == expected
    with torch.no_grad():
        copy_of_model.model.decoder.output.weight.mul_(-1)
    assert captions_of(copy_of_model, photos[:3]) != expected
    assert captions_of(model, photos[:3]) == expected


def test_several_threads_may_share_a_captioner(run, model, photos, monkeypatch) -> None:
    expected = captions_of(captioner.load(run), photos, batch_size=7, beam_size=3)
    made = {"steppers": 0, "networks": 0}
    make_steppers, quick_copy = api.make_steppers, encoder.quick_copy
    start = threading.Barrier(4)

    def counted(name, make):
        def making(*args, **options):
            made[name] += 1
            return make(*args, **options)

        return making

    monkeypatch.setattr(api, "make_steppers", counted("steppers", make_steppers))
    monkeypatch.setattr(encoder, "quick_copy", counted("networks", quick_copy))

    def ask(_):
        start.wait()
        return captions_of(model, photos, batch_size=7, beam_size=3)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [expected] * 4
    assert made == {"steppers": 1, "networks": 1}


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def counts() -> tuple[int, int]:
    """The number of torch threads here, and in a new thread."""
    with ThreadPoolExecutor(1) as pool:
        return torch.get_num_threads(), pool.submit(torch.get_num_threads).result()


@pytest.mark.parametrize("cores", [1, 2, 6])
def test_the_number_of_threads_is_unchanged(
    cores, model, photos, three_threads, monkeypatch
) -> None:
    monkeypatch.setattr("captioner.data.pipeline.CORES", cores)
    first, second = (model.caption_each(photos[:9], batch_size=2) for _ in range(2))
    next(first)
    assert counts() == (3, 3)  # also between two captions
    next(second)
    list(first)
    assert counts() == (3, 3)
    list(second)
    assert counts() == (3, 3)
    abandoned = model.caption_each(photos, batch_size=2)
    next(abandoned)
    del abandoned
    gc.collect()
    assert counts() == (3, 3)


def test_the_callers_threads_are_left_as_they_are_after_an_error(
    model, photos, three_threads, monkeypatch
) -> None:
    def broken(*args, **options):
        raise RuntimeError("out of order")

    monkeypatch.setattr(model, "caption_features", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        model.caption(photos[:3])
    assert counts() == (3, 3)


def test_files_given_one_by_one_may_be_closed_at_once(model, photos) -> None:
    def opened():
        for path in photos:
            with path.open("rb") as file:
                yield file

    assert captions_of(model, opened(), batch_size=3) == captions_of(model, photos, batch_size=3)
