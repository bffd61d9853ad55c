"""Thin scripts over rldtf_jax and twin: tasks, stages, evaluation, report."""
