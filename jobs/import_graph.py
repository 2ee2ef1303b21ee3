"""The job `import-graph`: `ray job submit --working-dir . -- python jobs/import_graph.py [flags of the verb]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["import-graph", *sys.argv[1:]]))
