"""Compile a model for ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tabdiff.commands.common import JsonOption, ModelArgument
from tabdiff.terminal import Outcome, console, count, say


def export(
    model_dir: ModelArgument,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Also programs in half precision, which pay on a GPU only.")
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option("--triton", metavar="DIR", help="Also a model repository for Triton Inference Server."),
    ] = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Compile a model for ONNX Runtime, which scores and samples without torch, and compare the two."""
    from onnx_export import export as compile_programs

    on = console(stderr=True)
    bundle = compile_programs(model_dir, fp16=fp16, triton=triton, say=lambda line: say(on, line))
    contract = json.loads(bundle.compiled["onnx.json"])
    shown = [f"Compiled {model_dir}: {count(len(contract['programs']), 'program')}, compared with torch."]
    for precision, report in contract["checked"].items():
        shown.append(
            f"{precision}: errors differ by at most {report['relative_difference']:.1e} of their sum, ranking agrees to "
            f"{report['spearman']:.6f}, {report['same_categories']:.2%} of drawn categories are the same."
        )
    sizes = ", ".join(f"{name} {program['bytes'] / 1e6:.1f} MB" for name, program in contract["programs"].items())
    shown += [f"Files: {sizes}; {model_dir / 'onnx.json'} says what goes in and out."]
    shown += [f"Triton model repository: {triton}"] if triton else []
    shown += ["Next: tabdiff score and sample use them from now on, and need no torch."]
    return Outcome({"model": str(model_dir), "triton": triton and str(triton), **contract}, shown)
