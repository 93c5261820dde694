"""What only a GPU can show: all layers and backends against float64, and tasks that train there.

``make gpu`` runs these; where there is no GPU, IKA_TEST_DEVICE=cpu tries them out.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import four_tasks
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect, KernelGATConv, KernelTransformerConv
from ika_lightning.attention.backends import BACKENDS, Call, choose
from ika_lightning.attention.mask import Mask
from ika_lightning.attention.operation import attend
from ika_lightning.cli import main

DEVICE = os.environ.get("IKA_TEST_DEVICE", "cuda")
ON_DEVICE = {"accelerator": "cpu" if DEVICE == "cpu" else "gpu", "devices": 1}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"),
]

# relative to the largest number of a result or a gradient
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
FACTORS = {"features": (False, True), "exponent": (True, False), "both": (True, True)}


def drawn(factors: str, n: int = 257, m: int = 131, device: str = "cpu") -> dict[str, Tensor | None]:
    """Parts of a call, in float64; heads share keys in twos."""
    generator = torch.Generator().manual_seed(0)
    has_exponent, has_features = FACTORS[factors]
    sizes = {
        "query": (2, 2, n, 61),
        "key": (2, 1, m, 61),
        "query_features": (2, 2, n, 64),
        "key_features": (2, 1, m, 64),
    }
    present = {"query": has_exponent, "key": has_exponent, "query_features": has_features, "key_features": has_features}
    sizes |= {"value": (2, 1, m, 53), "log_magnitude": (2, 1, m)}
    return {
        name: torch.randn(*size, dtype=torch.float64, generator=generator) / size[-1] ** 0.25
        if present.get(name, True)
        else None
        for name, size in sizes.items()
    }


def computed(parts: dict[str, Tensor | None], is_causal: bool, backend: str) -> list[Tensor]:
    """The result and the gradients of all parts."""
    leaves = {name: None if x is None else x.detach().requires_grad_() for name, x in parts.items()}
    keys = torch.arange(leaves["value"].size(-2), device=leaves["value"].device) % 7 != 3
    call = Call(
        **leaves, mask=Mask(keys=keys[None], causal=is_causal), dropout_p=0.0, floor=1e-5, need_weights=False
    ).without_unattended()
    out, _ = attend(call, backend)
    # in float16, PyTorch counts its numbers in float16 as well: NaN beyond 65,504
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64, device=out.device).view_as(out).to(out.dtype)
    present = [x for x in leaves.values() if x is not None]
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), present)]


def assert_near(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    # what is zero, as the gradient of a bias that all keys have, is zero beside the others
    least = 1e-3 * max(right.abs().max() for right in expected)
    for number, (mine, right) in enumerate(zip(ours, expected, strict=True)):
        error = (mine.double().cpu() - right).abs().max() / torch.maximum(right.abs().max(), least)
        assert error < tolerance, f"tensor {number}: {error}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_backends_compute_what_the_reference_does_in_float64(backend, factors, is_causal, dtype) -> None:
    parts = {name: None if x is None else x.to(dtype) for name, x in drawn(factors).items()}
    wide = {name: None if x is None else x.double() for name, x in parts.items()}
    here = {name: None if x is None else x.to(DEVICE) for name, x in parts.items()}
    call = Call(**here, mask=Mask(causal=is_causal), dropout_p=0.0, floor=1e-5, need_weights=False)
    if (reason := BACKENDS[backend].refuses(call.to(torch.float32))) is not None:
        pytest.skip(f"{backend} {reason}")
    assert_near(computed(here, is_causal, backend), computed(wide, is_causal, "reference"), TOLERANCE[dtype])


@pytest.mark.skipif(DEVICE == "cpu" or find_spec("triton") is None, reason="it takes CUDA and Triton")
class TestFused:
    def call(self, dtype: torch.dtype, n: int = 4099) -> Call:
        parts = {name: x.to(DEVICE, dtype) for name, x in drawn("both", n, n).items()}
        return Call(**parts, mask=Mask(), dropout_p=0.0, floor=1e-5, need_weights=False)

    def test_it_is_what_long_calls_with_both_factors_take(self) -> None:
        assert choose(self.call(torch.float32)).name == "fused"

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_two_runs_agree_to_the_bit(self, dtype) -> None:
        parts = {name: x.to(DEVICE, dtype) for name, x in drawn("both", 1031, 1033).items()}
        first, second = (computed(parts, True, "fused") for _ in range(2))
        assert all(x.equal(y) for x, y in zip(first, second, strict=True))

    def test_float32_takes_tf32_where_pytorch_is_told_to(self) -> None:
        parts = {name: x.to(DEVICE, torch.float32) for name, x in drawn("both").items()}
        exact, before = computed(parts, False, "fused"), torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("high")
            rounded = computed(parts, False, "fused")
        finally:
            torch.set_float32_matmul_precision(before)
        assert not rounded[0].equal(exact[0])
        assert_near(rounded, [x.double().cpu() for x in exact], 1e-2)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    layer.__name__: functools.partial(layer, 48, 4, batch_first=True)
    for layer in (DotProduct, RBF, IKANDirect, IKAN, MIKAN)
}
CONVOLUTIONS = {
    conv.__name__: functools.partial(conv, 12, 5, heads=3) for conv in (KernelGATConv, KernelTransformerConv)
}


def compared(module: nn.Module, run: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> None:
    """A module on the CPU in float64, and the same on the device in float32."""
    results = []
    for where, dtype in (("cpu", torch.float64), (DEVICE, torch.float32)):
        module.to(where, dtype).zero_grad()
        leaf = x.to(where, dtype).requires_grad_()
        out = run(module, leaf)
        out.square().sum().backward()
        results.append(
            [y.detach() for y in (out, leaf.grad, *(p.grad for p in module.parameters() if p.grad is not None))]
        )
    assert_near(results[1], results[0], 2e-3)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_what_they_do_on_a_cpu(name, is_causal) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    compared(
        layer, lambda module, x: module(x, x, x, need_weights=False, is_causal=is_causal)[0], torch.randn(2, 67, 48)
    )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_compute_what_they_do_on_a_cpu(name) -> None:
    torch.manual_seed(0)
    edges = torch.randint(41, (2, 307))
    compared(CONVOLUTIONS[name]().eval(), lambda module, x: module(x, edges.to(x.device)), torch.randn(41, 12))


# PyTorch says so of what its own compiler does
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compile_without_a_break_in_the_graph(name) -> None:
    torch.manual_seed(0)
    results: list[tuple[torch.Tensor, ...]] = []
    layer, x = LAYERS[name]().eval().to(DEVICE), torch.randn(2, 67, 48, device=DEVICE, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    for module in (compiled, layer):
        out, _ = module(x, x, x, need_weights=False)
        results.append((out, *torch.autograd.grad(out.sin().sum(), x)))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    four_tasks.write_files(folder)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("task", four_tasks.TASKS)
def test_tasks_train(task, precision, files, tmp_path) -> None:
    seed_everything(1, verbose=False)
    model, data = four_tasks.build(task, files)
    trainer = Trainer(
        default_root_dir=tmp_path, **ON_DEVICE, precision=precision, max_steps=5, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(model, data)
    assert trainer.global_step == 5
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(math.isfinite(value) for value in trainer.test(model, data, verbose=False)[0].values())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_resumes_to_the_bit(files, tmp_path) -> None:
    def fit(epochs: int, checkpoint: Path | None = None) -> Trainer:
        seed_everything(1, verbose=False)
        model, data = four_tasks.build("regression", files)
        # a schedule that ends with the training would be another in half of it
        model.scheduler = None
        trainer = Trainer(
            default_root_dir=tmp_path, **ON_DEVICE, max_epochs=epochs, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, deterministic=True,
        )  # fmt: skip
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        return trainer

    fit(1).save_checkpoint(tmp_path / "half.ckpt")
    resumed, whole = (trainer.lightning_module.state_dict() for trainer in (fit(2, tmp_path / "half.ckpt"), fit(2)))
    assert all(x.equal(whole[name]) for name, x in resumed.items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_is_trained_tested_and_reported_from_the_command_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("a,b,y\n" + "".join(f"{i},{i % 3},{i * i % 7}\n" for i in range(40)))
    quiet = ["--trainer.accelerator", ON_DEVICE["accelerator"], "--trainer.devices", "1"]
    quiet += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    data = ["--data", "RegressionData", "--data.path", "rows.csv", "--data.target", "y"]
    main(["fit", "--model", "Regression", "--model.width", "16", *data, "--trainer.max_epochs", "1", *quiet])
    checkpoint = "runs/rows/version_0/checkpoints/best.ckpt"
    main(["test", "--ckpt_path", checkpoint, *quiet])
    main(["report", "--ckpt_path", checkpoint, *quiet])
    assert "<html" in Path("report/report.html").read_text()
