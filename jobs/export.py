"""The job `export`: `ray job submit --working-dir . -- python jobs/export.py [flags of ucotron-ray export]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
