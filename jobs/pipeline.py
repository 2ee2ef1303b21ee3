"""The job `pipeline`: `ray job submit --working-dir . -- python jobs/pipeline.py [flags of ucotron-ray pipeline]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:]]))
