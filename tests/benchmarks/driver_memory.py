"""`python -m tests.benchmarks.driver_memory MARKS VERB ...`: runs a verb, and notes the memory right after ray.init."""

import json
import sys
from pathlib import Path

import psutil
import ray

from ucotron_ray import cli


def main() -> int:
    marks, *arguments = sys.argv[1:]
    connect = ray.init

    def init(*args: object, **kwargs: object) -> object:
        context = connect(*args, **kwargs)
        Path(marks).write_text(json.dumps({"rss_after_init": psutil.Process().memory_info().rss}), encoding="utf-8")
        return context

    ray.init = init
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
