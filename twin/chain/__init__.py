"""The simulated chain: transport block -> channel -> estimation -> detection -> decoding, native in
numpy and numba.
"""
