"""The command line of edgecil: a thin skin over :mod:`edgecil.api`."""
