"""The job `tune`: `ray job submit --working-dir . -- python jobs/tune.py STAGE [flags of ucotron-ray tune]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
