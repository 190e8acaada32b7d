"""Training and use of networks of coalescence times.

training.py, objective.py   the parts of a training; what it minimises
held_out.py                 what is measured of it
names.py, load.py           checkpoints by name; a trained network
public.py                   checkpoints of the public code
"""
