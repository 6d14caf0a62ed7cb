"""Two Ray nodes on this machine, for as long as standard input stays open.

Prints the address of the cluster, and the process id of the head's raylet, which a driver on this
machine takes. Run as a process of its own: ray leaves threads behind.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"


def main() -> None:
    """Start, wait, stop."""
    from ray.cluster_utils import Cluster

    # Short: the sockets of ray lie below, and their paths may have 107 characters.
    folder = tempfile.mkdtemp(prefix="scf-ray-", dir="/tmp")
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args={**node, "temp_dir": folder})
        try:
            cluster.add_node(**node)
            raylet = cluster.head_node.all_processes["raylet"][0].process.pid
            sys.stdout.write(f"{cluster.address} {raylet}\n")
            sys.stdout.flush()
            sys.stdin.read()
        finally:
            cluster.shutdown()
    finally:
        shutil.rmtree(Path(folder), ignore_errors=True)


if __name__ == "__main__":
    main()
