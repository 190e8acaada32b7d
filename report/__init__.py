"""The paper's numbers beside ours: the fidelity report (python -m report) and what its figures share."""
