"""Simulated genomes as training data of the recipe coalescence.

scenarios.py, simulate.py, tree_file.py, accessibility.py   tree sequences, by msprime; a mask
features.py, targets.py          site counts of haplotype pairs, and their coalescence times as tokens
preprocess.py, inputs.py, shards.py   tree sequences to examples on disk
store.py, windows.py             examples from disk, and batches of them
haplotypes.py, trees.py, vcf.py, bed.py   genomes of one's own, for infer.py
"""
