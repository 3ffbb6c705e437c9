"""Attention over memory: by which few operations a query attends to a very large memory.

`ops` is what others call. Each op has a folder: `reference.py` says what it computes, in plain
torch and in any precision; `cpu.py` computes it in bounded memory; `kernel.py` is Triton; the
README derives it.
"""
