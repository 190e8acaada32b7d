"""Times to the most recent common ancestor of two haplotypes, window by window, as tokens.

settings.py     the shape of a network, and those that have names
network.py      the network
decoding.py     one token at a time, with kept keys and values
adapter.py      in front of a trained network: from fewer samples
"""
