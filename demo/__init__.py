"""The live demo (Fig. 8 of the paper): a page on which a request becomes a workflow, and the twin
says what it is worth.
"""
