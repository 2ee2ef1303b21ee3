"""The job `sft`: `ray job submit --working-dir . -- python jobs/sft.py [flags of ucotron-ray sft]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
