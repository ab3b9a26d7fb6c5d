"""The user's own classes and options: imported if a person names them, never for a checkpoint."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import captioner
from captioner import config, parts
from captioner.cli import main
from captioner.data.read import DATASETS
from captioner.metrics.tokenize import TOKENIZE
from captioner.models.captioning import build_model
from captioner.models.decoders.decoder import Decoder
from captioner.models.decoders.table import DECODERS
from captioner.models.encoders.libraries import ENCODERS
from captioner.models.recurrence.table import CELLS
from captioner.testing import check_decoder
from captioner.tokenizers import TOKENIZERS
from captioner.training.objectives.table import OBJECTIVES
from captioner.training.trainer import PROFILERS

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder with the module of CONTRIBUTING.md, as ``mine.py``; nothing is imported yet."""
    (code,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text("utf-8"), re.DOTALL)
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("mine", None)


def test_the_example_is_a_decoder(mine) -> None:
    parts.plug_in("mine")
    check_decoder(sys.modules["mine"].Bigram, width=7)
    check_decoder(sys.modules["mine"].Bigram)


def test_an_own_class_trains_and_loads_if_named(mine, tiny, scenes, capsys) -> None:
    smaller = [line for line in tiny if not line.startswith("decoder.")]
    overrides = [*smaller, "trainer.max_epochs=1", "run_dir=runs/mine"]
    assert main(["train", "decoder=mine:Bigram", "decoder.width=9", *overrides]) == 0
    capsys.readouterr()
    del sys.modules["mine"]
    photo = str(scenes / "images" / "test_00000.png")
    assert main(["caption", photo, "--model", "runs/mine"]) == 1
    assert "name it again with --plugin mine" in capsys.readouterr().err
    assert "mine" not in sys.modules
    assert main(["caption", photo, "--model", "runs/mine", "--plugin", "mine"]) == 0
    assert captioner.load("runs/mine").config["decoder"] == {"name": "mine:Bigram", "width": 9}
    more = ["resume=runs/mine", "trainer.max_epochs=2"]
    assert main(["train", *more, "--plugin", "mine"]) == 0
    evaluate = ["evaluate", "runs/mine", "--plugin", "mine:Bigram", "--metrics", "bleu"]
    assert main(evaluate) == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["decoder=gone:Bigram"], "cannot import gone .ModuleNotFoundError"),
        (["decoder=mine:Bigam"], "mine has no class 'Bigam'"),
        (["decoder=mine:torch"], "mine has no class 'torch'"),
        (["decoder=mine:Bigram", "decoder.widht=3"], "did you mean decoder.width"),
        (["data=mine:Bigram"], "the user's own classes can be used for decoder"),
    ],
)
def test_a_wrong_name_gets_one_line(mine, overrides: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        config.compose(overrides)
    assert "\n" not in str(error.value)


def test_arguments_are_compared_with_the_signature(mine) -> None:
    composed = config.compose(["decoder=mine:Bigram", "decoder.width=wide"])
    with pytest.raises(ValueError, match="decoder.width='wide' is not accepted.*whole number"):
        build_model({**composed["encoder"], "pretrained": False}, composed["decoder"],
                    vocabulary_size=11)  # fmt: skip


def test_an_argument_without_default_must_be_given(mine) -> None:
    code = (mine / "mine.py").read_text("utf-8").replace("width: int = 64", "width: int")
    (mine / "mine.py").write_text(code, encoding="utf-8")
    with pytest.raises(ValueError, match="decoder.width has no default value: set decoder.width"):
        config.compose(["decoder=mine:Bigram"])
    assert config.compose(["decoder=mine:Bigram", "decoder.width=3"])["decoder"]["width"] == 3


@pytest.mark.parametrize(
    "name", ["subprocess:Popen", "torch.nn:LSTM", "os:system", "captioner.config:"]
)
def test_classes_named_by_a_checkpoint_must_satisfy_the_interface(name: str) -> None:
    with pytest.raises(
        ValueError, match="does not have .*which captioner.*Decoder requires|has no class"
    ):
        config.pick(DECODERS, name, "decoder.name", Decoder)


@pytest.mark.parametrize("name", ["m" * 100_000 + ":Cell", "a\nb:Cell", "m; echo 1:Cell"])
def test_a_strange_name_in_a_checkpoint_gets_one_short_line(name: str) -> None:
    with pytest.raises(ValueError, match="tokenizer.name=") as caught:
        config.pick(TOKENIZERS, name, "tokenizer.name")
    said = str(caught.value)
    assert len(said) < 400 and "\n" not in said and "--plugin m; echo" not in said


@pytest.mark.parametrize("table", [CELLS, ENCODERS, TOKENIZERS, OBJECTIVES])
def test_a_class_must_inherit_from_the_base_of_its_table(table: dict) -> None:
    with pytest.raises(
        ValueError, match="x=subprocess:Popen does not have .*which captioner.* requires"
    ):
        config.pick(table, "subprocess:Popen", "x")


@pytest.mark.parametrize("table", [DATASETS, TOKENIZE, PROFILERS])
def test_a_table_of_functions_takes_no_class(table: dict) -> None:
    with pytest.raises(ValueError, match="x='subprocess:Popen' is not known; choose"):
        config.pick(table, "subprocess:Popen", "x")


def test_missing_attributes_of_a_decoder_are_named(mine) -> None:
    code = (mine / "mine.py").read_text("utf-8").replace("self.output", "self.logits")
    (mine / "mine.py").write_text(code, encoding="utf-8")
    composed = config.compose(["decoder=mine:Bigram", "encoder.pretrained=false"])
    with pytest.raises(
        ValueError, match="decoder.name=mine:Bigram does not have output, which captioner"
    ):
        build_model(composed["encoder"], composed["decoder"], vocabulary_size=11)


def test_an_own_cell(mine) -> None:
    (mine / "mine.py").write_text(
        "from captioner.models.recurrence.cells import GRU\nclass Mine(GRU):\n    '''A GRU.'''\n"
    )
    composed = config.compose(["decoder.cell=mine:Mine", "encoder.pretrained=false"])
    for name in ("show_tell", "show_attend_tell", "adaptive"):
        group = config.compose([f"decoder={name}", "decoder.cell=mine:Mine"])["decoder"]
        model = build_model(composed["encoder"], group, vocabulary_size=11)
        assert type(model.decoder.recurrence.cells[0]) is sys.modules["mine"].Mine
    group = config.compose(["decoder=up_down", "decoder.cell=mine:Mine"])["decoder"]
    model = build_model(composed["encoder"], group, vocabulary_size=11)
    assert type(model.decoder.looking) is sys.modules["mine"].Mine


def test_an_own_tokenizer(mine) -> None:
    (mine / "mine.py").write_text(
        "from captioner.tokenizers import WordTokenizer\n"
        "class Mine(WordTokenizer):\n    name = 'mine:Mine'\n"
    )
    from captioner.tokenizers import build_tokenizer, restore_tokenizer

    group = config.compose(["tokenizer=mine:Mine"])["tokenizer"]
    built = config.make(build_tokenizer, "tokenizer", group, ["a dog"])
    assert type(restore_tokenizer(built.as_dict())) is sys.modules["mine"].Mine


def test_an_own_objective(mine) -> None:
    (mine / "mine.py").write_text(
        "from captioner.training.objectives.cross_entropy import CrossEntropy\n"
        "class Mine(CrossEntropy):\n"
        "    def __init__(self, tokenizer, decoding, *, width, label_smoothing=0.5):\n"
        "        super().__init__(tokenizer, decoding, label_smoothing=label_smoothing)\n"
    )
    from captioner.training.objectives.table import objective_class

    objective = config.compose(["objective=mine:Mine", "objective.width=3"])["objective"]
    assert objective == {"name": "mine:Mine", "width": 3, "label_smoothing": 0.5}
    assert objective_class(objective) is sys.modules["mine"].Mine


def test_an_own_encoder(mine) -> None:
    (mine / "mine.py").write_text(
        "from captioner.models.encoders.libraries import TimmEncoder\n"
        "class Net(TimmEncoder):\n"
        "    def build(self, network, **options):\n"
        "        assert network == 'Net'\n"
        "        return super().build('test_resnet', **options)\n"
    )
    composed = config.compose(["encoder=mine:Net", "encoder.pretrained=false"])
    model = build_model(composed["encoder"], composed["decoder"], vocabulary_size=11)
    assert type(model.encoder) is sys.modules["mine"].Net


# Own options -------------------------------------------------------------------------------------


@pytest.fixture
def myconf(mine) -> Path:
    for file, text in {
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /decoder: bigram\n"
        "trainer:\n  max_epochs: 1\n",
        "decoder/bigram.yaml": "name: mine:Bigram\nwidth: 5\n",
        "data/ours.yaml": "format: json\nroot: /ours\ncaptions: null\nimages: null\nholdout: 0.2\n"
        "encoding: utf-8\n",
    }.items():
        path = mine / "myconf" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return mine / "myconf"


def test_a_folder_of_own_options(myconf) -> None:
    overrides = ["experiment=mine", "data=ours"]
    for composed in (
        config.compose(overrides, config_dir="myconf"),
        config.compose([*overrides, f"hydra.searchpath=[file://{myconf}]"]),
    ):
        assert composed["decoder"] == {"name": "mine:Bigram", "width": 5}
        assert (composed["data"]["root"], composed["trainer"]["max_epochs"]) == ("/ours", 1)
    assert "mine" in config.options("experiment", "myconf")
    assert "mine" not in config.options("experiment")
    with pytest.raises(ValueError, match="did you mean mine"):
        config.compose(["experiment=mien"], config_dir="myconf")
    with pytest.raises(FileNotFoundError, match="--config-dir=nowhere: no such folder"):
        config.compose(overrides, config_dir="nowhere")
    changed = config.override(config.compose(), ["data=ours"], config_dir="myconf")
    assert changed["data"]["root"] == "/ours"


def test_the_command_line_takes_them(myconf, tiny, capsys) -> None:
    smaller = [line for line in tiny if not line.startswith("decoder.")]
    assert main(["train", *smaller, "--config-dir", "myconf", "experiment=mine"]) == 0
    assert "epoch   2/2" in capsys.readouterr().out
    assert main(["train", "--config-dir", "nowhere", "experiment=mine"]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_own_options_of_the_data_group(myconf, scenes, capsys) -> None:
    root = [f"data.root={scenes}", "data.captions=captions.jsonl"]
    assert main(["data", "stats", "data=ours", *root, "--config-dir", "myconf"]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["data", "stats", "data=ours", *root]) == 1
    assert "data='ours' is not known" in capsys.readouterr().err
