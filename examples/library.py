"""A library of songs on a Ray cluster: ``python examples/library.py BUNDLE OUT SONGS…``; one JSON line per song.

Started by itself it makes a cluster of this machine; with ``RAY_ADDRESS`` it joins one whose machines see the same
directories. For songs in a bucket begin with ``ray.data.read_binary_files(…, include_paths=True)``: rows may bring the
``bytes`` of a file. Run it again after an interruption, and what is done is left alone.
"""

from __future__ import annotations

import json
import sys

import ray

from splitter.separation.ray_data import SeparateTracks

CORES_EACH = 1  # more where memory is scarce: each worker holds the model


def main() -> None:
    """Separate the songs named on the command line."""
    bundle, out, *songs = sys.argv[1:]
    ray.init(log_to_driver=False)
    workers = int(min(ray.cluster_resources()["CPU"] // CORES_EACH, len(songs)))
    rows = ray.data.from_items([{"path": song} for song in songs], override_num_blocks=len(songs)).map(
        SeparateTracks,
        fn_constructor_args=(bundle, out),
        fn_constructor_kwargs={"threads": CORES_EACH},
        num_cpus=CORES_EACH,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    for row in rows.iter_rows():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
