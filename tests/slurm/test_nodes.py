"""A node that is not fit to train is left out."""

from __future__ import annotations

from tests.slurm.cluster import wait_until
from tests.slurm.jobs import PATIENCE, Site, logs, tiny

# of address space: room for bash, SLURM and the import of torch, not for the matrices of the health check
SICK_BYTES = 700 << 20


def wait_for_idle(site: Site, node: str) -> None:
    def is_idle() -> bool:  # sinfo may go on saying "mixed" after the last job
        return " State=IDLE " in site.cluster.run("scontrol", "-o", "show", "node", node).stdout

    wait_until(is_idle, PATIENCE, f"node {node}")


def restart(site: Site, node: str, *prefix: str) -> None:
    """Stop a node's slurmd, once it has reported the ends of its jobs, and start it anew."""
    wait_for_idle(site, node)
    site.cluster.kill(node)
    site.cluster.start_node(node, *prefix)
    wait_for_idle(site, node)


def test_a_sick_node_is_left_out_and_the_chain_finishes_on_the_other_one(site: Site) -> None:
    restart(site, "n1", "prlimit", f"--as={SICK_BYTES}")
    try:
        outcome = site.submit(
            "lncot-train",
            "--name",
            "run",
            "--",
            *tiny(model=None, iterations=6),
            HEALTH_CHECK="1",
            CHAIN_BY="requeue",
        )
        site.wait(outcome)
    finally:
        restart(site, "n1")
    assert (outcome.run_dir / "excluded_nodes").read_text().split() == ["n1"], logs(outcome.run_dir)
    (row,) = site.ledger()
    assert row["chain"] == "finished"
    assert "on n2" in (outcome.run_dir / f"slurm_{row['job_id']}.out").read_text()
    assert len(list(outcome.run_dir.glob("slurm_*.out"))) == 2
