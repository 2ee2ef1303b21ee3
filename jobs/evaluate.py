"""The job `evaluate`: `ray job submit --working-dir . -- python jobs/evaluate.py [flags of ucotron-ray evaluate]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
