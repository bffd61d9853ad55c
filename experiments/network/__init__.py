"""The network world: allocation problems whose optimum is known, or bounded, and what solves
them.
"""
