"""conf/ and the code agree: every YAML composes, builds and lists all options of its component."""

import re
from pathlib import Path

import pytest
import yaml

from captioner import config, torch_optimizers
from captioner.data.datamodule import CaptionDataModule
from captioner.data.read import DATASETS, read_records
from captioner.decoding.options import DecodingOptions
from captioner.models.captioning import build_model
from captioner.models.decoders.table import DECODERS
from captioner.models.encoders.libraries import ENCODERS, build_encoder
from captioner.models.recurrence.table import CELLS
from captioner.tokenizers import TOKENIZERS, build_tokenizer
from captioner.training.callbacks import build_callbacks
from captioner.training.loggers import build_loggers
from captioner.training.objectives.table import objective_class
from captioner.training.optimization import LearnedWeights, Optimization
from captioner.training.schedules import schedule_class
from captioner.training.trainer import TrainerOptions

CONF = config.conf_folder()
# The user does not set these.
GIVEN = {"by_image", "grid", "repeats", "unfreezes", "initialise"}
COMPONENTS = {
    "data": read_records,
    "tokenizer": build_tokenizer,
    "loader": CaptionDataModule,
    "decoding": DecodingOptions,
    "encoder": build_encoder,
    "callbacks": build_callbacks,
    "trainer": TrainerOptions,
    "logger": build_loggers,
    "training": LearnedWeights,
}
OPTIONS = [(group, name) for group in config.groups() for name in config.options(group)]


@pytest.mark.parametrize(
    ("group", "name"), [option for option in OPTIONS if option[0] != "experiment"]
)
def test_a_yaml_lists_every_argument_of_its_component(group: str, name: str) -> None:
    values = config.compose([f"{group}={name}"])[group]
    if group == "decoder":
        sizes = {"vocabulary_size", "feature_size"}
        known = {"name", *config.arguments(DECODERS[name])} - sizes
    elif group in ("objective", "schedule"):
        kind = {"objective": objective_class, "schedule": schedule_class}[group](values)
        known = {"name", *config.arguments(kind)}
    elif group == "optimizer":
        kind = torch_optimizers.table()[values["name"]]
        known = {"name", *config.arguments(Optimization), *torch_optimizers.arguments(kind)}
    else:
        known = set(config.arguments(COMPONENTS[group])) - GIVEN
        known -= {"seed"} if group == "loader" else set()  # it is an option of the run
    assert set(values) == known


@pytest.mark.parametrize("name", config.options("data"))
def test_data_names_a_known_format(name: str) -> None:
    assert config.compose([f"data={name}"])["data"]["format"] in DATASETS


@pytest.mark.parametrize("experiment", config.options("experiment"))
def test_an_experiment_composes_and_builds(experiment: str) -> None:
    composed = config.compose([f"experiment={experiment}", "encoder.pretrained=false"])
    model = build_model(composed["encoder"], composed["decoder"], vocabulary_size=11)
    assert model.decoder.output.out_features == 11
    config.make(DecodingOptions, "decoding", composed["decoding"])
    assert composed["tokenizer"]["name"] in TOKENIZERS


@pytest.mark.parametrize("decoding", config.options("decoding"))
def test_decodings_build(decoding: str) -> None:
    values = config.compose([f"decoding={decoding}"])["decoding"]
    assert config.make(DecodingOptions, "decoding", values).as_dict() == values


DECODINGS = {
    "greedy": {},
    "beam": {"beam_size": 3, "length_penalty": 0.7},
    "consensus": {"beam_size": 20, "length_penalty": 0.7, "consensus": 5.0},
    "diverse_beam": {"beam_size": 6, "length_penalty": 0.7, "groups": 3},
    "sample": {"temperature": 1.0},
    "top_k": {"temperature": 1.0, "top_k": 10},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
}


def test_decodings_inherit_from_greedy_whose_values_are_the_defaults() -> None:
    assert set(DECODINGS) == set(config.options("decoding"))
    for name, changes in DECODINGS.items():
        values = config.compose([f"decoding={name}"])["decoding"]
        assert values == {**DecodingOptions().as_dict(), **changes}
        assert list(values) == list(DecodingOptions().as_dict())
    with pytest.raises(ValueError, match="decoding=beam has beam_size.*mean decoding.beam_size"):
        config.compose(["decoding=beam", "decoding.beam_sise=3"])


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_chosen_by_one_override(cell: str) -> None:
    composed = config.compose([f"decoder.cell={cell}", "encoder.pretrained=false"])
    model = build_model(composed["encoder"], composed["decoder"], vocabulary_size=11)
    assert isinstance(model.decoder.recurrence.cells[0], CELLS[cell])


def lines(changes: list) -> list[str]:
    return [change.input_line for change in changes]


def test_a_plus_before_an_existing_key_is_removed() -> None:
    overrides = ["+optimizer.lr=0.1", "++optimizer.lr=0.2", "+trainer.max_depth=1"]
    assert lines(config.checked(overrides)) == ["optimizer.lr=0.1", *overrides[1:]]
    assert config.compose(config.checked(overrides[:1]))["optimizer"]["lr"] == 0.1


def test_any_network_of_timm_or_torchvision_is_chosen_by_one_override() -> None:
    composed = config.compose(["encoder=resnet18"])["encoder"]
    assert (composed["library"], composed["network"]) == ("timm", "resnet18")
    composed = config.compose(["encoder=googlenet"])["encoder"]
    assert (composed["library"], composed["network"]) == ("torchvision", "googlenet")
    assert {composed["library"], "bundled"} <= set(ENCODERS)
    assert lines(config.checked(["encoder=resnet18,resnet34"], several=True)) == [
        "encoder=timm",
        "encoder.network=resnet18,resnet34",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=dmeo", "did you mean demo"),
        ("decodr.cell=gru", "did you mean decoder"),
        ("objective.samples=3", r"\(an option of objective=scst\)$"),
        ("schedule.factor=0.5", r"\(an option of schedule=plateau\)$"),
        ("optimizer.momentum=0.5", r"\(an option of optimizer=sgd\)$"),
        ("training.optimizer=sgd", r"\(did you mean optimizer=sgd\?\)$"),
        ("optimizer.lr=abc", "optimizer.lr='abc' is not accepted; choose a number"),
        ("decoder.cel=gru", "did you mean decoder.cell"),
        ("optimizer.learning_rate=1", "optimizer=adamw has name, lr"),
        ("encoder=resnet51", "did you mean resnet5"),
        ("data=flickr9k", "did you mean flickr8k"),
        ("seed.x=3", "seed is a single value"),
        ("decoder.cell", "write key=value"),
        ("decoder.cell=", None),
        ("a b=c", "write key=value"),
    ],
)
def test_a_mistyped_override_is_refused_in_one_line(override: str, message: str | None) -> None:
    if message is None:
        assert config.compose([override])["decoder"]["cell"] == ""
        return
    with pytest.raises(ValueError, match=message) as error:
        config.compose([override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["decoder.cell=lsmt"],
            "decoder.cell='lsmt' is not known; choose rnn, gru, lstm, .*did you mean lstm",
        ),
        (["decoder.hidden_size=many"], "decoder.hidden_size='many' .*whole number"),
        (["decoder.dropout=true"], "decoder.dropout=True .*a number"),
        (["encoder.trainable=1"], "encoder.trainable=1 .*true or false"),
        (["encoder.image_size=big"], "whole number or null"),
        (["decoder.name=shw_tell"], "did you mean show_tell"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    composed = config.compose(["encoder.pretrained=false", *overrides])
    with pytest.raises(ValueError, match=message) as error:
        build_model(composed["encoder"], composed["decoder"], vocabulary_size=11)
    assert "\n" not in str(error.value)


def test_a_tilde_is_the_home_folder() -> None:
    assert config.compose(["data.root=~/x"])["data"]["root"] == str(Path.home() / "x")


def test_overrides_of_a_checkpoint_do_not_change_other_options() -> None:
    trained = config.compose(["data=flickr8k", "data.root=/somewhere", "decoder.cell=gru"])
    changed = config.override(trained, ["data.root=/elsewhere", "decoding=beam"])
    assert changed["data"] == {**trained["data"], "root": "/elsewhere"}
    assert changed["decoding"] == config.compose(["decoding=beam"])["decoding"]
    assert changed["decoder"] == trained["decoder"]
    assert trained["data"]["root"] == "/somewhere"
    with pytest.raises(ValueError, match="did you mean decoding.beam_size"):
        config.override(trained, ["decoding.beam=3"])
    with pytest.raises(ValueError, match="train -m"):
        config.override(trained, ["decoding.beam_size=1,3"])


@pytest.mark.reliability("files decide nothing")
def test_nothing_in_conf_names_code() -> None:
    for path in Path(CONF).rglob("*.yaml"):
        assert "_target_" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(Path(CONF).glob("*/*.yaml")), ids=lambda path: path.name)
def test_every_option_has_a_comment(path: Path) -> None:
    if path.parent.name != "experiment":  # where options of other groups are set
        lines = path.read_text(encoding="utf-8").splitlines()
        values = [line for line in lines if re.match(r" *\w+: \S", line)]
        bare = [line for line in values if " #" not in line and not line.startswith("defaults:")]
        assert [line for line in bare if not line.startswith("name:")] == []


def test_numbers_in_yaml_are_numbers() -> None:
    """YAML 1.1 reads 1e-3 as a string."""
    for path in Path(CONF).rglob("*.yaml"):
        for value in _leaves(yaml.safe_load(path.read_text(encoding="utf-8"))):
            if isinstance(value, str):
                with pytest.raises(ValueError):
                    float(value)


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML is built without libyaml")
def test_libyaml_reads_what_the_python_parser_reads() -> None:
    """The tests parse with libyaml, users with the Python parser."""
    for path in Path(CONF).rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert yaml.load(text, yaml.CSafeLoader) == yaml.safe_load(text)


def _leaves(tree: object) -> list:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in _leaves(value)]
    return [tree]


def test_the_options_of_a_group_do_not_depend_on_earlier_overrides() -> None:
    before = config.options("optimizer")
    assert config.compose(["optimizer=radam"])["optimizer"]["name"] == "radam"
    assert "radam" not in before
    assert config.options("optimizer") == before
