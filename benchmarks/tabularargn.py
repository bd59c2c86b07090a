"""Synthetic rows of TabularARGN for `synthesis.py --peer tabularargn=FOLDER`; runs in an environment of its own, without tabdiff.

    python -m venv argn && argn/bin/pip install torch==2.13.0 mostlyai-engine==2.7.3 && argn/bin/pip uninstall torchvision torchaudio
    python benchmarks/synthesis.py DATA --write-training TRAIN --seeds 0 1 2
    OMP_NUM_THREADS=1 argn/bin/python benchmarks/tabularargn.py TRAIN FOLDER --seconds 90

TRAIN holds NAME-SEED.parquet; for each that FOLDER has no answer to it is fitted with the default options, by the engine's own early
stop or for so many seconds by the clock, and as many rows are drawn: FOLDER/NAME-SEED.csv, and CPU seconds in NAME-SEED.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch
from mostlyai.engine import TabularARGN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=90.0, help="of training at most, by the clock")
    parser.add_argument("--tables", nargs="*", help="NAME-SEED; all if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(options.train.glob("*.parquet")):
        written = options.folder / f"{path.stem}.csv"
        if written.exists() or (options.tables and path.stem not in options.tables):
            continue
        frame = pd.read_parquet(path)
        kinds = {
            name: "TABULAR_NUMERIC_AUTO" if pd.api.types.is_numeric_dtype(frame[name]) else "TABULAR_CATEGORICAL"
            for name in frame
        }
        seed = int(path.stem.rpartition("-")[2])
        started = time.process_time()
        model = TabularARGN(
            max_training_time=options.seconds / 60,
            device="cpu",
            random_state=seed,
            verbose=0,
            tgt_encoding_types=kinds,
        )
        model.fit(frame)
        fitted = time.process_time()
        rows = model.sample(n_samples=len(frame))
        seconds = {"fit": fitted - started, "sample": time.process_time() - fitted}
        rows.to_csv(written, index=False)
        written.with_suffix(".json").write_text(json.dumps(seconds), encoding="utf-8")
        print(path.stem, seconds, flush=True)


if __name__ == "__main__":
    main()
