"""The resolution of `auto`, on this processor and on any other."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import yaml
from support.warm_starts import inherited

import captioner
from captioner.checkpoints import checkpoint
from captioner.config import compose, options
from captioner.decoding.options import DecodingOptions
from captioner.evaluation.evaluate import signature_context
from captioner.models import precision
from captioner.training.train import resolved, train


@pytest.fixture
def as_if(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets this processor have, or lack, instructions for bfloat16; no warning was logged yet."""

    def set_to(has: bool) -> None:
        monkeypatch.setattr(precision, "multiplies_bf16", lambda device="cpu": has)
        monkeypatch.setattr(precision, "_logged", set())

    return set_to


# What the processor has -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "capability", "flags", "expected"),
    [
        ("", "AVX512", {"_is_avx512_bf16_supported"}, True),
        ("", "AVX512", {"_is_amx_tile_supported"}, True),
        ("", "AVX512", set(), False),
        ("", "AVX2", {"_is_avx512_bf16_supported"}, False),
        ("", "DEFAULT", {"_is_avx512_bf16_supported"}, False),
        ("AVX2", "AVX512", {"_is_avx512_bf16_supported"}, False),
        ("avx512_core", "AVX512", {"_is_avx512_bf16_supported"}, False),
        ("AVX512_CORE_VNNI", "AVX512", {"_is_avx512_bf16_supported"}, False),
        ("AVX512_CORE_BF16", "AVX512", {"_is_avx512_bf16_supported"}, True),
        ("AVX512_CORE_AMX", "AVX512", {"_is_amx_tile_supported"}, True),
        ("ALL", "AVX512", {"_is_avx512_bf16_supported"}, True),
    ],
)
def test_limits_of_the_instruction_set_are_respected(
    limit: str,
    capability: str,
    flags: set[str],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in flags, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert precision.multiplies_bf16() is expected
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", limit)  # the name it had
    assert precision.multiplies_bf16() is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not precision.multiplies_bf16()
    assert not precision.multiplies_bf16("mps")


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_of_a_gpu_depends_on_the_gpu(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def supported(*, including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return has

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert precision.multiplies_bf16("cuda") is has
    assert asked == [False]
    assert precision.device_of("auto") == precision.device_of("gpu") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not precision.multiplies_bf16("cuda")
    assert precision.device_of("cpu") == "cpu"


# What a precision becomes ---------------------------------------------------------------------


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_resolved_and_explicit_precisions_are_kept(has: bool, as_if) -> None:
    as_if(has)
    assert precision.resolve("auto") == ("bf16" if has else "fp32")
    assert precision.resolve_trainer("auto", "cpu") == ("bf16-mixed" if has else "32-true")
    for name in ("fp32", "bf16"):
        assert precision.resolve(name) == name
    for name in ("32-true", "bf16-mixed"):
        assert precision.resolve_trainer(name, "cpu") == name
    assert precision.resolve_trainer("16-mixed", "cuda") == "16-mixed"
    shorts = (32, "32", "bf16", 16)
    given = [precision.resolve_trainer(one, "cuda") for one in shorts]
    assert given == ["32-true", "32-true", "bf16-mixed", "16-mixed"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bf16-true", "is not known; choose auto, 32-true, bf16-mixed"),
        ("16-true", "is not known; choose auto, 32-true, bf16-mixed"),
        ("64-true", "is not known; choose auto, 32-true, bf16-mixed"),
        ("fp32", "is not known; choose auto, 32-true, bf16-mixed"),
        ("transformer-engine", "is not known; choose auto, 32-true, bf16-mixed"),
        (64, "is not known; choose auto, 32-true, bf16-mixed"),
        ("16-mixed", "needs a GPU, .* choose auto, 32-true, bf16-mixed"),
        (16, "needs a GPU, .* choose auto, 32-true, bf16-mixed"),
    ],
)
def test_precisions_that_a_cpu_does_not_support_are_errors(name, message, tiny, tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"trainer.precision={name!r} {message}") as caught:
        train(compose([*tiny, f"trainer.precision={name}"]), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("has", [True, False])
def test_a_precision_from_a_checkpoint_is_not_emulated(has: bool, as_if, caplog) -> None:
    as_if(has)
    precisions = [precision.stored("bf16", "encoder.precision") for _ in range(2)]
    assert precisions == 2 * ["bf16" if has else "fp32"]
    assert len(caplog.messages) == (0 if has else 1)
    assert precision.stored("fp32", "encoder.precision") == "fp32"


# Runs -----------------------------------------------------------------------------------------

_SMALL = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1")


def precisions(config: dict) -> list[str]:
    return [config[group]["precision"] for group in ("trainer", "encoder", "decoding")]


def test_no_recipe_names_hardware() -> None:
    for name in options("experiment"):
        # lessons are in float32 everywhere, so that other machines measure the same
        own = ["32-true", "fp32"] if name.startswith("lesson") else ["auto", "auto"]
        assert precisions(compose([f"experiment={name}"])) == [*own, "fp32"]
    assert precisions(compose()) == ["auto", "auto", "fp32"]


@pytest.mark.parametrize("has", [True, False])
def test_the_resolved_precision_is_printed_and_stored(
    has: bool, as_if, tiny, tmp_path, capsys
) -> None:
    as_if(has)
    config = compose([*tiny, *_SMALL, "decoding.precision=auto"])
    run = train(config, tmp_path / "run", report=print)
    expected = ["bf16-mixed", "bf16", "bf16"] if has else ["32-true", "fp32", "fp32"]
    assert precisions(yaml.safe_load((run.folder / "config.yaml").read_text())) == expected
    assert precisions(checkpoint.read(run.folder).config) == expected
    line = "precision {}, encoder {}, decoding {}".format(*expected)
    assert f"{line} (cpu {'with' if has else 'without'} bfloat16)" in capsys.readouterr().out


def test_a_resumed_run_keeps_its_precision_with_a_warning(
    as_if, tiny, tmp_path, capsys, cut_short
) -> None:
    as_if(True)
    config = compose([*tiny, "callbacks.save_every=3", "trainer.max_epochs=1"])
    last = cut_short(config, tmp_path / "run", 4)
    stored = checkpoint.read(last).config
    assert precisions(stored) == ["bf16-mixed", "bf16", "fp32"]
    as_if(False)
    capsys.readouterr()
    train(stored, tmp_path / "run", resume=last, report=print)
    assert precisions(checkpoint.read(tmp_path / "run").config) == ["bf16-mixed", "bf16", "fp32"]
    output = capsys.readouterr().out
    assert output.count("trainer.precision=bf16-mixed is emulated on this processor") == 1
    assert output.count("encoder.precision=bf16 is emulated on this processor") == 1
    assert "up to 20 times as long" in output


def test_a_trainable_encoder_has_no_precision_of_its_own(as_if, capsys) -> None:
    as_if(True)
    learning = compose(["encoder.trainable=true"])
    assert precisions(resolved(learning)) == ["bf16-mixed", "fp32", "fp32"]
    as_if(False)
    named = compose(["encoder.trainable=true", "encoder.precision=bf16"])
    assert precisions(resolved(named)) == ["32-true", "bf16", "fp32"]
    assert capsys.readouterr().out == ""


def test_a_training_from_weights_does_not_inherit_an_emulated_precision(
    as_if, tiny, tmp_path
) -> None:
    as_if(True)
    run = train(compose([*tiny, *_SMALL]), tmp_path / "run").folder
    as_if(False)
    given = [f"resume_weights={run}", "data=shapes"]
    assert inherited(given)["encoder"]["precision"] == "fp32"
    given = [*given, "encoder.precision=bf16"]
    assert inherited(given)["encoder"]["precision"] == "bf16"


# Captions -------------------------------------------------------------------------------------


def test_a_model_of_another_processor_is_loaded(as_if, run, tmp_path, caplog) -> None:
    """The precision of the checkpoint is not emulated, an explicit one is; both log one warning."""
    content = torch.load(checkpoint.find(run), weights_only=True)
    for group in ("encoder", "decoding"):
        content["captioner"]["config"][group]["precision"] = "bf16"
    checkpoint.write(content, tmp_path / "other.ckpt")
    as_if(True)
    model = captioner.load(tmp_path / "other.ckpt", device="cpu")
    assert model.decoding().label == "greedy-bf16"
    assert model.model.encoder.precision == "bf16"
    assert caplog.messages == []
    as_if(False)
    for _ in range(2):
        model = captioner.load(tmp_path / "other.ckpt", device="cpu")
        assert model.decoding().label == "greedy"
        assert model.model.encoder.computes_in == torch.float32
    assert [line.partition(":")[0] for line in caplog.messages] == [
        "decoding.precision",
        "encoder.precision",
    ]
    caplog.clear()
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for _ in range(2):
        model.caption(image, precision="bf16")
    assert model.decoding(precision="bf16").label == "greedy-bf16"
    assert len(caplog.messages) == 1
    assert "decoding.precision=bf16 is emulated on this processor" in caplog.text


@pytest.mark.parametrize("has", [True, False])
def test_the_signature_has_the_resolved_precision(has: bool, as_if, run) -> None:
    as_if(has)
    model = captioner.load(run, device="cpu")
    data = {"root": "toys"}
    signed = signature_context(model, {"precision": "auto", "beam_size": 3}, data, "dev", [])
    assert signed["decoding"] == ("beam3-bf16" if has else "beam3")
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    same = model.caption(image, precision="bf16" if has else "fp32")
    assert model.caption(image, precision="auto") == same
    assert DecodingOptions().precision == "fp32"


def test_a_process_limited_to_avx2_has_no_bfloat16() -> None:
    """The settings under which the suite is run a second time; asked of torch and oneDNN."""
    limits = {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
    script = (
        "from captioner.models.precision import multiplies_bf16\n"
        "from captioner.models.matmul import by_onednn\n"
        "print(multiplies_bf16(), by_onednn())\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **limits},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == ["False", "False"]
