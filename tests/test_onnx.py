"""Compiled programs: the same numbers as torch, from any engine and any caller, and no way out of their folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import tabdiff
from onnx_export import export
from onnx_export import verify as verification
from tabdiff import FitConfig, Model, SampleConfig, onnx_guard, onnx_runtime
from tabdiff.bundle import COMPILED, Bundle, _describe, _digest
from tabdiff.errors import BundleError, ConfigError, RuntimeUnavailable, TabdiffWarning
from tabdiff.nn.runtime import TorchRuntime
from tabdiff.onnx_runtime import OnnxRuntime
from tests.conftest import make_mixed_table

compiler = import_module("onnx_export.export")  # its name is that of the function in it
FRESH = make_mixed_table(150, seed=7)


@pytest.fixture
def folder(compiled_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled_bundle, tmp_path / "model"))


@pytest.fixture(scope="module")
def compiled(compiled_bundle: Path) -> Model:
    return tabdiff.load(compiled_bundle, runtime="onnx")


@pytest.fixture(scope="module")
def eager(compiled_bundle: Path) -> Model:
    return tabdiff.load(compiled_bundle, runtime="torch")


# ------------------------------------------------------------------------------------------------ the same numbers


def test_scores_flags_reasons_and_samples_are_those_of_torch(compiled: Model, eager: Model) -> None:
    found, expected = (m.score(FRESH, contamination=0.1) for m in (compiled, eager))
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.score.argsort(), expected.score.argsort())
    np.testing.assert_array_equal(found.flagged, expected.flagged)
    np.testing.assert_allclose(found.contributions, expected.contributions, atol=1e-4)
    assert_frame_equal(found.expected, expected.expected, abs_tol=1e-3)
    assert found.provider == f"onnxruntime {onnxruntime.__version__} cpu"
    assert expected.provider == "torch cpu"
    for sampler in ("dpmpp_2m", "heun", "ddpm"):
        config = SampleConfig(sampler=sampler, steps=6)
        assert_frame_equal(
            *(m.sample(200, given={"channel": "web"}, config=config) for m in (compiled, eager)), abs_tol=2e-3
        )
    assert_frame_equal(*(m.impute(FRESH, draws=3) for m in (compiled, eager)))


@pytest.mark.parametrize("rows", [1, 2, 3, 255, 256, 257, 700])
def test_the_number_of_rows_in_a_call_does_not_matter(compiled: Model, rows: int) -> None:
    frame = make_mixed_table(700, seed=3)
    whole = compiled.score(frame).score
    np.testing.assert_allclose(compiled.score(frame[:rows]).score, whole[:rows], rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_the_ranking(folder: Path, eager: Model) -> None:
    half = tabdiff.load(folder, precision="float16")
    scores = [m.score(FRESH).score for m in (half, eager)]
    assert verification.spearman(*scores) > 0.999
    # A sampler whose state stays with the engine draws by its steps; otherwise no program takes part in drawing.
    stepping = Model(half.bundle, OnnxRuntime(half.bundle, "cpu", precision="float16", on_device=True))
    drawn = [m.sample(500, seed=1)["channel"] for m in (stepping, eager)]
    assert (drawn[0] == drawn[1]).mean() > 0.99
    assert half.runtime.provider.endswith("cpu float16")
    # Linear layers are halved, and only the network that draws has them.
    assert (folder / "step.fp16.onnx").stat().st_size < (folder / "step.onnx").stat().st_size


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "ddpm"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_state_that_stays_on_the_device_gives_the_same_rows(compiled: Model, sampler: Any, cuda_graphs: bool) -> None:
    """The calls that keep state on a GPU, made on the CPU, where a graph is not recorded but its buffers are used."""
    runtime = OnnxRuntime(compiled.bundle, "cpu", on_device=True, cuda_graphs=cuda_graphs)
    config = SampleConfig(sampler=sampler, steps=5)
    bound = Model(compiled.bundle, runtime)
    assert_frame_equal(bound.sample(1100, config=config), compiled.sample(1100, config=config))
    assert_frame_equal(bound.sample(30, given={"channel": "shop"}), compiled.sample(30, given={"channel": "shop"}))
    many = make_mixed_table(600, seed=3)  # two full chunks and a rest
    np.testing.assert_array_equal(bound.score(many, contamination=0.1).score, compiled.score(many).score)


def table_of(kind: str, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    words = pl.DataFrame({f"c{i}": rng.choice(list("abc"), 60).tolist() for i in range(3)})
    numbers = pl.DataFrame({f"x{i}": rng.normal(size=60) for i in range(3)})
    return {"numbers": numbers, "words": words}.get(kind, make_mixed_table(60, seed))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("numbers", {"score": {"contaminated": True}}),
        ("words", {"score": {"kernel_rows": 0}}),
        ("mixed", {"data": {"pca_components": 2}, "process": {"kind": "anisotropic"}}),
    ],
)
def test_every_kind_of_model_compiles(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    frame, fresh = table_of(kind, 0), table_of(kind, 1)
    small = {"train": {"steps": 20}, "network": {"width": 16, "blocks": 1}}
    model = tabdiff.fit(frame, FitConfig.model_validate({**small, **options}))
    model.save(tmp_path / "m")
    export(tmp_path / "m")  # compares with torch
    again = tabdiff.load(tmp_path / "m", runtime="onnx")
    np.testing.assert_allclose(again.score(fresh).score, model.score(fresh).score, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ what is in the files


def test_the_contract_is_what_the_files_are(compiled_bundle: Path) -> None:
    bundle = Bundle.read(compiled_bundle)
    contract = json.loads(bundle.compiled["onnx.json"])
    assert set(bundle.compiled) == set(COMPILED)
    assert contract["checked"]["float32"]["relative_difference"] <= 1e-4
    assert contract["checked"]["float32"]["spearman"] == 1.0
    for name, described in contract["programs"].items():
        model = onnx.load_from_string(bundle.compiled[name])
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == described["opset"] == 20
        assert described["producer"].startswith("pytorch 2.")
        for value, entry in zip(model.graph.input, described["inputs"], strict=True):
            assert entry["shape"][0] == "batch" == value.type.tensor_type.shape.dim[0].dim_param
        assert b"/" + b"home" not in bundle.compiled[name]
        assert os.fsencode(Path(tabdiff.__file__).parent) not in bundle.compiled[name]  # no paths of this machine


def test_constants_are_not_duplicated(compiled_bundle: Path) -> None:
    bundle = Bundle.read(compiled_bundle)
    for name in ("score.onnx", "step.onnx"):
        large = [t for t in onnx.load_from_string(bundle.compiled[name]).graph.initializer if t.ByteSize() > 2000]
        contents = [onnx.numpy_helper.to_array(tensor).tobytes() for tensor in large]
        assert len(contents) == len(set(contents)), name
    weights = (compiled_bundle / "weights.safetensors").stat().st_size
    assert len(bundle.compiled["score.onnx"]) < 1.25 * weights + 150_000


def test_it_runs_from_plain_onnxruntime_and_numpy(compiled_bundle: Path, eager: Model, tmp_path: Path) -> None:
    """The worked example of docs/inference.md, with nothing of tabdiff to be imported."""
    page = (Path(__file__).parent.parent / "docs" / "inference.md").read_text(encoding="utf-8")
    (example,) = [block for block in page.split("```python\n")[1:] if "import onnxruntime" in block]
    code = example.split("```")[0].replace("orders.model", str(compiled_bundle))
    before, _, rest = code.partition("row = {")
    after = rest.partition("}  # fmt: skip")[2]
    rows = FRESH.select(eager.codec.columns).with_columns(
        pl.col("ordered").dt.epoch("us"), pl.col("express").cast(pl.String), channel=pl.col("channel")
    )
    odd = rows.head(1).with_columns(price=pl.lit(9e5), channel=pl.lit("unheard of"), weight=pl.lit(None, pl.Float64))
    several = [*rows.head(4).to_dicts(), *odd.to_dicts()]
    body = "".join(f"    {line}\n" for line in after.splitlines())
    code = (
        f"import sys\nsys.modules['tabdiff'] = sys.modules['torch'] = None\n{before}\nfor row in {several!r}:\n{body}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = FRESH.head(1).with_columns(price=pl.lit(9e5), channel=pl.lit("unheard of"), weight=pl.lit(None, pl.Float64))
    expected = eager.score(pl.concat([FRESH.head(4), last])).score
    np.testing.assert_allclose([float(line) for line in done.stdout.splitlines()], expected, rtol=1e-3, atol=1e-3)


def test_a_triton_repository_has_the_programs_and_their_axes(compiled_bundle: Path) -> None:
    repository = compiled_bundle.parent / "triton"
    assert sorted(p.name for p in repository.iterdir()) == ["tabdiff_score", "tabdiff_step"]
    contract = json.loads((compiled_bundle / "onnx.json").read_text())["programs"]
    for name in ("score", "step"):
        place = repository / f"tabdiff_{name}"
        assert (place / "1" / "model.onnx").read_bytes() == (compiled_bundle / f"{name}.onnx").read_bytes()
        text = (place / "config.pbtxt").read_text()
        for value in contract[f"{name}.onnx"]["inputs"]:
            axes = value["shape"][1:]
            assert f'name: "{value["name"]}"' in text
            assert f"dims: [ {', '.join(map(str, axes or [1]))} ]" in text


# ------------------------------------------------------------------------------------------------ publishing


def traced_before(bundle: Bundle) -> Callable[..., onnx.ModelProto]:
    """Stands for tracing, which takes seconds, where the same model was traced already."""

    def trace(module: object, *_: object) -> onnx.ModelProto:
        return onnx.load_from_string(bundle.compiled["score.onnx" if type(module).__name__ == "Score" else "step.onnx"])

    return trace


def test_a_program_that_computes_something_else_is_not_published(
    small_bundle: Path, compiled: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(small_bundle, tmp_path / "model"))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    torch_runtime = TorchRuntime.from_bundle(compiled.bundle, "cpu")
    score = torch_runtime.score
    monkeypatch.setattr(torch_runtime, "score", lambda x, present: score(x, present) * np.float32(1.001))
    with pytest.raises(BundleError, match=r"relative_difference is 0\.00099\d+, allowed at most 1e-04"):
        verification.verify(compiled.bundle, torch_runtime, fp16=False)
    monkeypatch.setattr(verification, "PARITY", -1.0)
    monkeypatch.setattr(compiler, "_trace", traced_before(compiled.bundle))
    with pytest.raises(BundleError, match=r"Nothing was written"):
        export(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_another_category_is_another_program_and_the_edge_between_two_is_not(
    compiled: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_runtime = TorchRuntime.from_bundle(compiled.bundle, "cpu")
    step = torch_runtime.step

    def moved_by(distance: float) -> Any:
        moved = np.float32(distance)
        return lambda x, t, s, noise, *more: step(x, t, s, noise + moved, *more)

    monkeypatch.setattr(torch_runtime, "step", moved_by(1e-6))
    assert verification.verify(compiled.bundle, torch_runtime, fp16=False)["float32"]["same_categories"] == 1.0
    monkeypatch.setattr(torch_runtime, "step", moved_by(0.01))
    with pytest.raises(BundleError, match=r"same_categories is 0\.8"):
        verification.verify(compiled.bundle, torch_runtime, fp16=False)


def test_half_precision_is_gated_by_the_ranking(compiled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "HALF_RANKING", 1.1)
    with pytest.raises(BundleError, match=r"float16 programs.*spearman.*Leave --fp16 out"):
        verification.verify(compiled.bundle, TorchRuntime.from_bundle(compiled.bundle, "cpu"), fp16=True)


def test_spearman_is_that_of_scipy() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 30, 200).astype(float), rng.normal(size=200)
    assert verification.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert verification.spearman(a, 3 * a + 1) == 1.0


def test_a_program_for_a_fixed_number_of_rows_is_refused() -> None:
    import torch

    from onnx_export.export import _trace

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(len(x), 2) + 1

    with pytest.raises(BundleError, match=r"any number of rows.*x\.shape\[0\]"):
        _trace(Fixed(), (torch.zeros(3, 2, 1),), ["x"], ["y"])


# ------------------------------------------------------------------------------------------------ devices and engines


def test_a_gpu_that_is_not_there_is_an_error_not_a_fallback(
    compiled_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("cuda", "tensorrt"):
        with pytest.raises(RuntimeUnavailable, match=f"device={device} needs .*ExecutionProvider"):
            tabdiff.load(compiled_bundle, device=device, runtime="onnx")  # type: ignore[arg-type]
    # A GPU build says that it has CUDA wherever it is, and its sessions fall back without an error.
    there = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *there])
    real = onnxruntime.InferenceSession

    def falls_back(content: bytes, options: Any, providers: list[str]) -> Any:
        return real(content, options, providers=[p for p in providers if p in there])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(RuntimeUnavailable, match=r"session runs on CPUExecutionProvider"):
        tabdiff.load(compiled_bundle, device="cuda", runtime="onnx")
    with pytest.warns(TabdiffWarning, match=r"did not start"):
        model = tabdiff.load(compiled_bundle, runtime="onnx")
    assert model.score(FRESH[:2]).provider.endswith(" cpu")

    def fails(content: bytes, options: Any, providers: list[str]) -> Any:
        if any("CUDAExecutionProvider" in provider for provider in providers):
            raise RuntimeError("libcublas is missing")
        return real(content, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(RuntimeUnavailable, match=r"libcublas"):
        tabdiff.load(compiled_bundle, device="cuda", runtime="onnx")
    with pytest.warns(TabdiffWarning, match=r"libcublas"):
        assert tabdiff.load(compiled_bundle, runtime="onnx").runtime.provider.endswith(" cpu")


def test_which_engine_is_taken(small_bundle: Path, compiled_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tabdiff.load(compiled_bundle).runtime.provider.startswith("onnxruntime")
    assert tabdiff.load(small_bundle).runtime.provider == "torch cpu"
    with pytest.raises(RuntimeUnavailable, match=r"holds no score.onnx. Run tabdiff export"):
        tabdiff.load(small_bundle, runtime="onnx")
    with pytest.raises(ConfigError, match=r"runtime is one of"):
        tabdiff.load(small_bundle, runtime="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"runtime=torch"):
        tabdiff.load(compiled_bundle, runtime="torch", precision="float16")
    monkeypatch.setattr(onnx_runtime, "available", lambda: False)
    assert tabdiff.load(compiled_bundle).runtime.provider == "torch cpu"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'tabdiff\[cpu\]'"):
        tabdiff.load(compiled_bundle)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailable, match=r"never both"):
        tabdiff.load(compiled_bundle, runtime="onnx")


def test_without_half_precision_programs_there_are_none(compiled: Model) -> None:
    whole = {k: v for k, v in compiled.bundle.compiled.items() if "fp16" not in k}
    with pytest.raises(RuntimeUnavailable, match=r"tabdiff export --fp16"):
        OnnxRuntime(replace(compiled.bundle, compiled=whole), "cpu", precision="float16")


def test_scoring_sampling_and_filling_leave_torch_unimported(compiled_bundle: Path, tmp_path: Path) -> None:
    FRESH.write_parquet(tmp_path / "fresh.parquet")
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['sklearn'] = sys.modules['onnx'] = None\n"
        "import tabdiff, polars as pl\n"
        f"model = tabdiff.load({str(compiled_bundle)!r})\nframe = pl.read_parquet('fresh.parquet')\n"
        "model.score(frame, contamination=0.1).to_frame(); model.sample(5); model.impute(frame, draws=1)\n"
        "print(model.runtime.provider)\n"
        "from tabdiff.cli import app\n"
        f"app(['score', {str(compiled_bundle)!r}, 'fresh.parquet', '--out', 'scores.parquet', '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("onnxruntime ")


def test_the_warm_up_finds_an_engine_that_computes_something_else(
    compiled: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OnnxRuntime.score
    monkeypatch.setattr(OnnxRuntime, "score", lambda self, x, present: real(self, x, present) * np.float32(1.1))
    with pytest.raises(RuntimeUnavailable, match=r"computes errors that differ by 1.0e-01"):
        OnnxRuntime(compiled.bundle, "cpu")


# ------------------------------------------------------------------------------------------------ corruption


def every_file(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def opened(folder: Path) -> None:
    for engine in ("onnx", "torch"):
        tabdiff.load(folder, runtime=engine)  # type: ignore[arg-type]


def test_every_file_cut_off_or_flipped_in_any_region_is_named(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in every_file(folder):
        content = (folder / name).read_bytes()
        places = [
            0,
            len(content) - 1,
            *np.linspace(1, len(content) - 2, 9).astype(int),
            *rng.integers(0, len(content), 5),
        ]
        flipped = [content[:p] + bytes([content[p] ^ (1 << rng.integers(8))]) + content[p + 1 :] for p in places]
        for broken in [b"", content[:-1], content[: len(content) // 2], content + b"}", *flipped]:
            (folder / name).write_bytes(broken)
            with pytest.raises(BundleError, match=re.escape(name)):
                Bundle.read(folder)
        (folder / name).unlink()
        with pytest.raises(BundleError, match=name):
            Bundle.read(folder)
        (folder / name).write_bytes(content)
    opened(folder)


def rewrite(folder: Path, changed: dict[str, bytes]) -> None:
    """Change files and make the manifest agree, as someone who means harm would."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for name, content in changed.items():
        (folder / name).write_bytes(content)
        manifest["files"][name] = _describe(content)
    manifest["digest"] = _digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, compiled_bundle: Path) -> Path:
    """Another model of the same table: same shapes, other weights."""
    path = tmp_path_factory.mktemp("other") / "model"
    options = {"train": {"steps": 5, "seed": 3, "batch_size": 256}, "network": {"width": 32, "blocks": 1}}
    tabdiff.fit(make_mixed_table(380, seed=1), FitConfig.model_validate(options)).save(path)
    return path


def test_files_of_another_model_are_found_out(folder: Path, other_model: Path, compiled_bundle: Path) -> None:
    for name in every_file(other_model):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes((other_model / name).read_bytes())
        with pytest.raises(BundleError, match=r"(?s)(json|safetensors|onnx|md)"):
            Bundle.read(folder)
        (folder / name).write_bytes(content)
    # With a manifest that agrees: programs of another model are told by what they were compiled from.
    rewrite(folder, {"weights.safetensors": (other_model / "weights.safetensors").read_bytes()})
    with pytest.raises(BundleError, match=r"onnx\.json.*compiled from another model"):
        tabdiff.load(folder, runtime="onnx")
    contract = json.loads((folder / "onnx.json").read_bytes())
    digest = Bundle.read(folder).program_digest()
    for program in contract["programs"].values():
        program["model"] = digest
    rewrite(folder, {"onnx.json": json.dumps(contract).encode()})
    with pytest.raises(BundleError, match=r"score\.onnx' was compiled from another model"):
        tabdiff.load(folder, runtime="onnx")


def altered(change: Callable[[onnx.ModelProto], None]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        change(model)
        return bytes(model.SerializeToString())

    return apply


def to_external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"


def to_external_in_a_node(model: onnx.ModelProto) -> None:
    made = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [1.0])
    made.data_location = onnx.TensorProto.EXTERNAL
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=made))


def with_options(model: onnx.ModelProto) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "ort_config", "{}"


def with_a_loop(model: onnx.ModelProto) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", [""], [], body=body))


def with_an_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("EPContext", [], ["e"], domain="com.microsoft"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (altered(to_external), "external data"),
        (altered(to_external_in_a_node), "external data"),
        (altered(with_options), "session options"),
        (altered(with_a_loop), "nests a graph"),
        (altered(with_an_operator), "'EPContext' is not one of standard ONNX"),
        (altered(lambda model: model.functions.add()), "functions"),
        (altered(lambda model: model.ClearField("graph")), "0 graphs"),
        (lambda content: content[:-7], "cut off"),
        (lambda content: b"\xff" * 40, "not an ONNX program"),
        (lambda content: b"", "0 graphs"),
    ],
)
@pytest.mark.parametrize("name", ["score.onnx", "step.onnx"])
def test_a_program_that_reaches_out_is_refused_before_it_runs(
    folder: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    rewrite(folder, {name: change((folder / name).read_bytes())})
    with pytest.raises(BundleError, match=f"(?s){name}.*{message}"):
        tabdiff.load(folder, runtime="onnx")


def test_random_damage_under_an_agreeing_manifest_never_crashes(folder: Path) -> None:
    """Flipped bits may leave a program that starts; then it computes what the stored rows say, or is refused."""
    rng = np.random.default_rng(0)
    content = (folder / "score.onnx").read_bytes()
    outcomes = []
    for place in rng.integers(0, len(content), 25):
        flipped = content[:place] + bytes([content[place] ^ (1 << rng.integers(8))]) + content[place + 1 :]
        rewrite(folder, {"score.onnx": flipped})
        try:
            tabdiff.load(folder, runtime="onnx")
            outcomes.append("ran")
        except (BundleError, RuntimeUnavailable):
            outcomes.append("refused")
    assert outcomes.count("refused") > 0
    with pytest.raises(onnx_guard.UnsafeProgramError):
        onnx_guard.check(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"onnx.json": b"{}"}, r"onnx\.json.*does not describe"),
        ({"onnx.json": b"[1"}, r"onnx\.json"),
        ({"probes.safetensors": b"nothing"}, r"probes\.safetensors.*cannot be read"),
    ],
)
def test_descriptions_that_make_no_sense_are_named(folder: Path, changed: dict[str, bytes], message: str) -> None:
    rewrite(folder, changed)
    with pytest.raises(BundleError, match=f"(?s){message}"):
        tabdiff.load(folder, runtime="onnx")


def test_weights_of_another_shape_are_a_broken_bundle(folder: Path, tmp_path: Path) -> None:
    options = {"train": {"steps": 5}, "network": {"width": 16, "blocks": 1}}
    tabdiff.fit(make_mixed_table(100), FitConfig.model_validate(options)).save(tmp_path / "narrow")
    rewrite(folder, {"weights.safetensors": (tmp_path / "narrow" / "weights.safetensors").read_bytes()})
    with pytest.raises(BundleError, match=r"weights.safetensors"):
        tabdiff.load(folder, runtime="torch")


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_a_manifest_of_another_version_is_refused(folder: Path, version: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes()) | {"format": version}
    manifest["digest"] = _digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        tabdiff.load(folder)


def test_a_saved_model_keeps_its_programs(compiled: Model, compiled_bundle: Path, tmp_path: Path) -> None:
    compiled.save(tmp_path / "again")
    for name in COMPILED:
        assert (tmp_path / "again" / name).read_bytes() == (compiled_bundle / name).read_bytes()
    assert tabdiff.load(tmp_path / "again").runtime.provider.startswith("onnxruntime")


# ------------------------------------------------------------------------------------------------ the command


def test_export_from_the_command_line(
    small_bundle: Path, compiled: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from tabdiff.cli import app

    path = shutil.copytree(small_bundle, tmp_path / "model")
    monkeypatch.setattr(compiler, "_trace", traced_before(compiled.bundle))
    done = CliRunner().invoke(app, ["export", str(path)])
    assert done.exit_code == 0, done.output
    assert "ranking agrees to 1.000000" in done.stdout
    assert "compiling score.onnx" in done.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace() if name == "torch" else None)
    done = CliRunner().invoke(app, ["export", str(path)])
    assert done.exit_code == 1
    assert "needs onnx and onnxscript" in done.stderr
