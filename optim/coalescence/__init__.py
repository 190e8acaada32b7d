"""Training and use of networks of coalescence times.

objective.py     what training minimises
"""
