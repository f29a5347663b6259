"""The figures of tools/gpu_figures.py: each step is a process by itself, and each row compares what steps have found.

`steps.py` has the steps, `rows.py` the rows, `running.py` runs a step. The others are programs that steps call.
"""
