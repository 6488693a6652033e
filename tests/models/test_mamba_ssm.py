import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.models import mamba_ssm
from elmanctl.models.backends import BACKENDS
from elmanctl.models.mamba2 import Mamba2Layer
from elmanctl.models.mamba_ssm import load, scan_on_cuda
from tests.models.layers import build_model
from tests.models.test_mamba2 import SIZES, make_config

ROOT = Path(__file__).parents[2]

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_stand_in_takes_the_extensions_name_during_the_import_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extension = "selective_scan_cuda"
    seen: list[Any] = []
    monkeypatch.delitem(sys.modules, extension, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        mamba_ssm, "import_third_party", lambda name: seen.append(sys.modules.get(extension))
    )
    load.__wrapped__("anything")
    assert extension not in sys.modules
    with pytest.raises(EnvironmentNotReady, match=r"selective_scan_cuda\.fwd belongs to Mamba-1"):
        seen[0].fwd  # noqa: B018
    assert not hasattr(seen[0], "__wrapped__")


def test_real_extension_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(sys)("selective_scan_cuda")
    seen = []
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", real)
    monkeypatch.setattr(
        mamba_ssm,
        "import_third_party",
        lambda name: seen.append(sys.modules["selective_scan_cuda"]),
    )
    load.__wrapped__("anything")
    assert seen == [real] and sys.modules["selective_scan_cuda"] is real


def test_package_that_is_missing_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(EnvironmentNotReady, match="mamba-ssm cannot be imported") as refused:
        load.__wrapped__("mamba_ssm")
    assert "scripts/install-mamba-ssm" in (refused.value.hint or "")


def unavailable_reason(device: str = "cuda") -> str | None:
    return BACKENDS["mamba-ssm"].unavailable_reason(device)


def test_backend_names_what_is_missing_one_thing_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import triton

    assert unavailable_reason("cpu") == "its kernels run on cuda, not on cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unavailable_reason() == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for version, fault in (
        ("3.4.1", "triton is 3.4.1, but must be 3.5 or newer"),
        ("3.5.0+git1", None),
        ("3.10.0", None),
        ("4.0.0", None),
    ):
        monkeypatch.setattr(triton, "__version__", version)
        assert unavailable_reason() == fault
    for package in ("transformers", "einops", "triton", "mamba_ssm"):
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, package=package: None if name == package else 1
        )
        assert unavailable_reason() == f"{package} is not installed"


def test_backend_is_refused_where_it_cannot_run_and_auto_takes_torch() -> None:
    assert build_model(make_config(), seed=0).backend == "torch"
    with pytest.raises(EnvironmentNotReady, match="mamba-ssm") as refused:
        build_model(make_config(), seed=0, backend="mamba-ssm")
    assert "scripts/install-mamba-ssm" in (refused.value.hint or "")


def test_weights_are_the_same_on_both_backends() -> None:
    torch.manual_seed(2)
    ours = Mamba2Layer(make_config(), "torch").state_dict()
    torch.manual_seed(2)
    theirs = Mamba2Layer(make_config(), "mamba-ssm").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_kernels_are_called_with_what_the_layer_means(monkeypatch: pytest.MonkeyPatch) -> None:
    package = load("mamba_ssm.ops.triton.ssd_combined")
    minimal = load("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete

    def combined(
        x: Any,
        dt: Any,
        A: Any,  # noqa: N803
        B: Any,  # noqa: N803
        C: Any,  # noqa: N803
        chunk_size: int,
        **options: Any,
    ) -> Any:
        assert options.keys() == {"initial_states", "return_final_states"}
        states = options["initial_states"]
        return minimal(
            x * dt.unsqueeze(-1),
            A * dt,
            *(t.expand(-1, -1, x.shape[2], -1) for t in (B, C)),
            x.shape[1],
            None if states is None else states.unsqueeze(1),
        )

    monkeypatch.setattr(package, "mamba_chunk_scan_combined", combined)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    layer = Mamba2Layer(make_config(), "torch")
    on_kernels = Mamba2Layer(make_config(), "mamba-ssm")
    on_kernels.load_state_dict(layer.state_dict())
    u = torch.randn(2, 30, 12)
    (y, state), (same, same_state) = layer(u), on_kernels(u)
    torch.testing.assert_close(same, y)
    (y, state), (same, same_state) = layer(u, state), on_kernels(u, same_state)
    torch.testing.assert_close(same, y)
    torch.testing.assert_close(same_state, state)


@pytest.mark.slow
def test_kernels_give_what_the_loop_gives_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.interpreted_mamba_ssm"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads(done.stdout.splitlines()[-1])
    assert len(cases) == 2
    for case, errors in cases.items():
        for name, error in errors.items():
            assert error < 2e-6, f"{case}: {name} {error:.1e}"


def test_kernels_refuse_what_they_do_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys, step = torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 3), torch.zeros(1, 2, 1)
    with pytest.raises(InvalidConfiguration, match="runs on cuda, but x is on cpu"):
        scan_on_cuda(x, step, torch.ones(1), keys, keys)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    with pytest.raises(InvalidConfiguration, match="does not support float64"):
        scan_on_cuda(x.double(), step, torch.ones(1), keys, keys)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(torch.float32, 1e-2, marks=GPU),
        pytest.param(torch.bfloat16, 3e-2, marks=GPU),
    ],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("size", SIZES)
def test_kernels_give_what_plain_torch_gives_on_a_gpu(
    size: str, dtype: torch.dtype, tolerance: float
) -> None:
    found = {}
    for backend in ("torch", "mamba-ssm"):
        torch.manual_seed(1)
        layer = Mamba2Layer(make_config(**SIZES[size]), backend).to("cuda", dtype)
        generator = torch.Generator().manual_seed(2)
        u = torch.randn(2, 600, layer.config.dim, generator=generator)
        u = u.to("cuda", dtype).requires_grad_()
        first, state = layer(u[:, :257])
        second, state = layer(u[:, 257:], state)
        y = torch.cat((first, second), dim=1)
        weight = torch.randn(y.shape, generator=generator).to(y)
        ((weight * y).sum() + state.memory.square().sum()).backward()
        named = {name: p.grad for name, p in layer.named_parameters()}
        found[backend] = {"y": y, "memory": state.memory, "u": u.grad, **named}
    for name, expected in found["torch"].items():
        error = (found["mamba-ssm"][name].float() - expected.float()).norm()
        assert error < tolerance * expected.float().norm(), name


def test_script_installs_the_pinned_package_and_compiles_nothing(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$MAMBA_FORCE_BUILD $MAMBA_SKIP_CUDA_BUILD $*"\n')
    python.chmod(0o755)
    script = ROOT / "scripts" / "install-mamba-ssm"
    assert os.access(script, os.X_OK)
    done = subprocess.run([script, python], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        *("TRUE", "TRUE", "-m", "pip", "install", "--no-deps", "--no-build-isolation"),
        "mamba-ssm==2.3.2.post1",
    ]
