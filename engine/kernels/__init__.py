"""The kernels: one small table of coarse operations (table.py), one column for each kind of machine."""
