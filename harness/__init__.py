"""corematrix: on which kernels does a BPF CO-RE object load, and what became of each of its relocations?"""

__version__ = "0.1.0"
