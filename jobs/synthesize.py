"""The job `synthesize`: `ray job submit --working-dir . -- python jobs/synthesize.py [flags of the verb]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["synthesize", *sys.argv[1:]]))
