"""Compile the programs of a model for ONNX Runtime, and refuse to publish what does not compute the same.

Needs torch, onnx, onnxscript and a build of onnxruntime; what it makes needs only the last.
"""

from __future__ import annotations

from onnx_export.export import export
from onnx_export.verify import Report

__all__ = ["Report", "export"]
