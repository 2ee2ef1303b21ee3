"""The job `compare`: `ray job submit --working-dir . -- python jobs/compare.py [flags of ucotron-ray compare]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
