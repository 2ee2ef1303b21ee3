"""`python -m tests.benchmarks.driver_memory MARKS VERB ...`: runs a verb, and notes what ray.init took and left."""

import json
import sys
import time
from pathlib import Path

import psutil
import ray

from ucotron_ray import cli


def main() -> int:
    marks, *arguments = sys.argv[1:]
    connect = ray.init

    def init(*args: object, **kwargs: object) -> object:
        began = time.monotonic()
        context = connect(*args, **kwargs)
        noted = {"rss_after_init": psutil.Process().memory_info().rss, "seconds_of_init": time.monotonic() - began}
        Path(marks).write_text(json.dumps(noted), encoding="utf-8")
        return context

    ray.init = init
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
