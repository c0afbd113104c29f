"""Networks in other runtimes: the same picture, kept and found again, and never a stale one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError, ModelError, UsageError
from vdeblur.inference import devices, runtimes
from vdeblur.inference.batching import batch_size
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.export import random_pictures, to_openvino
from vdeblur.inference.runtimes import (
    cache_key_parts,
    choice,
    choose_runtime,
    prefers_bf16,
    torch_cpu,
    with_runtime,
)
from vdeblur.inference.runtimes.mimo_unet_rewrite import rewrite
from vdeblur.networks import FAMILIES, Network, share_means
from vdeblur.networks.cost import work_of
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.system import cache
from vdeblur.system.optional import installed

CPU = torch.device("cpu")
RUNTIMES = {"openvino": ("openvino",), "onnxruntime": ("onnx", "onnxruntime")}
SIZES = ((1, 64, 96), (2, 36, 40))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing said in the environment."""
    monkeypatch.setenv("VDEBLUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(runtimes.RUNTIME_VARIABLE, raising=False)
    return tmp_path / "cache"


def need(*packages: str) -> None:
    for package in packages:
        if not installed(package):
            pytest.skip(f"{package} is not installed")


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Any:
    need(*RUNTIMES[request.param])
    return request.param


def network(seed: int = 0, family: str = "mimo-unet", **config: Any) -> Network:
    """Untrained, with a correction of about a trained one's size."""
    torch.manual_seed(seed)
    made = FAMILIES[family](**(config or {"base": 8, "blocks": 1})).eval().requires_grad_(False)
    if isinstance(made, MIMOUNet):
        for parameter in made.feat_extract[5].parameters():
            parameter.mul_(0.1)
    return made


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.suffix != ".part")


def correction(module: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = module.correction(x)  # type: ignore[operator]
    return found


def test_the_correction_is_torchs_to_1e_5_at_any_size(runtime: Any) -> None:
    net = network()
    elsewhere = with_runtime(net, runtime=runtime, device=CPU)
    for frame in SIZES:
        x = random_pictures(*frame)
        assert correction(net, x).abs().max() > 0.01
        assert torch.allclose(correction(elsewhere, x), correction(net, x), rtol=0, atol=1e-5)
        assert torch.allclose(elsewhere(x), net(x), rtol=0, atol=1e-5)


def test_a_deblurrer_gives_torchs_picture(runtime: Any) -> None:
    images = random_pictures(3, 45, 70)
    here = Deblurrer(network(), device="cpu", backend="torch")
    there = Deblurrer(network(), device="cpu", backend=runtime, precision="fp32")
    assert (here.backend, there.backend) == ("torch", runtime)
    assert isinstance(there.network, runtimes.ExternalNetwork)
    assert torch.allclose(there(images), here(images), rtol=0, atol=1e-5)


def test_a_second_run_converts_nothing(
    runtime: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random_pictures(1, 32, 32)
    first = correction(with_runtime(network(), runtime=runtime, device=CPU), x)
    assert len(kept(folder)) == 1
    module = sys.modules[f"vdeblur.inference.runtimes.{runtime}"]
    name = "to_onnx" if runtime == "onnxruntime" else "to_openvino"

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(module, name, refuse)
    assert torch.equal(correction(with_runtime(network(), runtime=runtime, device=CPU), x), first)
    with pytest.raises(AssertionError, match="converted again"):
        with_runtime(network(seed=1), runtime=runtime, device=CPU)


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_a_damaged_entry_is_made_again(runtime: Any, folder: Path, damage: str) -> None:
    x = random_pictures(1, 32, 32)
    with_runtime(network(seed=1), runtime=runtime, device=CPU)
    (wrong,) = kept(folder)
    net = network()
    with_runtime(net, runtime=runtime, device=CPU)
    (right,) = set(kept(folder)) - {wrong}
    for file in right.iterdir():
        if file.suffix != ".json":
            other = (wrong / file.name).read_bytes()
            file.write_bytes(other if damage == "other" else b"")
    for _ in range(2):
        elsewhere = with_runtime(net, runtime=runtime, device=CPU)
        assert torch.allclose(correction(elsewhere, x), correction(net, x), rtol=0, atol=1e-5)


def test_without_a_cache_it_runs_all_the_same(
    runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VDEBLUR_CACHE", str(tmp_path / "file" / "below"))
    x, net = random_pictures(1, 32, 32), network()
    elsewhere = with_runtime(net, runtime=runtime, device=CPU)
    assert torch.allclose(correction(elsewhere, x), correction(net, x), rtol=0, atol=1e-5)


def test_a_full_disk_under_the_cache_is_told_and_left_as_it_was(
    runtime: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path, **_: object) -> None:
        (target / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vdeblur.inference.runtimes.conversion.shutil.copytree", full)
    notes: list[str] = []
    x, net = random_pictures(1, 32, 32), network()
    elsewhere = with_runtime(net, runtime=runtime, device=CPU, note=notes.append)
    assert torch.allclose(correction(elsewhere, x), correction(net, x), rtol=0, atol=1e-5)
    (note,) = notes
    assert note.startswith(f"{runtimes.NOT_KEPT} in {folder}")
    assert not [path for path in folder.rglob("*") if path.is_file()]
    # Said of every use, though it was found before any picture came.
    deblurrer = Deblurrer(network(), device="cpu", backend=runtime, precision="fp32")
    assert list(deblurrer.notes.setup) == notes


def test_a_disk_too_full_to_convert_on_is_told(
    runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    module = sys.modules[f"vdeblur.inference.runtimes.{runtime}"]
    name = "to_onnx" if runtime == "onnxruntime" else "to_openvino"
    monkeypatch.setattr(module, name, full)
    with pytest.raises(ModelError, match=r"could not be converted in .*: free space there"):
        with_runtime(network(), runtime=runtime, device=CPU)


def test_keys_tell_apart_all_that_matters() -> None:
    net = network(family="mimo-unet-cfa", base=4, blocks=1, scales=2)
    parts = cache_key_parts(net, backend="a")
    assert parts is not None
    keys = {cache.key_of(parts)}
    for change in parts:
        keys.add(cache.key_of(parts | {change: "other"}))
    assert len(keys) == len(parts) + 1
    assert {"vdeblur", "torch", "sources", "parameters", "config", "stage"} <= set(parts)
    net.stage = "fused"
    assert cache_key_parts(net, backend="a") != parts
    assert cache_key_parts(net, backend="b") == cache_key_parts(net) | {"backend": "b"}  # type: ignore[operator]


def test_stages_are_converted_apart(runtime: Any) -> None:
    net = network(family="mimo-unet-cfa", base=4, blocks=1, scales=2)
    x = random_pictures(1, 32, 32)
    outputs = []
    for stage in net.stages:
        net.stage = stage
        outputs.append(correction(with_runtime(net, runtime=runtime, device=CPU), x))
        assert torch.allclose(outputs[-1], correction(net, x), rtol=0, atol=1e-5)
    full, fused = outputs
    assert not torch.allclose(full, fused, rtol=0, atol=1e-3)


def test_tiles_that_share_means_are_torchs(runtime: Any) -> None:
    net = network(family="mimo-unet-cfa", base=4, blocks=1, scales=2)
    elsewhere = with_runtime(net, runtime=runtime, device=CPU)
    tile, crops = random_pictures(1, 32, 32), torch.full((2, 3, 16, 16), 0.1)
    with share_means(elsewhere, crops):
        held = correction(elsewhere, tile)
    with share_means(net, crops):
        assert torch.equal(held, correction(net, tile))
    assert not torch.allclose(held, correction(elsewhere, tile), rtol=0, atol=1e-5)


class Adds(nn.Module):
    """No network of the catalogue."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.25


def test_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "installed", lambda name: True)
    net, gpu = network(), torch.device("cuda", 0)
    assert choose_runtime("auto", net, CPU, "fp32") == "openvino"
    assert choose_runtime("auto", net, CPU, "int8") == "openvino"
    for able in (True, False):
        monkeypatch.setattr(devices, "multiplies_bf16", lambda able=able: able)
        assert choose_runtime("auto", net, CPU, "bf16") == ("openvino" if able else "torch")
    for precision in ("fp32", "fp16", "bf16"):
        assert choose_runtime("auto", net, gpu, precision) == "cudagraphs"
        assert choose_runtime("auto", net, torch.device("xpu", 0), precision) == "torch"
    for device in (CPU, gpu):
        # What another module does, a graph may not hold; what is trained, it would not follow.
        assert choose_runtime("auto", Adds(), device, "fp32") == "torch"
        assert choose_runtime("auto", network().requires_grad_(True), device, "fp32") == "torch"
    assert choose_runtime("torch", net, CPU, "fp32") == "torch"
    assert choose_runtime("onnxruntime", net, gpu, "fp32") == "onnxruntime"
    monkeypatch.setenv(runtimes.RUNTIME_VARIABLE, "torch")
    assert choose_runtime("auto", net, CPU, "fp32") == "torch"
    assert choose_runtime("openvino", net, CPU, "fp32") == "openvino"
    monkeypatch.setenv(runtimes.RUNTIME_VARIABLE, "tensorflow")
    with pytest.raises(UsageError, match="VDEBLUR_BACKEND is 'tensorflow'"):
        choose_runtime("auto", net, CPU, "fp32")
    monkeypatch.delenv(runtimes.RUNTIME_VARIABLE)
    monkeypatch.setattr(choice, "installed", lambda name: False)
    assert choose_runtime("auto", net, CPU, "fp32") == "torch"


@pytest.mark.parametrize(
    ("backend", "device", "precision", "sentence"),
    [
        ("tensorflow", "cpu", "fp32", "backend is 'tensorflow': choose"),
        ("compile", "mps", "fp32", "backend compile runs on a CUDA or XPU device, not on mps: use"),
        ("openvino", "cuda", "fp32", "openvino runs on a CPU"),
        ("openvino", "cpu", "fp16", "openvino runs on a CPU in fp32, bf16 or int8, not on cpu in"),
        ("onnxruntime", "cpu", "bf16", "onnxruntime runs on a CPU or CUDA in fp32"),
        ("torch", "cpu", "int8", "is for OpenVINO on a CPU, not for backend torch on cpu: use"),
        ("auto", "cuda", "int8", "int8 is for OpenVINO on a CPU, not for cuda: use `device='cpu'`"),
    ],
)
def test_impossible_choices_are_told(
    backend: Any, device: str, precision: str, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        choose_runtime(backend, network(), torch.device(device), precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("named", ["option", "environment"])
@pytest.mark.parametrize("backend", ["cudagraphs", "tensorrt"])
def test_what_needs_a_gpu_is_refused_without_one(
    backend: Any, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named == "environment":
        monkeypatch.setenv(runtimes.RUNTIME_VARIABLE, backend)
    asked: Any = backend if named == "option" else "auto"
    with pytest.raises(DeviceError, match="a CUDA device, and PyTorch sees none here: ") as refused:
        Deblurrer(device="cpu", backend=asked)
    assert "`device=" not in str(refused.value)
    # Where there is one, it is the device that does not fit.
    monkeypatch.setattr(devices, "find_device", lambda _: torch.device("cuda", 0))
    with pytest.raises(UsageError, match="runs on a CUDA device, not on cpu: use `device='cuda'`"):
        choose_runtime(asked, network(), CPU, "fp16")


@pytest.mark.parametrize(
    ("package", "backend", "precision", "extra"),
    [
        ("openvino", "openvino", "fp32", "openvino"),
        ("nncf", "openvino", "int8", "openvino"),
        ("onnxruntime", "onnxruntime", "fp32", "onnx"),
        ("onnx", "onnxruntime", "fp32", "onnx"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(
    package: str, backend: Any, precision: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(*{"nncf": ("openvino",), "onnx": ("onnxruntime",)}.get(package, ()))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"package {package}.*'vdeblur\[{extra}\]'"):
        Deblurrer(network(), device="cpu", backend=backend, precision=precision)


def test_auto_goes_on_with_torch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    need("openvino")
    from vdeblur.inference.runtimes import openvino

    def fail(*_: object, **__: object) -> None:
        raise ModelError("the network cannot become OpenVINO: no")

    monkeypatch.setattr(openvino, "to_openvino", fail)
    deblurrer = Deblurrer(network(), device="cpu")
    assert deblurrer.backend == "torch"
    assert deblurrer.notes == ["going on with torch: the network cannot become OpenVINO: no"]
    images = random_pictures(1, 32, 32)
    expected = Deblurrer(network(), device="cpu", backend="torch")(images)
    assert torch.equal(deblurrer(images), expected)
    with pytest.raises(ModelError, match="cannot become OpenVINO"):
        Deblurrer(network(), device="cpu", backend="openvino")


def test_a_wrong_conversion_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    need("openvino")
    from vdeblur.inference.runtimes import openvino

    other = runtimes.Correction(network(5))
    monkeypatch.setattr(openvino, "to_openvino", lambda _, **more: to_openvino(other, **more))
    with pytest.raises(ModelError, match=r"converted network differs from torch by .*`backend="):
        with_runtime(network(), runtime="openvino", device=CPU)


def test_memory_that_runs_out_is_told_as_such() -> None:
    need("openvino")
    elsewhere = with_runtime(network(), runtime="openvino", device=CPU)
    runner: Any = elsewhere._runner

    class Full:
        def infer(self, *_: object, **__: object) -> None:
            raise RuntimeError("Exception from src: std::bad_alloc")

    runner._idle[1].append(Full())
    with pytest.raises(MemoryError, match="bad_alloc"):
        correction(elsewhere, random_pictures(1, 32, 32))


@pytest.fixture
def pictures() -> list[Tensor]:
    need("openvino", "nncf")
    return [random_pictures(2, 48, 64)]


def psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * (one - other).square().mean().log10())


@pytest.fixture
def bf16() -> None:
    if not devices.multiplies_bf16():
        pytest.skip("this CPU has no instructions for bf16")


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.usefixtures("bf16")
def test_bf16_rounds_and_keeps_the_picture(backend: Any, folder: Path) -> None:
    need(*RUNTIMES.get(backend, ()))
    images = random_pictures(3, 45, 70)
    plain = Deblurrer(network(), device="cpu", backend="torch")(images)
    deblurrer = Deblurrer(network(), device="cpu", backend=backend, precision="bf16")
    assert (deblurrer.backend, deblurrer.precision) == (backend, "bf16")
    assert 50 < psnr(deblurrer(images), plain) < 90
    if backend == "openvino":
        # The file is that of fp32, which is computed as it was.
        full = Deblurrer(network(), device="cpu", backend=backend, precision="fp32")
        assert torch.allclose(full(images), plain, rtol=0, atol=1e-5)
        assert len(kept(folder)) == 1


@pytest.mark.usefixtures("bf16")
def test_fused_layers_follow_to_bf16() -> None:
    net, x = network(base=26, blocks=1, unshuffle=4), random_pictures(1, 64, 96)
    expected = correction(net, x)
    fused = torch_cpu.fuse(net).to(torch.bfloat16)
    once = correction(fused, x.to(torch.bfloat16)).float()
    assert 50 < psnr(once, expected) < 100
    assert expected.abs().max() > 0.01


def test_auto_takes_bf16_where_it_is_quick_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("openvino")

    def precision(net: nn.Module, **options: Any) -> str:
        return Deblurrer(net, device="cpu", **options).precision

    from vdeblur.inference.runtimes import openvino

    monkeypatch.delenv(runtimes.PRECISION_VARIABLE)
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(openvino, "require", lambda _: None)  # asks this machine's CPU
    loud = network()
    with torch.no_grad():
        loud.get_parameter("feat_extract.5.main.0.weight").mul_(200)
    for backend in ("auto", "torch", "openvino"):
        assert prefers_bf16(network(), backend)
    assert not prefers_bf16(loud, "auto")
    assert not prefers_bf16(network(), "onnxruntime")
    assert not prefers_bf16(Adds(), "auto")
    assert not prefers_bf16(network().requires_grad_(True), "auto")
    assert precision(network()) == "bf16"
    assert precision(network(), precision="fp32") == "fp32"
    assert precision(network(), backend="torch") == "bf16"
    assert precision(loud, backend="torch") == "fp32"
    assert any("bf16" in line for line in Deblurrer(network(), device="cpu").about)
    monkeypatch.setenv(runtimes.RUNTIME_VARIABLE, "onnxruntime")
    assert not prefers_bf16(network(), "auto")
    monkeypatch.delenv(runtimes.RUNTIME_VARIABLE)
    monkeypatch.setenv(runtimes.PRECISION_VARIABLE, "fp32")
    assert precision(network()) == "fp32"
    assert precision(network(), precision="bf16") == "bf16"
    monkeypatch.setenv(runtimes.PRECISION_VARIABLE, "fp4")
    with pytest.raises(UsageError, match="VDEBLUR_PRECISION is 'fp4': set it to one of auto, fp32"):
        Deblurrer(network(), device="cpu")
    monkeypatch.delenv(runtimes.PRECISION_VARIABLE)
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: False)
    assert precision(network()) == "fp32"


def test_bf16_on_a_cpu_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    need("openvino")
    from vdeblur.inference.runtimes import openvino

    class Core:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "the_core", lambda _: Core())
    with pytest.raises(DeviceError, match="needs a CPU with instructions for it"):
        Deblurrer(network(), device="cpu", backend="openvino", precision="bf16")
    # Who did not ask for it is not stopped by it.
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: True)
    monkeypatch.delenv(runtimes.PRECISION_VARIABLE)
    deblurrer = Deblurrer(network(), device="cpu")
    assert (deblurrer.backend, deblurrer.precision) == ("torch", "fp32")
    assert any("going on with torch: precision bf16" in note for note in deblurrer.notes)
    assert not any("bf16" in line for line in deblurrer.about)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions_that_onednn_refuses_here_are_left_to_torch(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        """oneDNN on a CPU without the instructions."""

        def __getattr__(self, name: str) -> Any:
            if name.endswith("_supported"):
                return lambda: False
            return getattr(torch.ops.mkldnn, name)

    monkeypatch.setattr(torch_cpu, "_mkldnn", Refusing())
    images = random_pictures(1, 45, 70)
    plain = Deblurrer(network(), device="cpu", backend="torch", precision="fp32")(images)
    half = Deblurrer(network(), device="cpu", backend="torch", precision=precision)
    assert psnr(half(images), plain) > 50
    assert torch_cpu.fuse(net := network(), half.dtype) is net


@pytest.mark.parametrize("threads", [3, 16])
def test_pictures_are_computed_side_by_side(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    need("openvino")
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        deblurrer = Deblurrer(network(), device="cpu", backend="openvino", precision="fp32")
        most = min(threads, 8)
        assert deblurrer.side_by_side(40, 56) == most
        assert batch_size("auto", deblurrer, size=(40, 56)) == most
        assert batch_size("auto", deblurrer) == 1
        runner: Any = deblurrer.network._runner
        plain = network()
        for count, streams in ((1, 1), (2, 2), (3, min(4, threads)), (7, most)):
            x = random_pictures(7, 40, 56)[:count]
            expected = (x + correction(plain, x)).clamp(0, 1)
            assert torch.allclose(deblurrer(x), expected, rtol=0, atol=1e-5)
            share = threads // streams
            assert len(runner._idle[threads // share]) > 0
        monkeypatch.setattr("vdeblur.inference.deblurrer.free_memory", lambda _: 10**6)
        assert deblurrer.side_by_side(400, 560) == 1
    finally:
        torch.set_num_threads(usual)


def test_int8_is_calibrated_kept_and_close(folder: Path, pictures: list[Tensor]) -> None:
    x = random_pictures(1, 64, 80)
    plain = Deblurrer(network(), device="cpu", backend="torch")(x)

    def restored(calibration: list[Tensor]) -> Tensor:
        return Deblurrer(network(), device="cpu", precision="int8", calibration=calibration)(x)

    first = restored(pictures)
    error = (first - plain).square().mean().sqrt()
    assert 0 < error < 0.1 * (plain - x).square().mean().sqrt()
    assert len(kept(folder)) == 1
    assert torch.equal(restored(pictures), first)
    assert len(kept(folder)) == 1
    restored([pictures[0] * 0.5])
    assert len(kept(folder)) == 2
    told = Deblurrer(network(), device="cpu", precision="int8", calibration=pictures).about
    assert any("computed in int8, its ranges measured on 2 pictures" in line for line in told)


@pytest.mark.parametrize("told", [True, False])
def test_int8_of_the_default_network(told: bool, folder: Path, pictures: list[Tensor]) -> None:
    """Ranges are measured along motions, made up or those of the first pictures."""
    motion = torch.tensor([9.0, -4.0, 0, 0]).view(1, 4, 1, 1)
    x = random_pictures(1, 64, 80)
    plain = Deblurrer(device="cpu", backend="torch", precision="fp32")(x, motion)
    calibration = pictures if told else []
    deblurrer = Deblurrer(device="cpu", precision="int8", calibration=calibration)
    assert (deblurrer.backend, deblurrer.precision) == ("openvino", "int8")
    got = deblurrer(x, motion)
    assert (plain - x).abs().max() > 0.01
    assert 0 < (got - plain).square().mean().sqrt() < 0.1 * (plain - x).square().mean().sqrt()
    assert len(kept(folder)) == 1


def test_int8_without_pictures_takes_the_first_that_come(
    folder: Path, pictures: list[Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    deblurrer = Deblurrer(network(), device="cpu", precision="int8")
    assert not kept(folder)
    deblurrer(pictures[0])
    assert len(kept(folder)) == 1
    deblurrer(random_pictures(1, 64, 64))
    assert len(kept(folder)) == 1
    # Standard output may be where a video is going.
    assert capfd.readouterr().out == ""


def test_samples_are_spread_cropped_and_padded() -> None:
    need("openvino")
    from vdeblur.inference.calibration import samples_of

    pictures = [torch.full((4, 3, 1000, 530), i / 30) for i in range(30)]
    samples = samples_of(pictures, 8)
    assert len(samples) == 24
    assert {tuple(sample.shape) for sample in samples} == {(1, 3, 512, 512)}
    values = [float(sample.mean()) for sample in samples]
    assert values == sorted(values)
    assert values[0] < 0.05
    assert values[-1] > 0.9
    assert [tuple(s.shape) for s in samples_of([torch.rand(1, 3, 13, 21)], 8)] == [(1, 3, 16, 24)]


def test_the_cache_forgets_what_nobody_uses(folder: Path) -> None:
    import os
    import time

    def make(path: Path) -> None:
        (path / "content").write_text("x")

    old = cache.store_entry("kind", {"a": "1"}, make)
    used = cache.store_entry("kind", {"a": "2"}, make)
    assert old is not None
    assert used is not None
    past = time.time() - (cache.UNUSED_DAYS + 1) * 86400
    for entry in (old, used):
        os.utime(entry, (past, past))
    assert cache.find_entry("kind", {"a": "2"}) == used
    new = cache.store_entry("kind", {"a": "3"}, make)
    assert new is not None
    assert sorted(path for path in new.parent.iterdir()) == sorted([used, new])


def test_a_failed_entry_leaves_nothing(folder: Path) -> None:
    def fail(path: Path) -> None:
        (path / "half").write_text("x")
        raise ModelError("no")

    with pytest.raises(ModelError):
        cache.store_entry("kind", {"a": "1"}, fail)
    assert not list((folder / "kind").iterdir())


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("mimo-unet", {"base": 8, "blocks": 1}),
        ("mimo-unet", {"base": 26, "blocks": 1, "unshuffle": 4}),
        ("mimo-unet-cfa", {"base": 4, "blocks": 1, "scales": 2}),
    ],
)
def test_fused_layers_on_a_cpu_are_torchs(family: str, config: dict[str, Any]) -> None:
    net = network(0, family, **config)
    fused = torch_cpu.fuse(net)
    assert fused is not net
    # The weights are the network's own, but for those that were multiplied out.
    pointers = {parameter.data_ptr() for parameter in net.parameters()}
    own = {parameter.data_ptr() for parameter in fused.parameters()} - pointers
    assert len(own) == (14 if family == "mimo-unet" else 0)
    for frame in SIZES:
        count, height, width = frame
        x = random_pictures(count, -(-height // 16) * 16, -(-width // 16) * 16)
        x = x.contiguous(memory_format=torch.channels_last)
        expected = correction(net, x)
        assert torch.allclose(correction(fused, x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [{"base": 8, "blocks": 1}, {"base": 26, "blocks": 1,
                                                               "unshuffle": 4}])  # fmt: skip
def test_fewer_operations_compute_the_same(config: dict[str, Any]) -> None:
    net = network(**config)
    quick = rewrite(net)
    for frame in SIZES:
        count, height, width = frame
        x = random_pictures(count, -(-height // 16) * 16, -(-width // 16) * 16)
        assert correction(net, x).abs().max() > 0.01
        assert torch.allclose(correction(quick, x), correction(net, x), rtol=0, atol=1e-6)
        assert torch.allclose(quick(x), net(x), rtol=0, atol=1e-6)
    work, before = (work_of(one, 64, 64, torch.float32) for one in (quick, net))
    assert work is not None
    assert before is not None
    assert work.flop < 0.98 * before.flop
    # Products of weights that go on being trained would stay behind.
    assert rewrite(net.requires_grad_(True)) is net


def test_fewer_operations_of_a_pruned_network() -> None:
    net = network(base=8, blocks=1, hidden=[3, 9, 20, 5, 16, 8])
    x = random_pictures(1, 32, 48)
    assert torch.allclose(correction(rewrite(net), x), correction(net, x), rtol=0, atol=1e-6)


def test_weights_in_training_are_not_laid_out_once_and_for_all() -> None:
    net = network().requires_grad_(True)
    assert torch_cpu.fuse(net) is net
    assert choose_runtime("auto", net, CPU, "fp32") == "torch"


def test_a_fused_copy_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    monkeypatch.setattr(torch_cpu._Conv, "forward", lambda self, x, plus=None: self.conv(x))
    assert torch_cpu.fuse(net) is net
    monkeypatch.setattr(torch_cpu, "_mkldnn", object())  # another torch, without the operators
    assert torch_cpu.fuse(net) is net


def test_a_deblurrer_on_a_cpu_fuses_and_gives_the_same() -> None:
    images = random_pictures(2, 45, 70)
    deblurrer = Deblurrer(network(), device="cpu", backend="torch")
    assert any(isinstance(layer, torch_cpu._Conv) for layer in deblurrer.network.modules())
    plain = Deblurrer(network().requires_grad_(True), device="cpu", backend="torch")
    assert not any(isinstance(layer, torch_cpu._Conv) for layer in plain.network.modules())
    assert torch.allclose(deblurrer(images), plain(images), rtol=0, atol=1e-5)


def test_importing_vdeblur_keeps_torchs_threads_from_spinning() -> None:
    """Settings that are read once, when torch is imported; and MPS computes what it lacks."""
    names = ("OMP_WAIT_POLICY", "PYTORCH_ENABLE_MPS_FALLBACK")
    code = (
        f"import os, sys; [os.environ.pop(name, None) for name in {names}]; import vdeblur;"
        f"print('torch' in sys.modules, *map(os.environ.get, {names}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False PASSIVE 1"


def test_it_is_said_if_torch_was_imported_too_early() -> None:
    code = (
        "import logging, os, sys; os.environ.pop('OMP_WAIT_POLICY', None);"
        "logging.basicConfig(level=logging.INFO); sys.modules['torch'] = logging;"
        "import vdeblur; print('OMP_WAIT_POLICY' in os.environ)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "torch was imported before vdeblur" in done.stderr


def test_networks_that_come_and_go_leave_signals_alone(tmp_path: Path) -> None:
    """Two OpenVINO cores that go in the order they came leave a freed stack for signals behind."""
    if not installed("openvino"):
        pytest.skip("openvino is not installed")
    code = """
import gc, signal, subprocess, sys, torch
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.networks.mimo_unet import MIMOUNet
signal.signal(signal.SIGCHLD, lambda *_: None)
first, second = (
    Deblurrer(MIMOUNet(base=base, blocks=1), device="cpu", backend="openvino") for base in (4, 8)
)
for deblurrer in first, second:
    assert deblurrer.backend == "openvino"
    deblurrer(torch.rand(1, 3, 16, 16))
del deblurrer, first
gc.collect()
del second
gc.collect()
subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"VDEBLUR_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
