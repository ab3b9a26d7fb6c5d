"""Hostile or damaged states of a training get one line before anything of the run changes."""

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.moments import OPTIONS

from captioner.cli import main
from captioner.data.shapes import draw

pytestmark = pytest.mark.reliability("limits")

OPTIMIZER = ("optimizer_states", 0)
STATE = (*OPTIMIZER, "state", 0)
GROUP = (*OPTIMIZER, "param_groups", 0)
SCHEDULE = ("lr_schedulers", 0)
LOOP = ("loops", "fit_loop")
TRAINER = ("captioner", "config", "trainer")
CUT = object()
"""In place of a value: the key is removed."""

# Where a value is replaced, by what (a function: of the old value), and a part of the error.
CASES: dict[str, tuple[tuple[tuple[Any, ...], Any, str], ...]] = {
    "optimizer": (
        ((*STATE, "exp_avg"), torch.zeros(3), "exp_avg of the optimizer has shape [3]"),
        ((*STATE, "exp_avg"), lambda old: old * math.nan, "values that are not finite"),
        ((*STATE, "exp_avg"), lambda old: old.long(), "values that are not finite"),
        ((*STATE, "exp_avg"), "x", "exp_avg of the optimizer is 'x'"),
        ((*STATE, "exp_avg"), CUT, "has other states than step, exp_avg"),
        ((*STATE, "step"), torch.ones(3), "step of the optimizer has shape [3]"),
        ((*STATE, "step"), torch.tensor(math.inf), "values that are not finite"),
        ((*STATE, "step"), "7", "step of the optimizer is '7'"),
        (STATE, "x", "has other states"),
        ((*OPTIMIZER, "state"), "x", "states of the optimizer are 'x'"),
        ((*OPTIMIZER, "state", 999), {}, "states of other parameters"),
        ((*OPTIMIZER, "param_groups"), [], "groups of the optimizer are []"),
        ((*GROUP, "params"), lambda old: [0] * len(old), "has shape"),
        ((*GROUP, "params"), lambda old: [[0]] * len(old), "number of parameters"),
        ((*GROUP, "lr"), "x", "lr of the optimizer is 'x'"),
        ((*GROUP, "lr"), math.nan, "lr of the optimizer is nan"),
        ((*GROUP, "lr"), -1.0, "lr of the optimizer is -1.0"),
        ((*GROUP, "lr"), CUT, "lr of the optimizer is None"),
        ((*GROUP, "betas"), (2.0, "x"), "betas of the optimizer is 'x'"),
        ((*GROUP, "maximize"), True, "maximize of the optimizer is True"),
        ((*GROUP, "fused"), "x", "fused of the optimizer is 'x'"),
        (("optimizer_states",), [], "another number of optimizers"),
    ),
    "schedule": (
        ((*SCHEDULE, "step"), "x", "the schedule has 'step'"),
        ((*SCHEDULE, "optimizer"), "x", "the schedule has 'optimizer'"),
        ((*SCHEDULE, "last_epoch"), 10**30, "last_epoch is 1000"),
        ((*SCHEDULE, "last_epoch"), -5, "last_epoch is -5"),
        ((*SCHEDULE, "base_lrs"), [math.nan], "base_lrs is [nan]"),
        ((*SCHEDULE, "base_lrs"), [], "base_lrs is []"),
        ((*SCHEDULE, "lr_lambdas"), [{"__call__": 3}], "lr_lambdas is"),
        (SCHEDULE, {}, "KeyError('lr_lambdas')"),
    ),
    "loops": (
        ((*LOOP, "epoch_progress"), "x", "epoch_progress"),
        ((*LOOP, "epoch_progress", "current", "completed"), "x", "completed is 'x'"),
        ((*LOOP, "epoch_loop.batch_progress", "current", "completed"), -7, "completed is -7"),
        ((*LOOP, "epoch_loop.state_dict", "_batches_that_stepped"), "x", "stepped is 'x'"),
        (LOOP, "x", "fit_loop"),
        (("global_step",), -1, "global_step is -1"),
    ),
    "SampleCaptions": tuple(
        (("bytes",), value, f"the size of samples.jsonl is {value!r}")
        for value in (10**30, -1, "x", None, 2.5)
    ),
    "Patience": (
        (("waited",), "x", "the number of validations without a better one is 'x'"),
        (("best",), ["x", 1, 2], "the best score is 'x'"),
        (("best",), 7, "the best score is 7"),
    ),
    "WeightAverage": (
        (("steps",), "x", "steps of callbacks.ema is 'x'"),
        (("average",), {"x": torch.zeros(2)}, "the average of 'x' is not that of a weight"),
        (("average",), lambda old: dict.fromkeys(old, "x"), "is not that of a weight"),
        (("average",), lambda old: {k: t * math.nan for k, t in old.items()}, "the average of"),
    ),
    "RandomState": (
        (("torch",), torch.zeros(3, dtype=torch.uint8), "state is damaged"),
        (("torch",), "x", "state is damaged"),
        (("numpy",), ["MT19937", [10**30] * 624, 1, 0, 0.0], "state is damaged"),
        (("python",), [3, [1], None], "state is damaged"),
        (("others",), "x", "state is damaged"),
    ),
    "trainer": (
        ((*TRAINER, "devices"), 10**9, "trainer.devices=1000000000 is not accepted"),
        ((*TRAINER, "devices"), "abc", "trainer.devices='abc' is not accepted"),
        ((*TRAINER, "num_nodes"), 10**6, "trainer.num_nodes=1000000 is not accepted"),
        ((*TRAINER, "log_every_n_steps"), 0, "trainer.log_every_n_steps=0 is not accepted"),
        ((*TRAINER, "accumulate_grad_batches"), "x", "accumulate_grad_batches='x' is not"),
        ((*TRAINER, "max_epochs"), "x", "trainer.max_epochs='x' is not accepted"),
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restoring")
    data = draw(folder / "shapes", train=24, dev=8, test=6, size=48, progress=False).parent
    more = ("trainer.max_epochs=1", f"data.root={data}", f"run_dir={folder / 'run'}")
    assert main(["train", *OPTIONS, *more]) == 0
    return folder / "run"


def changed(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    if value is CUT:
        del place[path[-1]]
    else:
        place[path[-1]] = value(place[path[-1]]) if callable(value) else value
    return content


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


SLOW = ("optimizer", "RandomState")
PARTS = [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in CASES]


@pytest.mark.parametrize("part", PARTS)
def test_a_strange_state_gets_one_line_and_nothing_is_lost(
    trained, tmp_path, capsys, record_property, part: str
) -> None:
    honest = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    run, bad = Path(shutil.copytree(trained, tmp_path / "run")), []
    names = [name for name in honest["callbacks"] if name.startswith(part)]
    for path, value, message in CASES[part]:
        whole = ("callbacks", names[0], *path) if names else path
        torch.save(changed(honest, whole, value), run / "checkpoints" / "last.ckpt")
        before = contents(tmp_path)
        epochs = [] if "max_epochs" in path else ["trainer.max_epochs=2"]
        status = main(["train", f"resume={run}", *epochs])
        lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        after = contents(tmp_path)
        config = str(run / "config.yaml")  # it has the new options
        lost = [name for name in before if name != config and after.get(name) != before[name]]
        if status != 1 or len(lines) != 1 or message not in lines[0] or lost:
            bad.append(f"{whole}, {value!r:.40}: {status}, {lines}, {lost}")
        if len(lines[0]) > 700 or "unexpected" in lines[0]:
            bad.append(lines[0])
    record_property("cases", len(CASES[part]))
    assert not bad, "\n".join(bad)
