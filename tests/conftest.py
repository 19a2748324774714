"""One torch thread per test process, before torch is imported by anybody.

Two processes that each take all cores are many times slower than one thread each.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
