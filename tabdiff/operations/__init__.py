"""The jobs of a workspace: train, score new rows, synthesize, monitor, accept a level. All of them run without a scheduler.

Each is a function of a workspace and a job (plain options), can be killed at any moment and called again, and returns JSON.
"""

from __future__ import annotations

from tabdiff.operations.accepting import accept_level
from tabdiff.operations.jobs import MonitorJob, ScoreJob, SynthesizeJob, TrainJob
from tabdiff.operations.monitoring import monitor
from tabdiff.operations.scoring import score_new
from tabdiff.operations.synthesis import synthesize
from tabdiff.operations.training import train

__all__ = [
    "MonitorJob",
    "ScoreJob",
    "SynthesizeJob",
    "TrainJob",
    "accept_level",
    "monitor",
    "score_new",
    "synthesize",
    "train",
]
