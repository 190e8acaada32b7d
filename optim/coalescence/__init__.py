"""Training and use of networks of coalescence times.

objective.py, training.py, held_out.py   what training minimises, and its parts
load.py, names.py, public.py             checkpoints by name, and those of the public code
decoding.py, inference.py, parts.py      draws of times; along a genome; those that are interrupted
posterior.py                             means, intervals, the correction by a mutation rate
evaluate.py, results.py                  accuracy and calibration; what eval.py says of them
"""
