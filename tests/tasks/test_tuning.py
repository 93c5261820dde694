"""What makes a training fit the machine, with every task: the compiler, half precision, finders, accumulation."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from ika_lightning.attention import DotProduct, IKANDirect
from ika_lightning.attention.graph import KernelGATConv
from ika_lightning.cli import main
from ika_lightning.data import NodeClassificationData, RegressionData, TextClassificationData, TranslationData
from ika_lightning.tasks import NodeClassification, Regression, TextClassification, Translation, base

SIZES: dict[str, Any] = {"width": 8, "depth": 1, "num_heads": 2}
ATTENTION = partial(IKANDirect, num_samples=3)
TASKS: dict[str, tuple[Callable, Callable]] = {
    "regression": (
        partial(Regression, attention=ATTENTION, **SIZES),
        partial(RegressionData, "airline_passengers", batch_size=32),
    ),
    "text_classification": (
        partial(TextClassification, ATTENTION, **SIZES),
        partial(TextClassificationData, "languages", unit="subword", vocab_size=300),
    ),
    "translation": (
        partial(Translation, ATTENTION, **SIZES),
        partial(TranslationData, "dates", vocabulary=300, batch_tokens=256, batch_size=4),
    ),
    "node_classification": (
        partial(NodeClassification, partial(KernelGATConv, num_samples=3), width=4, num_heads=2),
        partial(NodeClassificationData, "karate", batch_size=1),
    ),
}
every_task = pytest.mark.parametrize("name", TASKS)
PLAIN: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(name: str, task: dict[str, Any] | None = None, **options: Any) -> base.Task:
    model, data = TASKS[name]
    torch.manual_seed(0)
    fitted: base.Task = model(**(task or {}))
    Trainer(**{"max_steps": 3, "limit_val_batches": 1, **PLAIN, **options}).fit(fitted, data())
    return fitted


# the compiler's own filter hides it, unless warnings are errors
kept_to_itself = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def has_compiled(net: torch.nn.Module) -> bool:
    return any(module._compiled_call_impl is not None for module in net.modules())


@pytest.mark.slow
@kept_to_itself
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # what the compiler does with autograd functions
@pytest.mark.parametrize("name", sorted(set(TASKS) - {"node_classification"}))  # PyG breaks that graph
def test_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's own operators in one graph: C++ would take minutes to compile
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_(module, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    # without dropout, whose backward this backend gives other strides than it expects
    compiled, plain = fit(name, {"compile": True, "dropout": 0.0}), fit(name, {"dropout": 0.0})
    assert has_compiled(compiled.net) and not has_compiled(plain.net)
    assert not counters["graph_break"]
    torch.testing.assert_close(dict(compiled.state_dict()), dict(plain.state_dict()))  # keys, and values


@pytest.mark.slow
@kept_to_itself
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated")  # PyTorch's use of it
def test_compiled_by_the_default_compiler() -> None:
    torch.compiler.reset()
    fitted = fit("regression", {"attention": DotProduct, "compile": True}, max_steps=1)
    assert all(value.isfinite().all() for value in fitted.state_dict().values())


@every_task
def test_half_precision_clipping_and_accumulation(name: str) -> None:
    start = fit(name, max_steps=0)
    fitted = fit(name, precision="bf16-mixed", gradient_clip_val=1.0, accumulate_grad_batches=2, max_steps=2)
    assert fitted.trainer.global_step == 2
    moved = [not value.equal(start.state_dict()[key]) for key, value in fitted.net.state_dict(prefix="net.").items()]
    assert any(moved)
    for key, value in fitted.state_dict().items():
        assert value.isfinite().all() and value.dtype != torch.bfloat16, key


class TestLearningRateFinder:
    def fit(self, name: str, scheduler: Callable | None = None) -> base.Task:
        finder = LearningRateFinder(min_lr=1e-4, max_lr=0.1, num_training_steps=15)
        task = {"scheduler": scheduler, "optimizer": partial(torch.optim.SGD, lr=7.0)}
        fitted = fit(name, task, callbacks=[finder], max_steps=16)
        assert fitted.lr is not None and 1e-4 <= fitted.lr <= 0.1
        return fitted

    @every_task
    def test_training_starts_from_it(self, name: str) -> None:
        fitted = self.fit(name)
        assert fitted.trainer.optimizers[0].param_groups[0]["lr"] == fitted.lr

    def test_so_does_a_schedule(self) -> None:
        fitted = self.fit("regression", partial(CosineAnnealingLR, T_max=9))
        assert fitted.trainer.lr_scheduler_configs[0].scheduler.base_lrs == [fitted.lr]

    def test_it_is_the_highest_of_a_cycle(self) -> None:
        fitted = self.fit("translation", partial(OneCycleLR, max_lr=7.0, total_steps=99, cycle_momentum=False))
        assert fitted.trainer.optimizers[0].param_groups[0]["max_lr"] == fitted.lr

    def test_from_the_command_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["fit", "--model", "Regression", "--data", "RegressionData", "--data.name", "airline_passengers",
              "--model.width", "16", "--trainer.max_epochs", "40", "--trainer.callbacks+=LearningRateFinder",
              "--trainer.callbacks.num_training_steps=30", "--trainer.enable_progress_bar", "false",
              "--pictures", "0"])  # fmt: skip
        assert "best checkpoint:" in capsys.readouterr().out


class TestBatchSizeFinder:
    @every_task
    def test_training_goes_on_with_it(self, name: str) -> None:
        finder = BatchSizeFinder(max_val=8, steps_per_trial=1)
        fitted = fit(name, callbacks=[finder], max_steps=2)
        assert fitted.trainer.datamodule.batch_size == finder.optimal_batch_size == 8

    def test_tokens_of_translation(self) -> None:
        finder = BatchSizeFinder(batch_arg_name="batch_tokens", init_val=64, max_val=256, steps_per_trial=1)
        fitted = fit("translation", callbacks=[finder], max_steps=2)
        assert fitted.trainer.datamodule.batch_tokens == 256

    def test_a_whole_graph_has_no_batch_size(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["fit", "--model", "NodeClassification", "--data", "NodeClassificationData", "--data.name", "karate",
                  "--trainer.callbacks+=BatchSizeFinder"])  # fmt: skip
        assert capsys.readouterr().err == (
            "error: BatchSizeFinder changes batch_size, and the data has none; give --data.batch_size 1\n"
        )


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(module: torch.nn.Module) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx")

    monkeypatch.setattr(torch.nn.Module, "compile", refuse)
    with pytest.raises(SystemExit):
        main(["fit", "--model", "Regression", "--data", "RegressionData", "--data.name", "co2", "--model.compile=true"])
    assert capsys.readouterr().err == (
        "error: torch.compile found no C++ compiler: install g++, name another in CXX, or leave out --model.compile\n"
    )
