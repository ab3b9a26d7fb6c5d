"""Fixtures of all tests. captioner is imported first: it guards the import of torchvision."""

import captioner  # noqa: F401, I001
import copy
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import omegaconf._utils
import pytest
import torch
import yaml
from hydra._internal.hydra import Hydra
from support.battery import Battery

TINY = (
    "encoder=test_resnet",
    "encoder.pretrained=false",
    "encoder.image_size=32",
    "decoder.embedding_size=16",
    "decoder.hidden_size=24",
    "loader.batch_size=20",
    "optimizer.lr=0.01",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "logger.tensorboard=false",
)
"""Overrides that make a training of a second or two, with an untrained encoder."""


# No test may depend on time: machines are slow, or busy. Nor on chance: a failure can be repeated.
for name, examples in {"any": 100, "battery": 300}.items():
    hypothesis.settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile("any")

torch.set_num_threads(1)  # small sizes: a second thread only waits
os.environ["OMP_NUM_THREADS"] = "1"  # and in the processes that tests start

FOLDER = Path(__file__).parent
LONGEST = """
    test_types training/test_devices test_golden test_disks training/test_moments test_cli
    models/decoders/test_learning test_conf
    training/test_sweeps models/decoders/test_decoders verbs/test_endings training/test_train
    training/test_resuming models/test_encoders training/test_unfreezing test_api
    training/test_self_critical evaluation/test_evaluate checkpoints/test_flipped_bits
""".split()
"""The files that take longest, longest first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """--reliability-page FILE: where the table of the battery is written."""
    parser.addoption("--reliability-page", type=Path, help="page whose table is replaced")


def pytest_configure(config: pytest.Config) -> None:
    """Count the cases of the battery."""
    config.pluginmanager.register(Battery())


@pytest.hookimpl(trylast=True)  # of the tests that are selected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the longest files first: a worker that starts one last works alone at the end.

    With ``--dist worksteal`` each worker begins with a part of the list, of which others take the
    end when they have nothing left to do; each part begins with its share of the longest tests.
    """
    places = {FOLDER / f"{name}.py": place for place, name in enumerate(LONGEST)}
    missing = [path for path in places if not path.is_file()]
    assert not missing, missing
    items.sort(key=lambda item: places.get(item.path, len(places)))
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    long = [item for item in items if item.get_closest_marker("minute")]
    rest = [item for item in items if item not in long]
    cuts = [len(rest) * worker // count for worker in range(count + 1)]
    items[:] = [
        item
        for worker in range(count)
        for item in (*long[worker::count], *rest[cuts[worker] : cuts[worker + 1]])
    ]


def _use_libyaml() -> None:
    """Let OmegaConf parse YAML with libyaml: composing a configuration takes a quarter less."""
    python_loader = omegaconf._utils.get_yaml_loader

    def get_yaml_loader() -> type:
        class Loader(yaml.cyaml.CParser, python_loader()):  # type: ignore[misc]
            def __init__(self, stream: Any) -> None:
                yaml.cyaml.CParser.__init__(self, stream)
                yaml.constructor.SafeConstructor.__init__(self)
                yaml.resolver.Resolver.__init__(self)

        return Loader

    omegaconf._utils.get_yaml_loader = get_yaml_loader


if yaml.__with_libyaml__:
    _use_libyaml()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _compose_once() -> None:
    """Let Hydra compose the same overrides of the same files once: it takes a tenth of a second.

    The key has all arguments, the current folder, and time and size of each YAML file in folders
    that the overrides name; the package's own do not change during the tests.
    """
    original, composed = Hydra.compose_config, {}

    def compose_config(self: Hydra, *args: Any, **options: Any) -> Any:
        named = re.findall(r"file://([^\]'\",]+)", repr((args, options)))
        files = sorted(path for folder in named for path in Path(folder).rglob("*.yaml"))
        stamps = tuple((str(path), _stamp(path)) for path in files)
        key = (repr((args, options)), os.getcwd(), stamps)
        if key not in composed:
            composed[key] = original(self, *args, **options)
        return copy.deepcopy(composed[key])

    Hydra.compose_config = compose_config  # type: ignore[method-assign]


_compose_once()


def _ask_for_no_mode() -> None:
    """Hydra composes a job's configuration once more to read ``hydra.mode``, which ours leaves out.

    It still does if an override, or a folder of YAML files beside the package's, may set it.
    """
    original = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        places = self.config_loader.get_search_path().get_path()
        own = [place.provider for place in places if place.provider not in ("hydra", "main")]
        may_be_set = own != ["schema"] or any("hydra." in line for line in overrides)
        return original(self, config_name, overrides) if may_be_set else None

    Hydra.get_mode = get_mode  # type: ignore[method-assign]


_ask_for_no_mode()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("CAPTIONER_CACHE")
    os.environ["CAPTIONER_CACHE"] = str(tmp_path_factory.mktemp("features"))
    yield
    if before is None:
        del os.environ["CAPTIONER_CACHE"]
    else:
        os.environ["CAPTIONER_CACHE"] = before


@pytest.fixture
def cut_short(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Path, int], Path]:
    """Trains until a power cut in the middle of a step; returns the last checkpoint."""
    from captioner.checkpoints import checkpoint
    from captioner.runs import LAST
    from captioner.training.module import LitCaptioner
    from captioner.training.train import train

    original = LitCaptioner.training_step

    def cut(config: Any, folder: Path, step: int) -> Path:
        def crash(self: Any, batch: Any, batch_index: int) -> Any:
            if self.global_step == step:
                raise RuntimeError("power cut")
            return original(self, batch, batch_index)

        with monkeypatch.context() as patch:
            patch.setattr(LitCaptioner, "training_step", crash)
            with pytest.raises(RuntimeError, match="power cut"):
                train(config, folder)
        return checkpoint.find(folder, name=LAST)

    return cut


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a small dataset of drawn scenes."""
    from captioner.data.shapes import draw

    root = tmp_path_factory.mktemp("data") / "shapes"
    return draw(root, seed=0, train=24, dev=8, test=6, size=48, progress=False).parent


@pytest.fixture(scope="session")
def tiny(scenes: Path) -> tuple[str, ...]:
    """Overrides of a tiny training on those scenes."""
    return (*TINY, f"data.root={scenes}")


@pytest.fixture(scope="session")
def run(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder of a model that has learned a little; tests must not change it."""
    from captioner.config import compose
    from captioner.training.train import train

    learning = (
        "encoder=efficientnet_lite0",
        "encoder.network=efficientnet_lite0",
        "encoder.pretrained=true",
        "encoder.image_size=64",
        "decoder.dropout=0.1",
        "decoder.embedding_size=48",
        "decoder.hidden_size=64",
        "optimizer.lr=0.01",
        "objective.label_smoothing=0.0",
        "loader.batch_size=10",
        "trainer.max_epochs=15",
        "callbacks.patience=0",
    )
    config = compose([*tiny, *learning])
    return train(config, tmp_path_factory.mktemp("runs") / "tiny").folder
