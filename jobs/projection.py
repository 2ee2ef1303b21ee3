"""The job `projection`: `ray job submit --working-dir . -- python jobs/projection.py [flags of the verb]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["projection", *sys.argv[1:]]))
