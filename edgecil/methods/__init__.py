"""One file per method; `edgecil.registry` finds them by reading this folder."""
