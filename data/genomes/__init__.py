"""Simulated genomes: from a simulator to the examples that a network of coalescence times is trained on.

scenarios.py, simulate.py     tree sequences, one file a simulation
"""
